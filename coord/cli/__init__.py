"""The command ``coord``: one command is one file, one call and what is printed of it.

An error is one line on standard error, with the next step. ``coord.cli.exit_codes`` says what each exit code means,
``coord.cli.commands`` how a command is written.
"""

from __future__ import annotations

import sys

from coord import standard_streams
from coord.errors import CoordError
from coord.interrupts import ends_on_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name; an output that cannot be written is one line and exit code 2."""
    from coord.cli.exit_codes import ExitCode

    standard_streams.prepare()
    failed: OSError | None = None
    try:
        _main()
    except OSError as error:
        if error.errno not in standard_streams.UNWRITABLE:
            raise
        failed = error
    finally:
        failed = standard_streams.settle() or failed
        if failed is not None:
            standard_streams.tell(f"coord: cannot write the output: {failed.strerror}")
            sys.exit(ExitCode.CANNOT)


def _main() -> None:
    from coord.cli.exit_codes import ExitCode, exit_code, sentence

    try:
        with ends_on_interrupt():
            from coord.cli.app import app

        app()
    except CoordError as error:
        standard_streams.tell(sentence(error))
        sys.exit(exit_code(error))
    except RuntimeError as error:
        if "home directory" not in str(error):  # as pathlib says it
            raise
        standard_streams.tell("coord: there is no home directory of this user; set HOME")
        sys.exit(ExitCode.CANNOT)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        from coord.terminal import has_enough

        raise has_enough(sys.stdout) from None
