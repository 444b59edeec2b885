"""The registry at work: who is alive, what follows when one is not, and what agents are told."""

from __future__ import annotations

import re
from typing import Any

import msgspec
import pytest

from coord import queries
from coord.config import Settings
from coord.keys import CONSUMES
from coord.models.agents import AgentRecord, AgentStatus
from coord.models.facts import AgentDeregistered, AgentHeartbeat, AgentStatusChanged
from coord.models.tasks import TaskState
from coord.streams import Append, Entry, append
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import (
    Caller,
    RawAgent,
    await_quiet,
    await_state,
    buried,
    distributor,
    fleet,
    state,
    working,
)


async def record(cell: RunningCell, agent_id: str = "a0") -> AgentRecord | None:
    """An agent's record."""
    return await queries.get_agent(cell.redis, cell.keys, agent_id)


async def await_status(cell: RunningCell, wanted: AgentStatus, agent_id: str = "a0") -> AgentRecord:
    """An agent's record, once its status is as wanted."""

    async def reached() -> AgentRecord | None:
        found = await record(cell, agent_id)
        return found if found is not None and found.status is wanted else None

    found = await wait_until(reached, f"{agent_id} is {wanted}")
    assert found is not None
    return found


async def test_an_agent_registers_beats_and_leaves(cell: RunningCell) -> None:
    """Its record says what it said; each fact is answered; when it has left it is not placeable, its data stays."""
    agent = RawAgent(cell.redis, cell.keys, "a0", 3, options={"capabilities": ("echo",), "labels": {"zone": "a b:c"}})
    me = Caller(cell.redis, cell.keys, "a0")
    assert (await me.answer(await agent.register()))["ok"] == "1"
    found = await await_status(cell, AgentStatus.ACTIVE)
    assert (found.capacity, found.capabilities, found.labels, found.health_score) == (
        3,
        ("echo",),
        {"zone": "a b:c"},
        1,
    )
    assert await cell.redis.sismember(cell.keys.of("agents:by:label:zone%3Da%20b%3Ac"), "a0")
    beat = await me.tell("in:beats", AgentHeartbeat(agent_id="a0", load_metrics={"cpu": 0.5}, leases=0))
    assert (await me.answer(beat))["ok"] == "1"
    left = await me.tell("in:registry", AgentDeregistered(agent_id="a0"))
    assert (await me.answer(left))["ok"] == "1"
    found = await await_status(cell, AgentStatus.INACTIVE)
    assert found.load_metrics == {"cpu": 0.5}
    assert not await cell.redis.sismember(cell.keys.of("agents:active"), "a0")
    await await_quiet(cell)
    await assert_keys_end(cell.redis, cell.keys)


async def test_an_agent_that_asks_to_be_forgotten_is_forgotten(cell: RunningCell) -> None:
    """Its id was generated, so nobody looks for it; the others keep their records for 30 days."""
    for agent_id, forget_after in (("kept", None), ("generated", 0.0)):
        agent = RawAgent(cell.redis, cell.keys, agent_id, 1)
        me = Caller(cell.redis, cell.keys, agent_id)
        assert (await me.answer(await agent.register()))["ok"] == "1"
        left = AgentDeregistered(agent_id=agent_id, forget_after=forget_after)
        assert (await me.answer(await me.tell("in:registry", left)))["ok"] == "1"

    async def is_forgotten() -> bool:
        return await record(cell, "generated") is None

    await wait_until(is_forgotten, "it is forgotten")
    assert await record(cell, "kept") is not None


async def test_a_beat_of_nobody_is_answered(cell: RunningCell) -> None:
    """An agent that is not known is told so without having asked, so that it registers again."""
    me = Caller(cell.redis, cell.keys, "stranger")
    beat = (await append(cell.redis, cell.keys, [Append("in:beats", AgentHeartbeat(agent_id="stranger"))]))[0]
    assert (await me.answer(beat))["code"] == "unknown_agent"


async def test_a_silent_agents_tasks_go_to_others(
    cell: RunningCell, caller: Caller, capfd: pytest.CaptureFixture[str]
) -> None:
    """Three missed beats make it stale and its tasks are done elsewhere; its late report changes nothing."""
    silent = RawAgent(cell.redis, cell.keys, "silent", 2, "i1")
    await silent.register()
    told = await caller.submit(2)
    claimed = [one for one in await silent.await_inbox(2) if await silent.claim(one)]
    # Its beats are counted from here on: before it, a slow machine could have lost it with nothing claimed.
    silent.options["heartbeat_interval"] = 0.1
    await silent.register()
    other = RawAgent(cell.redis, cell.keys, "a0", 4)
    await other.register()
    found = await await_status(cell, AgentStatus.STALE, "silent")
    assert found.term == 2
    log = ""

    def is_logged() -> bool:  # after the script that changes the status
        nonlocal log
        log += "".join(capfd.readouterr())
        return re.search(r"agents\.lost +agents=silent count=1", log) is not None

    await wait_until(is_logged, "the log names it")
    async with working([other]):
        for one in told:
            ended = await await_state(cell, one.task_id, TaskState.COMPLETED)
            assert (ended.result, ended.failures) == ({"by": "a0"}, 1)
            assert [attempt.how for attempt in ended.attempts] == ["agent_lost"]
    await silent.complete(*claimed, result="late")
    await await_quiet(cell)
    ended = await await_state(cell, told[0].task_id, TaskState.COMPLETED)
    assert ended.result == {"by": "a0"}
    assert {one["lease"] for one in await silent.told()} == {one.lease for one in claimed}
    await assert_ledger(cell.redis, cell.keys)


