"""Background tasks: every unexpected end is logged, although no caller awaits the task; and their cancellation.

``keep`` runs work that has no end, such as a reader, and restarts it after every end. ``retry`` runs work until it has
returned once. ``run_once`` runs it a single time. All log an unexpected end as ``background.failed`` with its traceback
and the name of the task. ``cancel_and_wait`` cancels tasks reliably.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from coord.backoff import Backoff
from coord.logs import get_logger

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


log = get_logger()

Work = Callable[[], Coroutine[Any, Any, None]]

#: Seconds before a restart: the first wait, doubled with each end up to the second.
RESTART_S = (0.1, 5.0)
#: After a run of this many seconds, the wait is the first one again.
WELL_S = 10.0


def keep(name: str, work: Work) -> asyncio.Task[None]:
    """Run ``work`` in a task until it is cancelled; restart it whenever it raises or returns.

    Args:
        name: of the task, in the log.
        work: called for each start; runs until it is cancelled.
    """
    return asyncio.create_task(_repeat(name, work, until_returned=False), name=name)


def retry(name: str, work: Work) -> asyncio.Task[None]:
    """Run ``work`` in a task until it returns; restart it whenever it raises.

    Args:
        name: of the task, in the log.
        work: called for each start.
    """
    return asyncio.create_task(_repeat(name, work, until_returned=True), name=name)


def run_once(name: str, work: Work, failed: Callable[[Exception], None] | None = None) -> asyncio.Task[None]:
    """Run ``work`` once in a task that never raises.

    Args:
        name: of the task, in the log.
        work: called once; may return.
        failed: called with the exception that ended it, after the exception is logged.
    """
    return asyncio.create_task(_run_once(name, work, failed), name=name)


def call_safely(name: str, function: Callable[..., object], *args: object) -> None:
    """Call a function and log its exception like the end of a task, so that it does not reach the caller."""
    try:
        function(*args)
    except Exception:
        log.exception("background.failed", task=name)


async def _repeat(name: str, work: Work, *, until_returned: bool) -> None:
    loop = asyncio.get_running_loop()
    backoff = Backoff(*RESTART_S)
    while True:
        began = loop.time()
        try:
            await work()
        except Exception:
            log.exception("background.failed", task=name)
        else:
            if until_returned:
                return
            log.error("background.failed", task=name, error="it returned, but must run until it is cancelled")
        if loop.time() - began >= WELL_S:
            backoff.reset()
        await asyncio.sleep(backoff.next_s())


async def _run_once(name: str, work: Work, failed: Callable[[Exception], None] | None) -> None:
    try:
        await work()
    except Exception as error:
        log.exception("background.failed", task=name)
        if failed is not None:
            failed(error)
