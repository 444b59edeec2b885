"""Which facts may share an entry, and how many: for what an entry costs everyone hardly depends on what it tells."""

from __future__ import annotations

#: Bytes of a fact's JSON up to which it shares: a longer one gains little, and nothing so short nests so deep that the
#: others of its entry could not be read.
SHORT = 1_024


def most(limit: int, max_bytes: int) -> int:
    """How many short facts may share an entry of ``max_bytes``, and ``limit`` at most; below 2: none may."""
    return min(limit, max_bytes // (SHORT + 1) - 1)
