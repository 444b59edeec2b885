"""Pools that no agent can serve: they cost nothing, and are served within moments once an agent can."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from coord.models.agents import AgentStatus
from coord.models.facts import AgentHeartbeat, AgentStatusChanged
from coord.models.tasks import Requirements, TaskState
from coord.placement import unmet_requirement
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import (
    Caller,
    RawAgent,
    await_count,
    await_quiet,
    await_state,
    distributor,
    fleet,
    state,
    working,
)
from workers import pool_table
from workers.distributor import TICKS
from workers.planner import Planner

#: More than may be kept or read at once in these tests.
MANY = 50


@pytest.fixture(autouse=True)
def _without_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is looked at now and then in case that nothing tells of it; and reading is done in small pieces."""
    monkeypatch.setitem(TICKS, "read_pools", 3_600.0)
    monkeypatch.setattr(pool_table, "CHUNK", 7)
    monkeypatch.setattr("workers.view.GROUPS_KEPT", 5)
    monkeypatch.setattr("workers.planner.DEFINITIONS_KEPT", 5)


def planner_of(worker: RunningWorker) -> Planner:
    """A distributor's planner."""
    return distributor(worker).planner


def only(worker: RunningWorker, *streams: str) -> None:
    """The worker reads these streams and no others."""
    consumer = worker.loop.consumer
    consumer.streams = {key: name for key, name in consumer.streams.items() if name in streams}


async def park(cell: RunningCell, caller: Caller, **wanted: object) -> str:
    """Submit a task that no agent can do, and many others that none ever will; its id, once it waits."""
    (told,) = await caller.submit(requirements=msgspec.convert(wanted, Requirements))
    for number in range(MANY):
        await caller.submit(requirements=Requirements(labels={"zone": f"mars-{number}"}))
    await await_count(cell, TaskState.QUEUED, MANY + 1)
    await await_quiet(cell)
    return told.task_id


async def end(cell: RunningCell, task_id: str, agent: RawAgent) -> None:
    """The task is given to the agent, and everything adds up."""
    assert (await await_state(cell, task_id, TaskState.ASSIGNED)).agent_id == agent.agent_id
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


@pytest.mark.guarantee("parked-pools")
async def test_a_parked_pool_is_served_when_an_agent_registers(cell: RunningCell, caller: Caller) -> None:
    """A fitting one; one that does not fit changes nothing, and ordinary tasks go on meanwhile."""
    (other,) = await fleet(cell, 1, capacity=200)
    task_id = await park(cell, caller, capabilities=["ocr"])
    async with working([other]):
        await caller.submit(100)
        await await_count(cell, TaskState.COMPLETED, 100)
    record = await state(cell, task_id)
    assert record is not None
    assert record.state is TaskState.QUEUED
    agent = RawAgent(cell.redis, cell.keys, "fit", options={"capabilities": ("ocr", "echo")})
    await agent.register()
    await end(cell, task_id, agent)


