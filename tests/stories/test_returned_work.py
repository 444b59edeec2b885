"""Work that agents return unstarted: it waits for somebody else, and never fails for it."""

from __future__ import annotations

import asyncio

import pytest

from coord import Client, Task
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

#: Long beside what an answer takes on a busy machine.
PATIENT_S = 30.0


@pytest.mark.guarantee("returns-never-fail-a-task")
async def test_an_agent_that_drains_while_the_registry_is_away(
    cell: RunningCell, client: Client, make_agent: MakeAgent
) -> None:
    """⚠ It returns what it gets, once: it is suspended, the tasks wait, and the next agent does them."""
    leaving = make_agent("leaving", capacity=2)
    may_end = asyncio.Event()

    @leaving.task("work")
    async def hold(task: Task) -> str:
        await may_end.wait()
        return "held"

    await leaving.start()
    held = [await client.submit("work") for _ in range(2)]
    await wait_until(lambda: leaving.running == 2, "both slots are taken")
    waiting = [await client.submit("work") for _ in range(10)]
    await waiting[-1].accepted(PATIENT_S)
    (registry,) = cell.of_kind("registry")
    await registry.stop()

    stopping = asyncio.create_task(leaving.stop(grace=PATIENT_S))
    assert leaving._session is not None
    claims = leaving._session.claims
    await wait_until(lambda: claims.is_draining, "the agent drains")
    may_end.set()
    assert [await one.result(PATIENT_S) for one in held] == ["held", "held"]

    async def returned() -> int:
        return (await client.counters()).get("released", 0)

    await wait_until(returned, "something was returned")
    begun = await _attempt_clock(cell)

    async def is_later() -> bool:
        return await _attempt_clock(cell) > begun + 2_000

    await wait_until(is_later, "the distributor was at work long enough for many more returns")
    assert await returned() <= 4
    for one in waiting:
        assert (await one.record()).state in {TaskState.QUEUED, TaskState.SCHEDULED}

    await cell.add("registry")
    await stopping
    assert (await client.agent("leaving")).status is AgentStatus.INACTIVE
    other = make_agent("other", capacity=2)

    @other.task("work")
    async def work(task: Task) -> str:
        return "done"

    await other.start()
    assert [await one.result(PATIENT_S) for one in waiting] == ["done"] * 10


async def _attempt_clock(cell: RunningCell) -> int:
    """Ms that the distributor was at work, by the clock that it keeps."""
    return int(await cell.redis.execute_command("HGET", cell.keys.of("clock"), "attempts") or 0)
