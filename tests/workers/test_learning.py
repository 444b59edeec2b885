"""Distributors learn from the reports that they settle, and from each other; one that starts knows what others know."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import queries
from coord.models.agents import FleetAgent
from coord.models.facts import TaskCompleted
from coord.models.tasks import TaskState
from coord.placement import Learned
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import Caller, RawAgent, await_count, await_state, distributor, fleet, for_agent


def learned_by(worker: RunningWorker) -> Learned:
    """What one distributor has learned."""
    return distributor(worker).view.learned


def attempts(worker: RunningWorker, agent_id: str = "a0") -> int:
    """How many attempts of an agent one distributor knows."""
    of_type = learned_by(worker).of_type("echo")
    cell = None if of_type is None else of_type.cells.get(agent_id)
    return 0 if cell is None else cell.sums.attempts


async def work(agent: RawAgent, caller: Caller, count: int, ms: int, *, failures: int = 0) -> None:
    """Let an agent complete tasks, each after some time as it reports, and fail others for good."""
    await caller.submit(count + failures, requirements=for_agent(agent.agent_id))
    left = count + failures
    while left:
        for one in await agent.await_inbox():
            if await agent.claim(one):
                if left > count:
                    await agent.fail(one, retryable=False)
                else:
                    await agent.report(TaskCompleted(one.task_id, one.lease, started_ms_ago=ms))
                left -= 1


async def test_every_distributor_learns_what_any_of_them_settles(cell: RunningCell, caller: Caller) -> None:
    """Three distributors, so most reports are settled by one that did not place the task; then one more starts."""
    distributors = [*cell.of_kind("distributor"), await cell.add("distributor"), await cell.add("distributor")]
    fast, slow = await fleet(cell, 2, capacity=4)
    await work(fast, caller, 40, 500)
    await work(slow, caller, 40, 4_000, failures=20)
    await await_count(cell, TaskState.COMPLETED, 80)

    def knows(worker: RunningWorker) -> bool:
        return [attempts(worker, agent_id) for agent_id in ("a0", "a1")] == [40, 60]

    await wait_until(lambda: all(knows(worker) for worker in distributors), "all ends are known")
    distributors.append(await cell.add("distributor"))
    await wait_until(lambda: knows(distributors[-1]), "a new distributor knows what the log holds")
    for worker in distributors:
        learned = learned_by(worker)
        fast_s, slow_s = (learned.service_s(one.agent_id, "echo") for one in (fast, slow))
        assert fast_s is not None
        assert slow_s is not None
        assert 4 < slow_s / fast_s < 12
        assert learned.failure_rate("a0", "echo") == 0
        assert 0.2 < learned.failure_rate("a1", "echo") < 0.6


async def test_a_distributor_that_reads_its_agents_slowly_misses_nothing(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the log holds of an agent counts only once the agent is known."""
    (first,) = cell.of_kind("distributor")
    (agent,) = await fleet(cell, 1, capacity=4)
    await work(agent, caller, 5, 500)
    await wait_until(lambda: attempts(first) == 5, "the first knows the five")
    second = await cell.add("distributor")
    await wait_until(lambda: attempts(second) == 5, "all of it is in the log")
    read = queries.get_fleet

    async def read_slowly(*args: Any) -> dict[str, FleetAgent]:
        await asyncio.sleep(0.5)  # longer than it takes to read the log
        return await read(*args)

    monkeypatch.setattr("workers.follower.queries.get_fleet", read_slowly)
    third = await cell.add("distributor")
    await wait_until(lambda: attempts(third) == 5, "a new one knows what the log holds")


async def test_a_log_that_was_emptied_does_not_stop_the_learning(cell: RunningCell, caller: Caller) -> None:
    """As after a fail-over that lost it; entries that cannot be read are skipped."""
    (first,) = cell.of_kind("distributor")
    second = await cell.add("distributor")
    (agent,) = await fleet(cell, 1, capacity=4)
    await work(agent, caller, 5, 500)
    workers = (first, second)
    await wait_until(lambda: [attempts(worker) for worker in workers] == [5, 5], "both know the five")
    log = cell.keys.of("log:learned")
    await cell.redis.delete(log)
    await cell.redis.xadd(log, {"type": "agents.learned", "by": "x", "data": "what?"}, id="1-1")
    for worker in workers:
        distributor(worker).request_recovery()
    (told,) = await caller.submit(requirements=for_agent("a0"))
    (one,) = await agent.await_inbox()
    assert await agent.claim(one)
    await agent.report(TaskCompleted(one.task_id, one.lease, started_ms_ago=500))
    await await_state(cell, told.task_id, TaskState.COMPLETED)
    await wait_until(lambda: [attempts(worker) for worker in workers] == [6, 6], "both know the sixth")
