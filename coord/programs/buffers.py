"""Buffers for the output of a program, in bounded memory: lines, the end of a text, a result."""

from __future__ import annotations

from collections.abc import Callable


class Lines:
    """Splits data into lines.

    Args:
        limit: maximum number of bytes of a line; a longer line is dropped.
        on_line: called with each line, without its end.
        on_drop: called once for each dropped line.
    """

    def __init__(self, limit: int, on_line: Callable[[bytes], None], on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_line = on_line
        self._on_drop = on_drop
        self._kept = bytearray()
        self._is_skipping = False

    def feed(self, data: bytes) -> None:
        """Add data."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._keep(piece)
            if not self._is_skipping:
                line = bytes(self._kept)
                self._kept.clear()
                self._on_line(line)
            self._is_skipping = False
        self._keep(rest)

    def end(self) -> None:
        """End the data: the rest is a line too."""
        if self._kept:
            self.feed(b"\n")

    def _keep(self, piece: bytes) -> None:
        if self._is_skipping:
            return
        self._kept += piece
        if len(self._kept) > self._limit:
            self._kept.clear()
            self._is_skipping = True
            self._on_drop()


class Tail:
    """Keeps the last ``limit`` bytes of a text."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        """Add data."""
        self._kept += data[-self._limit :]
        excess = len(self._kept) - self._limit
        self._is_cut = self._is_cut or excess > 0 or len(data) > self._limit
        if excess > 0:
            del self._kept[:excess]

    def text(self) -> str:
        """Return the text without surrounding whitespace; bytes that are not UTF-8 are replaced."""
        text = self._kept.decode("utf-8", "replace").strip()
        return "… " + text.lstrip("\ufffd") if self._is_cut else text


class LimitedOutput:
    """Collects output up to ``limit`` bytes; on more it drops all and calls ``on_overflow``, which may be set later."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.has_overflowed = False
        self.on_overflow: Callable[[], None] = lambda: None
        self._limit = limit

    def feed(self, data: bytes) -> None:
        """Add data."""
        if self.has_overflowed:
            return
        self.kept += data
        if len(self.kept) > self._limit:
            self.kept.clear()
            self.has_overflowed = True
            self.on_overflow()
