"""Safe output to a terminal or a pipe: control characters are escaped, and the reader may close the pipe."""

from __future__ import annotations

import os
from typing import TextIO


def plain(text: str) -> str:
    """Return ``text`` with every control character escaped, including line breaks."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def quiet_exit(stream: TextIO) -> SystemExit:
    """Return the exception to raise after the reader has closed the output, as ``head`` does."""
    # Without this, the interpreter reports an error when it flushes at exit.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return SystemExit(0)
