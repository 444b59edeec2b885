"""Placing with several distributors: nobody idle while tasks wait, nobody above its capacity, nobody unfit."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import msgspec
import pytest
from redis.exceptions import OutOfMemoryError

from coord import queries
from coord.models.facts import AgentHeartbeat
from coord.models.tasks import Requirements, TaskState
from coord.streams import Append, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.watch import watched
from tests.workers.raw import (
    Caller,
    RawAgent,
    await_count,
    await_quiet,
    await_state,
    distributor,
    fleet,
    for_agent,
    state,
    working,
)
from workers.distributor import TICKS
from workers.view import View


def only(worker: RunningWorker, *streams: str) -> None:
    """The worker reads these streams and no others."""
    consumer = worker.loop.consumer
    consumer.streams = {key: name for key, name in consumer.streams.items() if name in streams}


async def loads(cell: RunningCell, agents: list[RawAgent]) -> list[int]:
    """The true load of each agent, all at one moment."""
    pipe = cell.redis.pipeline(transaction=True)
    for agent in agents:
        pipe.scard(cell.keys.inflight(agent.agent_id))
    return list(await pipe.execute())


@pytest.fixture
def without_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is looked at now and then, in case that nothing tells of it, is not: what is promised holds without."""
    monkeypatch.setitem(TICKS, "read_pools", 3_600.0)


@pytest.mark.guarantee("no-idle-slot")
async def test_two_distributors_with_stale_views_never_stand_still(
    without_net: None, cell: RunningCell, caller: Caller
) -> None:
    """One admits and knows what waits, the other hears of every slot that is freed: each one's view lacks half.

    The whole fleet is at work again after each round, though nobody reads the table of pools now and then.
    """
    await cell.add("distributor")
    agents = await fleet(cell, 24)
    one, other = cell.of_kind("distributor")
    only(one, "in:tasks:normal")
    only(other, "in:reports")
    await caller.submit(24 * 9)
    for number in range(9):
        await wait_until(lambda: _all_given(cell, agents), f"the fleet is at work in round {number}")
        held = [(agent, entry) for agent in agents for entry in await agent.inbox()]
        for agent, entry in held:
            await agent.claim(entry)
        await asyncio.gather(*(agent.complete(entry) for agent, entry in held))
    await await_count(cell, TaskState.COMPLETED, 24 * 9)
    await await_quiet(cell)
    assert await loads(cell, agents) == [0] * 24
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


@pytest.mark.guarantee("no-idle-slot")
async def test_a_view_that_takes_the_whole_fleet_for_busy_is_mended(
    without_net: None, cell: RunningCell, caller: Caller
) -> None:
    """Loads that nobody will ever correct, in both views, hold the fleet up for a moment only."""
    await cell.add("distributor")
    agents = await fleet(cell, 10)
    both = [distributor(worker) for worker in cell.of_kind("distributor")]
    await wait_until(lambda: all(len(one.view.agents) == 10 for one in both), "both see the fleet")
    for one in both:
        one.view.apply_loads({agent.agent_id: 1 for agent in agents})
    await caller.submit(10)
    await wait_until(lambda: _all_busy(cell, agents), "the fleet is at work")


async def test_nobody_idles_while_tasks_wait_and_nobody_gets_too_many(cell: RunningCell, caller: Caller) -> None:
    """Three distributors, agents of capacity 1: never above it, and none waits for long while tasks do."""
    for _ in range(2):
        await cell.add("distributor")
    agents = await fleet(cell, 12)
    async with watched(cell.redis, cell.keys, [one.agent_id for one in agents]) as watch, working(agents):
        for _ in range(12):
            await caller.submit(50)
        await await_count(cell, TaskState.COMPLETED, 600, 20)
    assert watch.highest == 1
    assert watch.longest_s < 1.0
    done = [one.task_id for agent in agents for one in agent.done]
    assert len(done) == len(set(done)) == 600
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


@pytest.mark.guarantee("capacity")
async def test_three_distributors_never_over_assign(cell: RunningCell, caller: Caller) -> None:
    """Far more tasks than room, three planners, nobody claims: every agent is full to its capacity and no further."""
    for _ in range(2):
        await cell.add("distributor")
    agents = await fleet(cell, 8, capacity=5)
    async with watched(cell.redis, cell.keys, [one.agent_id for one in agents]) as watch:
        await asyncio.gather(*(caller.submit(50) for _ in range(6)))
        await await_count(cell, TaskState.ASSIGNED, 40)
        await await_quiet(cell)
    assert watch.highest == 5
    assert await loads(cell, agents) == [5] * 8
    await assert_ledger(cell.redis, cell.keys)


