"""Exponential backoff."""

from __future__ import annotations


class Backoff:
    """Waits that double, from a first one up to a longest one.

    Args:
        first_s: the first wait, in seconds.
        longest_s: the upper limit, in seconds.
    """

    __slots__ = ("_first_s", "_longest_s", "_next_s")

    def __init__(self, first_s: float, longest_s: float) -> None:
        self._first_s = first_s
        self._longest_s = longest_s
        self._next_s = first_s

    def next_s(self) -> float:
        """Return the next wait in seconds, and double the one after it."""
        wait_s = self._next_s
        self._next_s = min(wait_s * 2, self._longest_s)
        return wait_s

    def reset(self) -> None:
        """Start again at the first wait, after a success."""
        self._next_s = self._first_s
