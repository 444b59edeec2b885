"""Ends background tasks for certain."""

from __future__ import annotations

import asyncio
from typing import Any

#: Between two cancels of a task that goes on.
AGAIN_S = 0.05
#: What users' code has to clean up after it was cancelled.
CANCEL_S = 5.0


async def end(*tasks: asyncio.Task[Any] | None, again_s: float = AGAIN_S) -> None:
    """Cancel tasks and wait until they have ended, whatever with; cancel them again every ``again_s`` seconds.

    One cancel is not enough: before Python 3.12, ``asyncio.wait_for`` loses one that comes in the moment in which what
    it waits for is done, and redis-py sends each command through it. The task would go on for ever.
    """
    given = [task for task in tasks if task is not None and task is not asyncio.current_task()]
    while left := [task for task in given if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=again_s)
    for task in given:
        if not task.cancelled():
            task.exception()  # looked at, so that nobody warns of it
