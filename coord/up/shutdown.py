"""The wish to end: asked for once, things end in order; twice, at once."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any, TypeVar

from coord.aio import cancel_and_wait

T = TypeVar("T")


class Stop:
    """One command's wish to end, which all that it runs looks at."""

    def __init__(self) -> None:
        self.asked = asyncio.Event()
        self.urgent = asyncio.Event()

    def ask(self) -> None:
        """Wish to end; a second time, at once."""
        (self.urgent if self.asked.is_set() else self.asked).set()

    def ask_once(self) -> None:
        """Wish to end; it is no more urgent if that was wished already."""
        self.asked.set()

    async def asked_within(self, seconds: float) -> bool:
        """Wait so long, or until it is asked for; whether it was."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.asked.wait(), seconds)
        return self.asked.is_set()

    async def unless_asked(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What ``work`` gives, or None when it is asked to stop first; the work is cancelled then."""
        return await _unless(self.asked, work)

    async def unless_urgent(self, work: Coroutine[Any, Any, T]) -> T | None:
        """What ``work`` gives, or None when it is asked to stop at once; the work is cancelled then."""
        return await _unless(self.urgent, work)


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, T]) -> T | None:
    task: asyncio.Task[Any] = asyncio.create_task(work)
    waiting: asyncio.Task[Any] = asyncio.create_task(event.wait())
    try:
        await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        await cancel_and_wait(task, waiting)
