"""Processes that were thought dead come back: whatever they still say or do changes nothing."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from coord import queries
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.processes import AGENT, SOON_S, CellProcesses, cell_processes
from tests.system.fault_work import WORK
from tests.system.stepped_worker import STEPS
from tests.waiting import wait_until

#: Facts that a worker finds; it reads four at a time and is stopped at the second batch or round trip.
FACTS = 12
CASES = [("distributor", "sent")]
MORE = [(kind, step) for kind in CONSUMES for step in STEPS if (kind, step) not in CASES]


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.mark.guarantee("frozen-agent")
async def test_an_agent_is_stopped_for_longer_than_its_timeout(at: CellProcesses) -> None:
    """Its tasks are done elsewhere, its late reports change nothing, and it goes on as a member of the fleet."""
    await at.worker("registry")
    await at.worker("distributor")
    zombie = await at.agent("zombie", capacity=4, interval_s=SOON_S)
    gate = at.folder / "gate"
    ids = await at.submit(8, until=gate)
    await wait_until(lambda: _running(at, 4), "the zombie is at work")
    zombie.send(signal.SIGSTOP)
    gate.touch()
    heir = await at.agent("heir", capacity=4)
    await at.all_end(8)
    before = await queries.get_tasks(at.redis, at.keys, ids)
    zombie.send(signal.SIGCONT)
    await wait_until(lambda: _has_said(at, 4), "its late reports are counted")
    await at.settle_down()
    assert await queries.get_tasks(at.redis, at.keys, ids) == before
    await at.assert_in_order(ids)
    active = at.keys.of("agents:active")
    await wait_until(lambda: at.redis.sismember(active, "zombie"), "it is back in the fleet")
    heir.send(signal.SIGTERM)
    assert await heir.ended() == 0, heir.told()
    ids += await at.submit(8)
    await at.all_end(16)
    assert zombie.alive
    await at.assert_in_order(ids)
    late = [one for one in await queries.get_tasks(at.redis, at.keys, ids[8:]) if one]
    assert {one.agent_id for one in late} == {"zombie"}


@pytest.mark.guarantee("frozen-worker")
@pytest.mark.parametrize(("kind", "step"), [*CASES, *(pytest.param(*one, marks=pytest.mark.long) for one in MORE)])
async def test_a_worker_is_stopped_in_the_middle_and_goes_on_later(at: CellProcesses, kind: str, step: str) -> None:
    """Its entries were taken over; going on with what it had read, it does nothing for a second time."""
    for other in CONSUMES:
        if other != kind:
            await at.worker(other)
    work = WORK[kind](at)
    if kind != "registry":
        await work.prepare()
    zombie = at.stepped_worker(kind, "zombie", step, 2, "SIGSTOP")
    await work.add(FACTS)
    await wait_until(lambda: psutil.Process(zombie.popen.pid).status() == psutil.STATUS_STOPPED, "it stands still", 20)
    await at.worker(kind, "heir")
    await work.check()
    zombie.send(signal.SIGCONT)
    await work.add(FACTS)
    await work.check()
    assert zombie.alive, zombie.told()


@pytest.mark.guarantee("two-processes-one-id")
async def test_two_processes_have_one_agent_id(at: CellProcesses) -> None:
    """The newer one has it: the older stops and says why, and what it ran is run by the newer."""
    await at.worker("registry")
    await at.worker("distributor")
    older = await at.agent("twin", capacity=4)
    gate = at.folder / "gate"
    ids = await at.submit(8, until=gate)
    await wait_until(lambda: _running(at, 4), "the older is at work")
    newer = at.start("twin", "-c", AGENT, "twin", "4")
    await wait_until(lambda: _is_in_term(at, "twin", 2), "the newer is registered", 20)
    assert await older.ended(20) == 1
    assert "a newer process took agent_id 'twin'" in older.told()
    gate.touch()
    await at.all_end(8)
    assert newer.alive, newer.told()
    await at.assert_in_order(ids)
    records = [one for one in await queries.get_tasks(at.redis, at.keys, ids) if one]
    assert {one.result["pid"] for one in records} == {newer.popen.pid}
    lost = [attempt for one in records for attempt in one.attempts]
    assert Counter(one.how for one in lost)["agent_lost"] >= 4
    assert {one.how for one in lost} == {"agent_lost"}
    assert await _is_in_term(at, "twin", 2), "the older took its place again"


async def _is_in_term(at: CellProcesses, agent_id: str, term: int) -> bool:
    found = await queries.get_agent(at.redis, at.keys, agent_id)
    return found is not None and (found.status, found.term) == (AgentStatus.ACTIVE, term)


async def _running(at: CellProcesses, count: int) -> bool:
    return await at.count(TaskState.RUNNING) >= count


async def _late_reports(at: CellProcesses) -> int:
    counted = await queries.get_counters(at.redis, at.keys)
    return counted.get("reports_stale", 0) + counted.get("reports_duplicate", 0)


async def _has_said(at: CellProcesses, count: int) -> bool:
    return await _late_reports(at) >= count