@pytest.mark.guarantee("named-tasks")
async def test_three_distributors_place_named_tasks(cell: RunningCell, caller: Caller) -> None:
    """More than one reading of the queue has, beside plain ones of the same pool: each is assigned, and once."""
    for _ in range(2):
        await cell.add("distributor")
    agents = await fleet(cell, 4, capacity=5)
    async with working(agents):
        told = [
            *await caller.submit(400, affinity_key="one"),
            *await caller.submit(100),
            *await caller.submit(100, affinity_key="two", strategy="consistent_hash"),
        ]
        await await_count(cell, TaskState.COMPLETED, len(told))
    await assert_ledger(cell.redis, cell.keys)
    records = await queries.get_tasks(cell.redis, cell.keys, [one.task_id for one in told])
    assert [record.attempt for record in records if record is not None] == [1] * len(told)


async def test_a_named_agent_gets_its_task_and_nobody_else(cell: RunningCell, caller: Caller) -> None:
    """A hard requirement holds even while everybody else idles."""
    agents = await fleet(cell, 3)
    told = await caller.submit(3, requirements=for_agent("a1"))
    for _ in range(3):
        (one,) = await agents[1].await_inbox()
        assert await loads(cell, agents) == [0, 1, 0]
        assert one.task_id in {task.task_id for task in told}
        await agents[1].work_once()
    await await_count(cell, TaskState.COMPLETED, 3)


async def test_health_below_the_threshold_stops_placement(cell: RunningCell, caller: Caller) -> None:
    """An operator's threshold takes effect within a second: an agent below it gets nothing until it is better.

    A setting that is no number counts as not set, and stops nobody.
    """
    (agent,) = await fleet(cell, 1, capacity=8, heartbeat_interval=60.0)
    await cell.redis.hset(cell.keys.of("settings"), mapping={"health_threshold": "0.8", "strategy": "round_robin"})
    (worker,) = cell.of_kind("distributor")
    view = distributor(worker).view
    await wait_until(lambda: (view.health_threshold, view.strategy) == (0.8, "round_robin"), "the settings are read")
    await _beat(cell, cpu=0.95, memory=0.95)
    await wait_until(lambda: _health(view) < 0.8, "the drop is seen")
    (told,) = await caller.submit()
    await await_quiet(cell)
    await cell.redis.hset(cell.keys.of("settings"), "health_threshold", "a lot")
    found = await await_state(cell, told.task_id, TaskState.ASSIGNED)
    assert found.placement is not None
    assert (found.placement["strategy"], found.placement["eligible"]) == ("round_robin", 1)
    await cell.redis.hset(cell.keys.of("settings"), "health_threshold", "0.8")
    await wait_until(lambda: view.health_threshold == 0.8, "the threshold is back")
    (told,) = await caller.submit()
    await await_quiet(cell)
    await _beat(cell, cpu=0.1, memory=0.1)
    await await_state(cell, told.task_id, TaskState.ASSIGNED)
    assert len(await agent.inbox()) == 2


async def test_health_that_is_too_low_when_the_task_comes(cell: RunningCell, caller: Caller) -> None:
    """A task's own minimum is kept to as well."""
    await fleet(cell, 1)
    await _beat(cell, cpu=0.7, memory=0.7)
    (worker,) = cell.of_kind("distributor")
    view = distributor(worker).view
    await wait_until(lambda: _health(view) == 0.9, "the drop is seen")
    (strict,) = await caller.submit(requirements=Requirements(min_health_score=0.95))
    (mild,) = await caller.submit(requirements=Requirements(min_health_score=0.85))
    await await_state(cell, mild.task_id, TaskState.ASSIGNED)
    record = await state(cell, strict.task_id)
    assert record is not None
    assert record.state is TaskState.QUEUED


async def test_absurd_metrics_of_one_agent_stop_nobody(cell: RunningCell, caller: Caller) -> None:
    """Numbers beyond all reason, in either direction, only make an agent the last or the first to be chosen."""
    await fleet(cell, 2)
    await _beat(cell, active_connections=1e308, pending_tasks=1e308)
    (worker,) = cell.of_kind("distributor")
    view = distributor(worker).view
    await _beat(cell, cpu=0.7, memory=0.7)  # moves the health, so that the row is read
    await wait_until(
        lambda: "a0" in view.agents and view.agents["a0"].agent.outside_load == 1_000_000, "the row is read"
    )
    first = (await caller.submit(requirements=for_agent("a0")))[0].task_id
    await await_state(cell, first, TaskState.ASSIGNED)
    second = (await caller.submit())[0].task_id
    await await_state(cell, second, TaskState.ASSIGNED)
    assert not worker.task.done()


