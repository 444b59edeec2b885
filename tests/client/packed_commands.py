"""Reads packed commands back."""

from __future__ import annotations

import hiredis


def read_command(packed: bytes) -> list[bytes]:
    """The words of a command as it goes over the wire."""
    reader = hiredis.Reader()
    reader.feed(packed)
    words = reader.gets()
    assert isinstance(words, list)
    return words
