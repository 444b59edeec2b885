"""Agents that fail or slow down, and two distributors as processes: tasks go elsewhere, and the agents get them back.

How an agent works is read from a file before each task, so a test can change it: a number of seconds, or ``fail``.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord import queries
from coord.models.explanations import WaitingReason
from coord.models.tasks import TaskRecord, TaskState
from coord.placement.learning import HALF_LIFE_SAMPLES
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

AGENT = """
import asyncio, pathlib, sys
from coord import Agent
agent_id, capacity, how = sys.argv[1], int(sys.argv[2]), pathlib.Path(sys.argv[3])
agent = Agent(agent_id, capabilities=["echo"], capacity=capacity)

@agent.task("echo")
async def echo(task):
    word = how.read_text()
    if word == "fail":
        raise RuntimeError("this agent cannot do it")
    await asyncio.sleep(float(word))
    return agent_id

@agent.task("other")
async def other(task):
    pass

agent.run()
"""
#: The default of the settings; the processes of these tests retry sooner otherwise.
BACKOFF_MS = "1000"


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A registry and two distributors, so that each settles reports of tasks that the other has placed."""
    async with cell_processes(tmp_path) as built:
        await built.worker("registry")
        for name in ("d1", "d2"):
            await built.worker("distributor", name, COORD_BACKOFF_MS=BACKOFF_MS)
        yield built


def works_as(at: CellProcesses, agent_id: str, how: str) -> Path:
    """Set how an agent works from now on; the file that says so."""
    path = at.folder / f"how-{agent_id}"
    path.with_suffix(".new").write_text(how)
    return path.with_suffix(".new").replace(path)


async def start_agent(at: CellProcesses, agent_id: str, how: str, capacity: int = 2) -> Process:
    """An agent, once it is active."""
    process = at.start(agent_id, "-c", AGENT, agent_id, str(capacity), str(works_as(at, agent_id, how)))

    async def active() -> bool:
        assert process.alive, process.told()
        return bool(await at.redis.sismember(at.keys.of("agents:active"), agent_id))

    await wait_until(active, f"{agent_id} is active", 60)
    return process


async def records_of(at: CellProcesses, ids: list[str]) -> list[TaskRecord]:
    """The records of these tasks."""
    return [record for record in await queries.get_tasks(at.redis, at.keys, ids) if record is not None]


async def submit(at: CellProcesses, count: int) -> list[str]:
    """Submit tasks that have three attempts; their ids."""
    specs = [{"task_type": "echo", "requirements": {"capabilities": ["echo"]}, "retry": {"max_attempts": 3}}] * count
    return [handle.task_id for handle in await at.client.submit_many(specs)]


async def failures_on(at: CellProcesses, ids: list[str], agent_id: str) -> int:
    """How many attempts of these tasks failed on an agent."""
    attempts = [attempt for record in await records_of(at, ids) for attempt in record.attempts]
    return sum(attempt.agent_id == agent_id for attempt in attempts)


@pytest.mark.guarantee("ejection")
@pytest.mark.timeout(240)
async def test_an_agent_that_fails_at_once_fails_no_task_for_good(at: CellProcesses) -> None:
    """⚠ It is always free, and healthy agents take their time. It is out within seconds, and tried again later."""
    await start_agent(at, "good-1", "0.4")
    await start_agent(at, "good-2", "0.4")
    await start_agent(at, "bad", "fail")
    ids = await submit(at, 100)

    async def is_ejected() -> bool:
        return bool((await at.client.agent("bad")).ejected)

    await wait_until(is_ejected, "the bad agent is ejected")
    first = (await at.client.agent("bad")).ejected[0]
    assert (first.task_type, first.for_ms, first.failure_rate, first.in_a_row) == ("echo", 30_000, 1.0, 1)

    async def is_explained() -> bool:
        waiting = [record for record in await records_of(at, ids) if record.state is TaskState.QUEUED]
        found = (await at.client.explain(waiting[-1].task_id)).waiting  # None if it was placed meanwhile
        return (
            found is not None
            and found.rejected.get(WaitingReason.EJECTED) == 1
            and any("its ejection for the type 'echo'" in miss.text for miss in found.nearest)
        )

    await wait_until(is_explained, "the explanation of a waiting task names the ejection")
    # Two queues, if failed tasks wait to avoid the agent already.
    pools = (await at.client.backlog()).pools
    assert {(pool.definition.task_type, pool.ejected) for pool in pools} == {("echo", 1)}
    failed = await failures_on(at, ids, "bad")
    (other,) = await at.client.submit_many([{"task_type": "other", "requirements": {"agent_id": "bad"}}])
    await other.result(timeout=30)

    # A heartbeat shows it in the health, and more tasks come than the healthy agents finish while the bad one is out.
    async def is_less_healthy() -> bool:
        return (await at.client.agent("bad")).health_score < 1

    await wait_until(is_less_healthy, "its health says so")
    while_out = failed
    # It may fail again, and be out again, between two looks.
    while [one.in_a_row for one in (await at.client.agent("bad")).ejected] == [1]:
        while_out = await failures_on(at, ids, "bad")
        if await at.count(TaskState.QUEUED) < 20:
            ids += await submit(at, 20)
        await asyncio.sleep(0.2)
    assert while_out <= failed + 8, "it got none while it was out"
    ids += await submit(at, 40)

    async def is_ejected_again() -> bool:
        return any(one.in_a_row == 2 for one in (await at.client.agent("bad")).ejected)

    await wait_until(is_ejected_again, "it is tried again, fails, and is out for longer")
    # Now it is repaired, and started again.
    works_as(at, "bad", "0.1")
    await at.all_end(len(ids) + 1)
    await at.assert_in_order([*ids, other.task_id])
    (process,) = (one for one in at.processes if one.name == "bad")
    process.kill()
    await start_agent(at, "bad", "0.1")
    ids = await submit(at, 60)
    await wait_until(lambda: _is_used(at, ids, "bad"), "the new process gets tasks at once")


