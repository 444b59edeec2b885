"""Ends background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

#: Between two cancels of a task that goes on.
AGAIN_S = 0.05


async def end(*tasks: asyncio.Task[Any] | None) -> None:
    """Cancel tasks and wait until they have ended, whatever with.

    One cancel is not enough: before Python 3.12, ``asyncio.wait_for`` loses one that comes in the moment in which what
    it waits for is done, and redis-py sends each command through it. The task would go on for ever.
    """
    given = [task for task in tasks if task is not None and task is not asyncio.current_task()]
    while left := [task for task in given if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=AGAIN_S)
    for task in given:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody warns of it
