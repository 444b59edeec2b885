"""The command ``coord``: each command is a function that makes one call and prints the result.

An error is one line on standard error, with the next step. ``coord.cli.exit_codes`` defines the exit codes,
``coord.cli.commands`` the conventions of a command.
"""

from __future__ import annotations

import sys

from coord.errors import CoordError

__all__ = ["main"]


def main() -> None:
    """Run the command in the arguments of this process."""
    from coord.cli.exit_codes import ExitCode, sentence
    from coord.cli.parse import wants_json

    try:
        from coord.cli.app import app

        if wants_json(sys.argv[1:]):
            from coord.cli.json_errors import run

            sys.exit(run(app))
        app()
    except CoordError as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        from coord.terminal import quiet_exit

        raise quiet_exit(sys.stdout) from None
