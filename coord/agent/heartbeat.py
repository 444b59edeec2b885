"""What a heartbeat reports besides the leases: the load of the machine, and if the agent reads its inbox."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import psutil

#: Seconds for which a measurement of the machine is reused.
_FRESH_S = 1.0
_measured_at = float("-inf")
_load: dict[str, float] = {}

#: Heartbeats in a row without an answer to the reader of the inbox, after which the agent is deaf.
DEAF_HEARTBEATS = 3


def system_load() -> dict[str, float]:
    """Return ``cpu`` and ``memory`` of the machine as fractions, measured once a second for all agents of a process.

    ``cpu`` is the mean since the previous measurement, 0 at the first.
    """
    global _measured_at, _load  # noqa: PLW0603 -- one machine, one measurement
    now = time.monotonic()
    if now - _measured_at >= _FRESH_S:
        _measured_at = now
        _load = {
            "cpu": round(psutil.cpu_percent(None) / 100, 3),
            "memory": round(psutil.virtual_memory().percent / 100, 3),
        }
    return _load


class ReaderCheck:
    """Detects that the reader of the inbox has stopped, so that the agent gets nothing new meanwhile.

    This is the second line of defence: the reader cannot end, because its connection reconnects by itself. The check
    compares the number of rounds of the reader from heartbeat to heartbeat. It counts heartbeats, not only time: a
    process that was stopped for a while sends one heartbeat, reads what has arrived, and is not deaf.

    Args:
        rounds: returns how often the reader got an answer and continued.
        limit_s: minimum seconds without a round before the agent is deaf; also the time between two reconnects.
    """

    def __init__(self, rounds: Callable[[], int], limit_s: float) -> None:
        self._rounds = rounds
        self._limit_s = limit_s
        self._loop = asyncio.get_running_loop()
        self._reconnected_at = self._loop.time()
        self.reset()

    def reset(self) -> None:
        """Start to count again, because Redis was unavailable until now, for the reader as well."""
        self._seen = self._rounds()
        self._silent_heartbeats = 0
        self._silent_since = self._loop.time()

    def is_deaf(self) -> bool:
        """Return True if the reader has stopped; call this once before each heartbeat."""
        if self._rounds() != self._seen:
            self.reset()
            return False
        self._silent_heartbeats += 1
        return self._silent_heartbeats >= DEAF_HEARTBEATS and self._loop.time() - self._silent_since >= self._limit_s

    def should_reconnect(self) -> bool:
        """Return True if it is time for another reconnect of a deaf agent."""
        now = self._loop.time()
        if now - self._reconnected_at < self._limit_s:
            return False
        self._reconnected_at = now
        return True
