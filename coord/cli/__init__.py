"""The command ``coord``: one command is one file, one call and what is printed of it.

What went wrong is told in one line with the next step, on standard error; ``coord.cli.exits`` says what each exit code
means, ``coord.cli.voice`` how a command is written.
"""

from __future__ import annotations

import sys

from coord.errors import CoordError

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name."""
    from coord.cli.exits import ExitCode, exit_code, sentence

    try:
        from coord.cli.app import app

        app()
    except CoordError as error:
        print(sentence(error), file=sys.stderr)
        sys.exit(exit_code(error))
    except KeyboardInterrupt:
        sys.exit(ExitCode.INTERRUPTED)
    except BrokenPipeError:
        from coord.terminal import has_enough

        raise has_enough(sys.stdout) from None
