"""Writing to a terminal or a pipe, safely: control characters are shown, and a reader may stop reading."""

from __future__ import annotations

import os
from typing import TextIO


def plain(text: str) -> str:
    """``text`` with every control character spelt out, the ends of lines too."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def has_enough(stream: TextIO) -> SystemExit:
    """Return the quiet exit to raise when the reader of the output has closed it, as ``head`` does."""
    # Without this, the interpreter complains when it flushes at its end.
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return SystemExit(0)
