"""Suggestions for names that a user misspelt."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable


def closest(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str | None:
    """Return the known name that is most similar to ``name``, or None.

    Args:
        name: as the user typed it.
        known: the valid names.
        cutoff: smallest similarity that counts, 0 to 1.
    """
    return next(iter(difflib.get_close_matches(name, known, n=1, cutoff=cutoff)), None)


def suggest(name: str, known: Collection[str], *, cutoff: float = 0.6) -> str:
    """Return the hint of an error message about an unknown name: the closest known name, or all known names."""
    near = closest(name, known, cutoff=cutoff)
    return f"did you mean {near!r}?" if near else f"known are {', '.join(known)}"


def not_one_of(field: str, value: object, known: Iterable[str]) -> str:
    """Return the error message about a value that is not one of a few: all of them, and the most similar one."""
    names = list(known)
    near = closest(value, names) if isinstance(value, str) else None
    step = f"; did you mean {near!r}?" if near else ""
    return f"{field} {value!r} is not one of {', '.join(names)}{step}"
