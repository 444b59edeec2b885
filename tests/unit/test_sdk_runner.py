"""The runner: what becomes of handlers that are told to stop, or do not end in time."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from coord import Task
from coord.sdk.attempt import Attempt
from coord.sdk.handlers import read_handler
from coord.sdk.runner import Runner
from tests.unit.sdk_desk import Desk


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For handlers that are not async."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_the_late_result_of_an_abandoned_handler_is_dropped(
    desk: Desk, threads: ThreadPoolExecutor, kind: str
) -> None:
    """Its task was given back, and somebody else may be at it: a result that comes after that is told to nobody."""
    gate, may_end = asyncio.Event(), threading.Event()

    async def deaf(task: Task) -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    def threaded(task: Task) -> str:
        may_end.wait(30)
        return "late"

    handler: Callable[..., object] = deaf if kind == "async" else threaded
    runner = Runner("a", {"hold": read_handler(handler)}, None, threads, desk.reports)
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b'{"task_type":"hold"}')
    runner.start(attempt)
    assert attempt.future is not None
    handled = attempt.future
    await runner.finish(0, 0)
    assert (runner.has_abandoned, runner.running) == (True, 0)
    gate.set()
    may_end.set()
    await asyncio.gather(handled, return_exceptions=True)
    await asyncio.sleep(0)  # what is told goes out at the end of the turn
    runner.close()
    assert [one[3] for one in desk.link.commands(b"XADD")] == [b"task.released"]


async def test_a_handler_that_is_stopped_before_its_first_step_is_given_back(
    desk: Desk, threads: ThreadPoolExecutor
) -> None:
    """A coroutine that never began could not report its end: the slot would be taken for good."""

    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    runner = Runner("a", {"hang": read_handler(hang)}, None, threads, desk.reports)
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b'{"task_type":"hang"}')
    runner.start(attempt)
    assert attempt.future is not None
    handled = attempt.future
    runner.stop(attempt, "cancelled")
    await asyncio.gather(handled, return_exceptions=True)
    runner.close()
    (told,) = desk.link.commands(b"XADD")
    assert (told[3], b"cancelled" in told[5], runner.running) == (b"task.released", True, 0)
