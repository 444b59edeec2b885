"""The command ``coord``: one command is one file, one call and what is printed of it.

What a person did wrong is answered with one line and the next step, on standard error, and exit code 2.
"""

from __future__ import annotations

import os
import sys

from coord.errors import CoordError

__all__ = ["main"]


def main() -> None:
    """Run the command that the arguments name."""
    try:
        from coord.cli.app import app

        app()
    except CoordError as error:
        print(f"coord: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        # Whoever read the output has enough; without this, the interpreter complains when it flushes at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
