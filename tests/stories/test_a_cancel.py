"""A client changes its mind."""

from __future__ import annotations

import asyncio
import threading

import pytest

from coord import Client, Task
from coord.errors import TaskAlreadyFinished, TaskCancelled, TaskNotFound
from coord.models.tasks import TaskState
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


async def test_a_waiting_task_is_cancelled_at_once(client: Client) -> None:
    """No agent has it: it ends, and its caller is told why."""
    handle = await client.submit("never")
    await handle.accepted(timeout=10)
    assert await handle.cancel("changed my mind", timeout=20) == "accepted"
    with pytest.raises(TaskCancelled, match="changed my mind"):
        await handle.result(timeout=10)


async def test_a_running_task_is_cancelled_in_its_handler(client: Client, make_agent: MakeAgent) -> None:
    """An async handler is cancelled where it waits, cleans up, and the task is cancelled when its agent says so."""
    agent = make_agent("patient")
    running = asyncio.Event()
    cleaned: list[str] = []

    @agent.task("wait")
    async def wait(task: Task) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.append(task.task_id)

    await agent.start()
    handle = await client.submit("wait")
    await running.wait()
    assert await handle.cancel(timeout=20) == "accepted"
    with pytest.raises(TaskCancelled):
        await handle.result(timeout=10)
    assert cleaned == [handle.task_id]
    await wait_until(lambda: agent.leases == 0, "the agent holds nothing")


async def test_a_handler_in_a_thread_sees_that_it_shall_stop(client: Client, make_agent: MakeAgent) -> None:
    """Nobody can cancel a thread: it looks at task.cancelled, and what it returns then is dropped."""
    agent = make_agent("threaded")
    running, seen = threading.Event(), threading.Event()

    @agent.task("grind")
    def grind(task: Task) -> str:
        running.set()
        while not task.cancelled:
            seen.wait(0.01)
        return "dropped"

    await agent.start()
    handle = await client.submit("grind")
    await wait_until(running.is_set, "the handler runs")
    await handle.cancel()
    with pytest.raises(TaskCancelled):
        await handle.result(timeout=10)
    assert (await handle.record()).result is None


async def test_a_cancel_that_comes_too_late_is_said_to(client: Client, make_agent: MakeAgent) -> None:
    """A finished task keeps its outcome, an unknown one is said to be unknown."""
    agent = make_agent("quick")

    @agent.task("quick")
    async def quick(task: Task) -> str:
        return "done"

    await agent.start()
    handle = await client.submit("quick")
    await handle.result(timeout=10)
    with pytest.raises(TaskAlreadyFinished):
        await handle.cancel(timeout=20)
    with pytest.raises(TaskNotFound):
        await client.cancel("nobodys-task", timeout=20)
    assert (await handle.record()).state == TaskState.COMPLETED
