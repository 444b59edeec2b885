"""Notices that nothing arrives on a connection, without false alarms when this process itself stood still.

An event loop runs its timers before it reads its sockets. So a process that stood still for longer than its timeout
finds the timer due first, although the answer arrived long ago. Here a timer that is due only begins a second look: by
then the loop has read what had arrived.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

#: From the first look to the second at least: enough for the loop to read its sockets.
SECOND_LOOK_S = 0.05


class Silence:
    """Calls ``alarm`` once something is awaited and nothing has arrived for ``limit_s`` seconds.

    Args:
        limit_s: seconds.
        heard_at: returns when something last arrived, or since when it is awaited, on the loop's clock; None: nothing
            is awaited, and ``start`` is called again when something is.
        alarm: called once, from the event loop.
    """

    __slots__ = ("_alarm", "_due_at", "_heard_at", "_limit_s", "_loop", "_seen", "_timer")

    def __init__(self, limit_s: float, heard_at: Callable[[], float | None], alarm: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._heard_at = heard_at
        self._alarm = alarm
        self._loop = asyncio.get_running_loop()
        self._seen: float | None = None
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Begin to look, unless it has begun."""
        if self._timer is None:
            self._look_later()

    def stop(self) -> None:
        """Raise no alarm any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look_later(self) -> None:
        self._seen = self._heard_at()
        if self._seen is None:
            self._timer = None
            return
        self._due_at = self._seen + self._limit_s
        self._timer = self._loop.call_at(self._due_at, self._look)

    def _look(self) -> None:
        if self._heard_at() != self._seen:
            self._look_later()
            return
        # A timer that fires late means that this process stood still. The other side may have done so as well (a
        # machine that was suspended), so it gets that time again.
        late_s = min(self._loop.time() - self._due_at, self._limit_s)
        self._timer = self._loop.call_later(max(SECOND_LOOK_S, late_s), self._look_again)

    def _look_again(self) -> None:
        if self._heard_at() != self._seen:
            self._look_later()
        else:
            self._timer = None
            self._alarm()