async def test_a_loss_waits_behind_older_reports(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work that was reported before its agent was lost is not run again: reclaim waits for the report, then goes on."""
    (agent,) = await fleet(cell, 1, capacity=2)
    done, lost = await caller.submit(2)
    entries = {one.task_id: one for one in await agent.await_inbox(2)}
    assert all([await agent.claim(one) for one in entries.values()])
    (worker,) = cell.of_kind("distributor")
    consumer = worker.loop.consumer
    read_new, reads = consumer.read_new, []

    async def counted(*given: Any) -> list[Entry]:
        reads.append(given)
        return await read_new(*given)

    monkeypatch.setattr(consumer, "read_new", counted)
    consumer.select(["in:losses"])
    # A read that begins now begins after the one that still waited for reports has come back.
    await wait_until(lambda: reads, "the distributor reads losses alone")
    await agent.complete(entries[done.task_id], result="in time")
    await caller.tell("in:registry", AgentDeregistered(agent_id="a0"))
    await wait_until(lambda: distributor(worker).deferred, "the loss waits")
    before = await state(cell, done.task_id)
    assert before is not None
    assert before.state is TaskState.ASSIGNED
    consumer.select(CONSUMES["distributor"])
    assert (await await_state(cell, done.task_id, TaskState.COMPLETED)).result == "in time"
    (attempt,) = (await await_state(cell, lost.task_id, TaskState.QUEUED)).attempts
    assert attempt.how == "agent_lost"
    await wait_until(lambda: not distributor(worker).deferred, "the loss is done with")
    await await_quiet(cell)
    assert await buried(cell) == []
    await assert_ledger(cell.redis, cell.keys)


async def test_a_new_incarnation_ends_the_one_before(cell: RunningCell, caller: Caller) -> None:
    """A second process under an id gets nothing that the first had claimed; the first is told to stop."""
    first = RawAgent(cell.redis, cell.keys, "a0", 1, "i1")
    await first.register()
    (told,) = await caller.submit()
    (one,) = await first.await_inbox()
    assert await first.claim(one)
    second = RawAgent(cell.redis, cell.keys, "a0", 1, "i2")
    await second.register()
    (again,) = await second.await_inbox()
    assert (again.task_id, again.incarnation, again.attempt) == (told.task_id, "i2", 2)
    me = Caller(cell.redis, cell.keys, "a0")
    beat = await me.tell("in:beats", AgentHeartbeat(agent_id="a0", incarnation="i1"))
    assert (await me.answer(beat))["code"] == "superseded"
    await second.work_once()
    await await_state(cell, told.task_id, TaskState.COMPLETED)
    await assert_ledger(cell.redis, cell.keys)


async def test_a_refresh_reclaims_nothing(cell: RunningCell, caller: Caller) -> None:
    """Registering again with the same incarnation, as after every blip, leaves what runs alone."""
    agent = RawAgent(cell.redis, cell.keys, "a0", 1, "i1")
    me = Caller(cell.redis, cell.keys, "a0")
    await agent.register()
    (told,) = await caller.submit()
    (one,) = await agent.await_inbox()
    assert await agent.claim(one)
    for _ in range(3):
        assert (await me.answer(await agent.register()))["ok"] == "1"
    await agent.complete(one)
    ended = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert ended.attempt == 1


async def test_a_status_before_a_refresh_in_one_batch_holds(cell: RunningCell) -> None:
    """An agent that says it is draining and then registers again stays so, whether or not both are read at once."""
    agent = RawAgent(cell.redis, cell.keys, "a0", 1, "i1")
    me = Caller(cell.redis, cell.keys, "a0")
    await me.answer(await agent.register())
    (registry,) = cell.of_kind("registry")
    await registry.stop()
    changed = await me.tell(
        "in:registry", AgentStatusChanged(agent_id="a0", incarnation="i1", status=AgentStatus.DRAINING)
    )
    refreshed = await agent.register()
    await cell.add("registry")
    for entry in (changed, refreshed):
        assert (await me.answer(entry))["ok"] == "1"
    await await_status(cell, AgentStatus.DRAINING)


async def test_several_registries_share_the_work(cell: RunningCell) -> None:
    """Three registries: every agent is there once, with its last word, whoever handled which fact."""
    for _ in range(2):
        await cell.add("registry")
    agents = [RawAgent(cell.redis, cell.keys, f"a{number}", number + 1, "i1") for number in range(60)]
    me = Caller(cell.redis, cell.keys, "a59")
    for agent in agents:
        await agent.register()
        await agent.register()
    await me.answer(await agents[-1].register())
    await await_quiet(cell)
    found = await queries.get_agents(cell.redis, cell.keys, await queries.list_agent_ids(cell.redis, cell.keys))
    assert sorted(one.capacity for one in found if one) == list(range(1, 61))
    assert {one.status for one in found if one} == {AgentStatus.ACTIVE}


async def test_while_nobody_ticks_nobody_is_lost(cell: RunningCell) -> None:
    """A registry that was away gives no healthy agent up: time counts only while it is observed."""
    agent = RawAgent(cell.redis, cell.keys, "a0", 1, "i1", {"heartbeat_interval": 1.0})
    await agent.register()
    await await_status(cell, AgentStatus.ACTIVE)
    (registry,) = cell.of_kind("registry")
    await registry.stop()
    # As if the registry had been away for an hour.
    clock = cell.keys.of("clock")
    ticked = await cell.redis.hget(clock, "ticked_at")
    assert ticked is not None
    await cell.redis.hset(clock, "ticked_at", int(ticked) - 3_600_000)
    worker = await cell.add("registry")
    tick_liveness = worker.cell.scripts.tick_liveness
    (first,) = await worker.cell.scripts.run(tick_liveness())
    assert first.stale == 0
    found = await record(cell)
    assert found is not None
    assert found.status is AgentStatus.ACTIVE


class TestAlarms:
    """What the clock does to a task: with limits of moments, so that the test need not wait long."""

    @pytest.fixture
    def settings(self, namespace: str) -> Settings:
        """Moments to start and to stop in."""
        return Settings(
            namespace=namespace,
            read_block_ms=100,
            reclaim_idle_ms=400,
            backoff_ms=20,
            start_timeout_ms=1_000,  # a busy machine may take its time to claim
            cancel_grace_ms=200,
            max_releases=1,
        )

    async def test_a_task_that_nobody_claims_is_taken_back(self, cell: RunningCell, caller: Caller) -> None:
        """After the start timeout the entry is deleted; its agent gets it again once the registry has heard from it."""
        (agent,) = await fleet(cell, 1)
        (told,) = await caller.submit()

        async def recalled() -> bool:
            found = await state(cell, told.task_id)
            return found is not None and bool(found.attempts)

        await wait_until(recalled, "the task is recalled")
        await agent.register()
        (one,) = await agent.await_inbox()
        assert one.attempt == 2
        await agent.work_once()
        record = await await_state(cell, told.task_id, TaskState.COMPLETED)
        assert (record.releases, record.failures) == (0, 0)
        await assert_ledger(cell.redis, cell.keys)

    async def test_an_attempt_that_takes_too_long_is_ended(self, cell: RunningCell, caller: Caller) -> None:
        """A claimed task outlives the start timeout, not its own; its agent is told, the next attempt may do better."""
        (agent,) = await fleet(cell, 1)
        (told,) = await caller.submit(timeout=1.5)
        (one,) = await agent.await_inbox()
        assert await agent.claim(one)
        await agent.start(one)
        (again,) = await agent.await_inbox()
        assert (again.task_id, again.attempt) == (told.task_id, 2)
        (order,) = await agent.told()
        assert (order["order"], order["lease"]) == ("stop_task", one.lease)
        await agent.complete(one, result="late")
        await agent.work_once()
        ended = await await_state(cell, told.task_id, TaskState.COMPLETED)
        assert ended.result == {"by": "a0"}
        assert [attempt.how for attempt in ended.attempts] == ["timed_out"]
        await assert_ledger(cell.redis, cell.keys)

    async def test_a_cancel_that_is_not_heeded_is_forced(self, cell: RunningCell, caller: Caller) -> None:
        """A claimed task whose agent does not stop is cancelled once the grace is over, and its slot is free."""
        (agent,) = await fleet(cell, 1)
        (told,) = await caller.submit()
        (one,) = await agent.await_inbox()
        assert await agent.claim(one)
        fact = msgspec.json.encode({"task_id": told.task_id})
        await caller.raw("in:requests", {"type": "task.cancel_requested", "data": fact, "caller": caller.id})
        await await_state(cell, told.task_id, TaskState.CANCELLED)
        (other,) = await caller.submit()
        await await_state(cell, other.task_id, TaskState.ASSIGNED)
        await assert_ledger(cell.redis, cell.keys)
