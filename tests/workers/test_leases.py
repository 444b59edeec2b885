"""Lease lists at work: an agent that lost a lease and a coordinator that lost a task both find out."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from coord import Agent
from coord.config import Settings
from coord.models.facts import AgentHeartbeat, AgentLeasesListed
from coord.models.tasks import TaskState
from coord.streams import Append, append
from tests.ledger import assert_ledger
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, RawAgent, await_quiet, await_state, fleet

INTERVAL_S = 0.2


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Nobody's silence counts here: a busy machine is silent for longer than a few of these intervals."""
    return msgspec.structs.replace(settings, missed_beats=1_000)


async def tell(agent: RawAgent, stream: str, fact: Any) -> None:
    """The agent appends a fact."""
    await append(agent.redis, agent.keys, [Append(stream, fact)])


async def answer_questions(agent: RawAgent, leases: dict[str, str], until: asyncio.Event) -> None:
    """Beat with a number of leases, and answer each question with the same list."""
    answered: set[str] = set()
    while not until.is_set():
        await tell(agent, "in:beats", AgentHeartbeat(agent.agent_id, agent.incarnation, leases=len(leases)))
        for order in await agent.told():
            if order.get("order") == "list_leases" and order["ask"] not in answered:
                answered.add(order["ask"])
                fact = AgentLeasesListed(agent.agent_id, agent.incarnation, order["ask"], leases)
                await tell(agent, "in:registry", fact)
        await asyncio.sleep(0.02)


@pytest.mark.guarantee("lost-leases")
async def test_a_lease_that_its_agent_lost_goes_to_another_attempt(cell: RunningCell) -> None:
    """An agent that lives and forgot what it claimed (its list lacks it twice) loses the task, which is tried again."""
    (agent,) = await fleet(cell, 1, capacity=1, heartbeat_interval=INTERVAL_S)
    agent.incarnation = "i1"
    await agent.register()
    caller = Caller(cell.redis, cell.keys)
    (told,) = await caller.submit(1)
    (one,) = await agent.await_inbox()
    assert await agent.claim(one)
    until = asyncio.Event()
    beating = asyncio.create_task(answer_questions(agent, {}, until))
    task = await await_state(cell, told.task_id, TaskState.ASSIGNED)
    (again,) = await agent.await_inbox()
    until.set()
    await beating
    assert (again.task_id, again.lease != one.lease, again.attempt) == (told.task_id, True, 2)
    assert task.lease is not None
    await agent.complete(one, result="too late")
    assert await agent.claim(again)
    await agent.complete(again, result="in time")
    done = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert (done.result, done.failures, done.attempts[0].how) == ("in time", 1, "lease_lost")
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)


@pytest.mark.guarantee("lost-leases")
async def test_a_healthy_agent_under_load_loses_nothing(cell: RunningCell) -> None:
    """⚠ Lists cross reports all the time when an agent beats often and works much: no attempt is ever ended by one."""
    agent = Agent("busy", capacity=16, heartbeat_interval=0.05, url=cell.url, settings=cell.settings)
    agent.task("echo")(_nothing)
    async with agent:
        caller = Caller(cell.redis, cell.keys)
        told = await caller.submit(2_000)
        for one in told:
            await await_state(cell, one.task_id, TaskState.COMPLETED, timeout=30)
        counters = {name.decode(): int(value) for name, value in (await _counters(cell)).items()}
        assert counters.get("retried", 0) == 0
        assert counters.get("reports_stale", 0) == 0


@pytest.mark.guarantee("lost-leases")
async def test_a_task_that_the_coordinator_lost_is_stopped(cell: RunningCell) -> None:
    """A record that is gone (a fail-over lost its second) makes its agent stop what nobody waits for any more."""
    started, stopped = asyncio.Event(), asyncio.Event()
    agent = Agent("holder", capacity=2, heartbeat_interval=INTERVAL_S, url=cell.url, settings=cell.settings)

    @agent.task("echo")
    async def wait(_task: Any) -> None:
        started.set()
        try:
            await asyncio.Event().wait()
        finally:
            stopped.set()

    async with agent:
        caller = Caller(cell.redis, cell.keys)
        (told,) = await caller.submit(1)
        await wait_until(started.is_set, "it runs")
        await cell.redis.delete(cell.keys.task(told.task_id), cell.keys.inflight("holder"))
        await wait_until(stopped.is_set, "it was told to stop")
        await wait_until(lambda: agent.leases == 0, "it holds nothing")


async def _nothing(_task: Any) -> None:
    pass


async def _counters(cell: RunningCell) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = await cell.redis.execute_command("HGETALL", cell.keys.of("counters"))
    return found
