"""Cancels asyncio tasks reliably."""

from __future__ import annotations

import asyncio
from typing import Any

#: Seconds between two cancels of a task that continues.
CANCEL_AGAIN_S = 0.05
#: Seconds that users' code has to clean up after it was cancelled.
CANCEL_S = 5.0


async def cancel_and_wait(*tasks: asyncio.Task[Any] | None, again_s: float = CANCEL_AGAIN_S) -> None:
    """Cancel tasks and wait until all have ended, with whatever result.

    One cancel is not enough: before Python 3.12, ``asyncio.wait_for`` loses a cancel that arrives at the moment at
    which its future is done, and redis-py sends each command through it. The task would continue for ever.

    Args:
        tasks: None and the current task are skipped.
        again_s: seconds after which a task that continues is cancelled again.
    """
    chosen = [task for task in tasks if task is not None and task is not asyncio.current_task()]
    while left := [task for task in chosen if not task.done()]:
        for task in left:
            task.cancel()
        await asyncio.wait(left, timeout=again_s)
    for task in chosen:
        if not task.cancelled():
            task.exception()  # marks it as retrieved, so asyncio logs no warning