async def test_an_agent_whose_inbox_is_broken_keeps_nobody_from_work(cell: RunningCell, caller: Caller) -> None:
    """Dispatch raises for an agent whose lane is of a wrong type: it is left out for a while, the others work."""
    agents = await fleet(cell, 2)
    await cell.redis.set(cell.keys.inbox("a0", "normal"), "no stream")
    (told,) = await caller.submit()
    (one,) = await agents[1].await_inbox()
    assert one.task_id == told.task_id
    (late,) = await caller.submit()
    await await_quiet(cell)
    await cell.redis.delete(cell.keys.inbox("a0", "normal"))
    (other,) = await agents[0].await_inbox()
    assert other.task_id == late.task_id
    await assert_ledger(cell.redis, cell.keys)


async def test_a_round_trip_that_fails_leaves_nothing_planned(cell: RunningCell, caller: Caller) -> None:
    """What was planned in a round trip that raised is free again, though no connection was lost."""
    agents = await fleet(cell, 2)
    (worker,) = cell.of_kind("distributor")
    service = distributor(worker)
    run, raised = worker.cell.scripts.run, 0

    async def fail_thrice(*calls: Any) -> list[Any]:
        nonlocal raised
        if any(call.script == "dispatch" for call in calls) and raised < 3:
            raised += 1
            raise RuntimeError("a bug")
        return await run(*calls)

    object.__setattr__(worker.cell.scripts, "run", fail_thrice)
    await caller.submit(2)
    await wait_until(lambda: _all_busy(cell, agents), "the fleet is at work")
    await wait_until(lambda: not any(state.planned for state in service.view.agents.values()), "nothing is planned")
    assert raised == 3


async def test_a_full_server_is_not_asked_for_room_at_once(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ An assignment that it refuses fails its round trip, reports and all; so for a while none is tried."""
    agents = await fleet(cell, 1)
    (worker,) = cell.of_kind("distributor")
    run, asked = worker.cell.scripts.run, 0

    async def refuse_once(*calls: Any) -> list[Any]:
        nonlocal asked
        if any(call.script == "dispatch" for call in calls):
            asked += 1
            if asked == 1:
                # Long, but shorter ago than the worker's start, when nothing had been refused.
                monkeypatch.setattr("workers.distributor.FULL_S", time.monotonic() / 2)
                raise OutOfMemoryError("command not allowed when used memory > 'maxmemory'.")
        return await run(*calls)

    object.__setattr__(worker.cell.scripts, "run", refuse_once)
    (first,) = await caller.submit()
    await wait_until(lambda: asked == 1, "an assignment is refused")
    await caller.answer(first.entry)
    assert (await caller.answer((await caller.submit())[0].entry))["ok"] == "1", "the rest goes on"
    assert asked == 1
    monkeypatch.setattr("workers.distributor.FULL_S", 0.0)
    await wait_until(lambda: _all_busy(cell, agents), "it is asked again")


async def _all_given(cell: RunningCell, agents: list[RawAgent]) -> bool:
    """Whether an assignment that nobody has claimed lies in every inbox."""
    pipe = cell.redis.pipeline(transaction=True)
    for agent in agents:
        pipe.xlen(cell.keys.inbox(agent.agent_id, "normal"))
    return all(await pipe.execute())


async def _all_busy(cell: RunningCell, agents: list[RawAgent]) -> bool:
    return all(await loads(cell, agents))


def _health(view: View) -> float:
    return view.agents["a0"].agent.health_score if "a0" in view.agents else 1.0


async def _beat(cell: RunningCell, **metrics: float) -> None:
    fact: msgspec.Struct = AgentHeartbeat(agent_id="a0", load_metrics=metrics)
    await append(cell.redis, cell.keys, [Append("in:beats", fact)])


async def test_a_report_and_the_next_assignment_share_a_round_trip(cell: RunningCell, caller: Caller) -> None:
    """The slot that a report makes free has its next task before the report is answered."""
    (agent,) = await fleet(cell, 1)
    (worker,) = cell.of_kind("distributor")
    sent: list[list[str]] = []
    scripts = distributor(worker).cell.scripts
    run = type(scripts).run

    async def seen(*calls: Any) -> list[Any]:
        sent.append([call.script for call in calls])
        return await run(scripts, *calls)

    scripts.run = seen  # type: ignore[method-assign]
    await caller.submit(2)
    await agent.await_inbox()
    await agent.work_once()
    await await_count(cell, TaskState.COMPLETED, 1)
    await await_count(cell, TaskState.ASSIGNED, 1)
    assert ["settle", "dispatch"] in sent
