"""The command ``coord``: one command is one file, one call and what is printed of it.

An error is one line on standard error, with the next step. ``coord.cli.exit_codes`` says what each exit code means,
``coord.cli.commands`` how a command is written.
"""

from __future__ import annotations

import sys

from coord.errors import CoordError
from coord.interrupts import ends_on_interrupt

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name."""
    from coord.cli.exit_codes import ExitCode, exit_code, sentence

    try:
        with ends_on_interrupt():
            from coord.cli.app import app

        app()
    except CoordError as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(exit_code(error))
    except RuntimeError as error:
        if "home directory" not in str(error):  # as pathlib says it
            raise
        print("coord: there is no home directory of this user; set HOME", file=sys.stderr)
        sys.exit(ExitCode.CANNOT)
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        from coord.terminal import has_enough

        raise has_enough(sys.stdout) from None
