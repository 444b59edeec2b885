"""Limits of time for the work of many requests, with one timer for all of them.

``asyncio.timeout`` sets and cancels a timer each time it is used, which nearly always ends before the timer. Here a
limit is an entry of a dictionary; the timer looks at all of them when the earliest may be due.
"""

from __future__ import annotations

import asyncio
from types import TracebackType

#: Minimum seconds between two looks: a limit may end that much later.
STEP_S = 0.05


class Deadlines:
    """The limits of one event loop."""

    def __init__(self) -> None:
        self._limits: dict[Limit, None] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def limit(self, seconds: float) -> Limit:
        """Return a context manager that raises ``TimeoutError`` in its block after this time."""
        return Limit(self, seconds)

    def add(self, limit: Limit, loop: asyncio.AbstractEventLoop) -> None:
        """Watch a limit."""
        self._limits[limit] = None
        if self._timer is None or limit.due < self._timer_at:
            self._set_timer(limit.due, loop)

    def remove(self, limit: Limit) -> None:
        """Watch a limit no longer."""
        self._limits.pop(limit, None)

    def _set_timer(self, at: float, loop: asyncio.AbstractEventLoop) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        self._timer = loop.call_at(at, self._look, loop)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        for limit in [limit for limit in self._limits if limit.due <= now]:
            del self._limits[limit]
            limit.expire()
        if self._limits:
            self._set_timer(max(min(limit.due for limit in self._limits), now + STEP_S), loop)


class Limit:
    """One block with a limit."""

    __slots__ = ("_cancelling", "_deadlines", "_is_expired", "_seconds", "_task", "due")

    _task: asyncio.Task[object]
    due: float

    def __init__(self, deadlines: Deadlines, seconds: float) -> None:
        self._deadlines = deadlines
        self._seconds = seconds
        self._is_expired = False

    def __enter__(self) -> None:
        """Begin."""
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 (a coroutine runs in a task)
        self._task = task
        self._cancelling = task.cancelling()
        loop = task.get_loop()
        self.due = loop.time() + self._seconds
        self._deadlines.add(self, loop)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _at: TracebackType | None
    ) -> None:
        """End; turn the cancel at the limit into a ``TimeoutError``."""
        self._deadlines.remove(self)
        if self._is_expired and self._task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self) -> None:
        """Interrupt the block."""
        self._is_expired = True
        self._task.cancel()
