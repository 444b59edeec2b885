"""Whether an agent reads its inbox: looked at before each beat, so that one that does not gets nothing new.

It is the second line of defence. The first is that the reader cannot end: its connection comes back by itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: Beats in a row between which the reader has not come around its loop, before the agent is deaf.
DEAF_BEATS = 3


class Hearing:
    """Compares how often the reader came around its loop from beat to beat.

    Beats are counted, and not only time: a process that stood still beats once, reads what has arrived, and is not
    deaf.

    Args:
        rounds: returns how often the reader came around.
        limit_s: seconds without a round before the agent is deaf, whatever the number of beats; also the time between
            two attempts to heal it.
    """

    def __init__(self, rounds: Callable[[], int], limit_s: float) -> None:
        self._rounds = rounds
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._healed_at = self._loop.time()
        self.reset()

    def reset(self) -> None:
        """Begin to count: Redis was away until now, for the reader as well."""
        self._seen = self._rounds()
        self._silent_beats = 0
        self._silent_since = self._loop.time()

    def look(self) -> bool:
        """Return True if the agent is deaf; called before each beat."""
        if self._rounds() != self._seen:
            self.reset()
            return False
        self._silent_beats += 1
        return self._silent_beats >= DEAF_BEATS and self._loop.time() - self._silent_since >= self._limit_s

    def is_to_heal(self) -> bool:
        """Return True if it is time for another attempt to heal a deaf agent."""
        now = self._loop.time()
        if now - self._healed_at < self._limit_s:
            return False
        self._healed_at = now
        return True
