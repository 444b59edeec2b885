"""The command ``coord``: each command is a function that makes one call and prints the result.

An error is one line on standard error, with the next step. ``coord.cli.exit_codes`` defines the exit codes,
``coord.cli.commands`` the conventions of a command.
"""

from __future__ import annotations

import sys

from coord import standard_streams
from coord.errors import CoordError
from coord.interrupts import ends_on_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command in the arguments of this process; exit with 2 if the output cannot be written."""
    from coord.cli.exit_codes import ExitCode

    standard_streams.prepare()
    failure: OSError | None = None
    try:
        _run()
    except OSError as error:
        if error.errno not in standard_streams.UNWRITABLE:
            raise
        failure = error
    finally:
        failure = standard_streams.flush() or failure
        if failure is not None:
            standard_streams.write_error(f"coord: cannot write the output: {failure.strerror}")
            sys.exit(ExitCode.CANNOT)


def _run() -> None:
    from coord.cli.exit_codes import ExitCode, sentence
    from coord.cli.parse import wants_json

    try:
        with ends_on_interrupt():
            from coord.cli.app import app, run_with_json

        if wants_json(sys.argv[1:]):
            sys.exit(run_with_json())
        app()
    except CoordError as error:
        standard_streams.write_error(sentence(error))
        sys.exit(error.exit_code)
    except RuntimeError as error:
        if "home directory" not in str(error):  # the text of pathlib
            raise
        standard_streams.write_error("coord: this user has no home directory; set HOME")
        sys.exit(ExitCode.CANNOT)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        from coord.standard_streams import quiet_exit

        raise quiet_exit(sys.stdout) from None
