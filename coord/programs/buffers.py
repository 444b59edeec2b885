"""The end of what a program said, in bounded memory."""

from __future__ import annotations


class Tail:
    """The last ``longest`` bytes."""

    def __init__(self, longest: int) -> None:
        self._longest = longest
        self._kept = bytearray()
        self._is_cut = False

    def take(self, data: bytes) -> None:
        """More was said."""
        self._kept += data[-self._longest :]
        over = len(self._kept) - self._longest
        self._is_cut = self._is_cut or over > 0 or len(data) > self._longest
        if over > 0:
            del self._kept[:over]

    def text(self) -> str:
        """It, without space around it; what is no UTF-8 is replaced."""
        said = self._kept.decode("utf-8", "replace").strip()
        return "… " + said.lstrip("\ufffd") if self._is_cut else said