async def test_ordinary_tasks_cost_no_more_beside_parked_pools(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether an agent fits a pool is not asked again, though far more pools wait than groups are kept."""
    looks = 0

    def counted(*given: Any) -> str | None:
        nonlocal looks
        looks += 1
        return unmet_requirement(*given)

    monkeypatch.setattr("workers.view.unmet_requirement", counted)
    (agent,) = await fleet(cell, 1, capacity=2)
    await park(cell, caller, capabilities=["ocr"])
    before = looks
    async with working([agent]):
        for number in range(1, 21):
            await caller.submit()
            await await_count(cell, TaskState.COMPLETED, number)
    assert looks - before <= 20


async def test_a_parked_pool_is_served_when_an_agent_gets_healthy(cell: RunningCell, caller: Caller) -> None:
    """An agent that has all that is asked for, but was overloaded."""
    (agent,) = await fleet(cell, 1, heartbeat_interval=60.0)
    await _beat(cell, agent, cpu=0.95, memory=0.95)
    (worker,) = cell.of_kind("distributor")
    agents = distributor(worker).view.agents
    await wait_until(lambda: "a0" in agents and agents["a0"].agent.health_score < 0.8, "the drop is seen")
    task_id = await park(cell, caller, min_health_score=0.8)
    await _beat(cell, agent, cpu=0.1, memory=0.1)
    await end(cell, task_id, agent)


@pytest.mark.guarantee("parked-pools")
async def test_a_parked_pool_is_served_when_a_label_changes(cell: RunningCell, caller: Caller) -> None:
    """An agent registers again with another label."""
    (agent,) = await fleet(cell, 1, labels={"zone": "eu"})
    task_id = await park(cell, caller, labels={"zone": "us"})
    agent.options = {"labels": {"zone": "us"}}
    await agent.register()
    await end(cell, task_id, agent)


async def test_a_parked_pool_is_served_when_an_agent_is_active_again(cell: RunningCell, caller: Caller) -> None:
    """One that said that it wanted nothing for a while."""
    (agent,) = await fleet(cell, 1, tags=("gpu",))
    await _tell(cell, AgentStatusChanged(agent_id="a0", status=AgentStatus.MAINTENANCE))
    await wait_until(lambda: _is_inactive(cell), "it is not placeable")
    task_id = await park(cell, caller, tags=["gpu"])
    await _tell(cell, AgentStatusChanged(agent_id="a0", status=AgentStatus.ACTIVE))
    await end(cell, task_id, agent)


async def test_a_parked_pool_is_served_when_the_threshold_falls(cell: RunningCell, caller: Caller) -> None:
    """An operator asks for less health."""
    await cell.redis.hset(cell.keys.of("settings"), "health_threshold", "0.9")
    (agent,) = await fleet(cell, 1, heartbeat_interval=60.0)
    await _beat(cell, agent, cpu=0.7, memory=0.7)
    (worker,) = cell.of_kind("distributor")
    agents = distributor(worker).view.agents
    await wait_until(lambda: "a0" in agents and agents["a0"].agent.health_score <= 0.9, "the drop is seen")
    await cell.redis.hset(cell.keys.of("settings"), "health_threshold", "0.95")
    await wait_until(lambda: distributor(worker).view.health_threshold == 0.95, "the threshold is read")
    task_id = await park(cell, caller)
    await cell.redis.hset(cell.keys.of("settings"), "health_threshold", "0.5")
    await end(cell, task_id, agent)


@pytest.mark.guarantee("parked-pools")
@pytest.mark.parametrize("way", ["changes", "snapshot"])
async def test_a_parked_pool_that_another_distributor_admitted_is_served(
    cell: RunningCell, caller: Caller, way: str
) -> None:
    """By a distributor that read of it in the changes of the table, or in a snapshot of all of it at its start."""
    (one,) = cell.of_kind("distributor")
    if way == "changes":
        only(await cell.add("distributor"), "in:reports")
    task_id = await park(cell, caller, capabilities=["ocr"])
    if way == "snapshot":
        await cell.add("distributor")
    other = cell.of_kind("distributor")[1]
    await wait_until(lambda: len(planner_of(other).waiting) == MANY + 1, "both know what waits")
    assert not planner_of(other).unread
    await one.stop()
    agent = RawAgent(cell.redis, cell.keys, "fit", options={"capabilities": ("ocr",)})
    await agent.register()
    await end(cell, task_id, agent)


async def test_what_two_distributors_know_is_the_table(cell: RunningCell, caller: Caller) -> None:
    """Pools that begin and end by either one's doing, while both work: afterwards both know what waits, and no more."""
    await cell.add("distributor")
    agents = await fleet(cell, 3, capacity=4)
    async with working(agents):
        for number in range(20):
            await asyncio.gather(
                caller.submit(3, task_type=f"kind-{number % 7}"),
                caller.submit(2, requirements=Requirements(tags=(f"none-{number}",))),
            )
        await await_count(cell, TaskState.COMPLETED, 60)
    await await_quiet(cell)
    planners = [planner_of(worker) for worker in cell.of_kind("distributor")]
    rows: list[bytes] = await cell.redis.execute_command("HKEYS", cell.keys.of("pools"))
    waiting = {raw.decode() for raw in rows}
    assert len(waiting) == 20
    await wait_until(lambda: all(set(one.waiting) == waiting for one in planners), "both know the table")
    assert not any(one.is_ready() for one in planners)
    await assert_ledger(cell.redis, cell.keys)


async def test_a_parked_pool_outlives_a_restart_of_everything_else(cell: RunningCell, caller: Caller) -> None:
    """The distributor loses its connection and reads all again."""
    task_id = await park(cell, caller, capabilities=["ocr"])
    (worker,) = cell.of_kind("distributor")
    before = planner_of(worker).forgotten
    await cell.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    await wait_until(lambda: planner_of(worker).forgotten > before, "it begins again")
    agent = RawAgent(cell.redis, cell.keys, "fit", options={"capabilities": ("ocr",)})
    await _again(agent.register)
    await end(cell, task_id, agent)


async def _again(act: Callable[[], Awaitable[object]]) -> None:
    """Do it, and once more if the connection is lost."""
    try:
        await act()
    except ConnectionError:
        await act()


async def _is_inactive(cell: RunningCell) -> bool:
    return not await cell.redis.sismember(cell.keys.of("agents:active"), "a0")


async def _tell(cell: RunningCell, fact: msgspec.Struct) -> None:
    await append(cell.redis, cell.keys, [Append("in:registry", fact)])


async def _beat(cell: RunningCell, agent: RawAgent, **metrics: float) -> None:
    await append(
        cell.redis, cell.keys, [Append("in:beats", AgentHeartbeat(agent_id=agent.agent_id, load_metrics=metrics))]
    )
