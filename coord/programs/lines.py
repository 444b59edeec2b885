"""Lines out of pieces, in bounded memory."""

from __future__ import annotations

from collections.abc import Callable


class Lines:
    """Calls ``take`` with each line, without its end; a longer one than ``longest`` is left out, ``dropped`` told."""

    def __init__(self, longest: int, take: Callable[[bytes], None], dropped: Callable[[], None]) -> None:
        self._longest = longest
        self._take = take
        self._dropped = dropped
        self._kept = bytearray()
        self._is_skipping = False

    def feed(self, data: bytes) -> None:
        """More has come."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._keep(piece)
            if not self._is_skipping:
                line = bytes(self._kept)
                self._kept.clear()
                self._take(line)
            self._is_skipping = False
        self._keep(rest)

    def end(self) -> None:
        """No more comes: what is left is a line too."""
        if self._kept:
            self.feed(b"\n")

    def _keep(self, piece: bytes) -> None:
        if self._is_skipping:
            return
        self._kept += piece
        if len(self._kept) > self._longest:
            self._kept.clear()
            self._is_skipping = True
            self._dropped()