class Load:
    """A number of callers, each of whom submits a task and waits for its result, again and again."""

    def __init__(self, at: CellProcesses) -> None:
        self.at = at
        self.ids: list[str] = []
        self.by: list[str] = []  #: the agent of each task that has ended
        self._callers: list[asyncio.Task[None]] = []

    def set(self, callers: int) -> None:
        """Set the number of callers; those who go wait for their last result first."""
        while len(self._callers) < callers:
            self._callers.append(asyncio.create_task(self._call(len(self._callers))))
        self._wanted = callers

    async def _call(self, number: int) -> None:
        while number < self._wanted:
            handle = await self.at.client.submit("echo", requirements={"capabilities": ["echo"]})
            self.ids.append(handle.task_id)
            self.by.append(await handle.result(timeout=60))

    async def end(self) -> None:
        """Wait until all callers have their results."""
        self.set(0)
        await asyncio.gather(*self._callers)

    async def settle(self, callers: int) -> None:
        """Let callers go until so many are left."""
        self._wanted = callers
        await asyncio.gather(*self._callers[callers:])
        del self._callers[callers:]

    async def share(self, agent_id: str, least: int, most: int, what: str) -> None:
        """Wait until an agent has had so many of the last hundred tasks."""
        await wait_until(lambda: least <= self.by[-100:].count(agent_id) <= most and len(self.by) > 100, what, 90)


@pytest.mark.timeout(240)
async def test_a_slow_agent_loses_its_share_and_gets_it_back(at: CellProcesses) -> None:
    """⚠ Under predictive, while tasks run; then strategies are switched under load, and nothing is lost."""
    await at.client.admin.set_strategy("predictive")
    agents = [f"a{number}" for number in range(4)]
    for agent_id in agents:
        await start_agent(at, agent_id, "0.05", capacity=4)
    load = Load(at)
    load.set(4)
    await load.share("a0", 10, 60, "a0 has its share")
    works_as(at, "a0", "0.5")
    await load.share("a0", 0, 1, "a0 has lost it")
    works_as(at, "a0", "0.05")
    load.set(15)  # as many as there are slots but one, so that a0 is tried again at once
    # After six half-lives 1.6 % of the slow times are left: less than counts as a difference.
    recovered = load.by.count("a0") + 6 * HALF_LIFE_SAMPLES
    await wait_until(lambda: load.by.count("a0") >= recovered, "a0 gets tasks when the others are full", 90)
    await load.settle(4)
    del load.by[:]
    await load.share("a0", 10, 60, "a0 has its share again")
    load.set(8)
    for strategy in ("round_robin", "prequal", "least_response_time", "power_of_two", "least_connections"):
        await at.client.admin.set_strategy(strategy)
        before = len(load.ids)

        async def is_used(name: str = strategy, since: int = before) -> bool:
            return any((one.placement or {}).get("strategy") == name for one in await records_of(at, load.ids[since:]))

        await wait_until(is_used, f"{strategy} is used")
    await load.end()
    await at.assert_in_order(load.ids)


async def _is_used(at: CellProcesses, ids: list[str], agent_id: str) -> bool:
    by = Counter(record.agent_id for record in await records_of(at, ids) if record.state is TaskState.COMPLETED)
    return by[agent_id] > 0
