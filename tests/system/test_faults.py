"""Real processes are killed, stopped and restarted in the middle: each task ends once, and nobody needs a hand."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coord import queries
from coord.keys import CONSUMES
from coord.models.agents import AgentStatus
from coord.models.tasks import TaskState
from tests.processes import SOON_S, CellProcesses, cell_processes
from tests.waiting import wait_until
from tests.watch import watched

#: So many round trips that there is a middle to be killed in.
SMALL = {"COORD_BATCH": "16"}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.mark.parametrize("successor", ["same", pytest.param("other", marks=pytest.mark.long)])
async def test_a_distributor_is_killed_in_the_middle_of_a_batch(at: CellProcesses, successor: str) -> None:
    """What it had read is handled by whoever comes after it, under its name or another, and nothing is done twice."""
    await at.worker("registry")
    distributor = await at.worker("distributor", "same", **SMALL)
    await at.agent("a1")
    distributor.send(signal.SIGSTOP)
    ids = await at.submit(1500)
    distributor.send(signal.SIGCONT)
    await wait_until(lambda: _are_known(at, 1), "it has begun")
    distributor.kill()
    assert not await _are_known(at, 1500), "it had finished before it was killed"
    await at.worker("distributor", successor)
    await at.all_end(1500)
    await at.assert_in_order(ids)


@pytest.mark.long
async def test_one_of_two_distributors_is_killed_again_and_again(at: CellProcesses) -> None:
    """The other one takes over what was left, while the work goes on."""
    await at.worker("registry")
    await at.worker("distributor")
    await at.agent("a1")
    await at.agent("a2")
    ids: list[str] = []
    for number in range(3):
        second = await at.worker("distributor", **SMALL)
        ids += await at.submit(400)
        await wait_until(partial(_are_known, at, number * 400 + 1), f"round {number} has begun")
        second.kill()
    await at.all_end(1200)
    await at.assert_in_order(ids)


@pytest.mark.long
async def test_two_distributors_leave_nobody_idle_while_tasks_wait(at: CellProcesses) -> None:
    """Six agents for one task at a time, whose slots are freed by one distributor or the other."""
    await at.worker("registry")
    for _ in range(2):
        await at.worker("distributor", **SMALL)
    agents = [(await at.agent(f"a{number}", capacity=1)).name for number in range(6)]
    async with watched(at.redis, at.keys, agents) as watch:
        ids = [one for _ in range(6) for one in await at.submit(100)]
        await at.all_end(600)
    assert watch.highest == 1
    assert watch.longest_s < 1.0
    await at.assert_in_order(ids)


async def test_poison_in_every_ingress_stream_holds_up_nobody(at: CellProcesses) -> None:
    """What cannot be read is buried, once; work goes on before and behind it, and no worker has ended."""
    workers = [await at.worker(kind) for kind in CONSUMES]
    await at.agent("a1")
    ids = await at.submit(50)
    poison: list[dict[Any, Any]] = [{"odd": "1"}, {"type": "x", "data": "{}"}, {"type": b"\xff", "data": b"\xff"}]
    appended: set[tuple[str, str]] = set()
    for stream in sorted({one for streams in CONSUMES.values() for one in streams}):
        for fields in poison * 5:
            entry: Any = await at.redis.xadd(at.keys.of(stream), fields)
            appended.add((stream, entry.decode()))
    ids += await at.submit(50)
    await at.all_end(100)
    await wait_until(lambda: _is_buried(at, len(appended)), "all of it is buried")
    found = await at.redis.execute_command("XRANGE", at.keys.of("dead:in"), "-", "+")
    assert {(fields[b"stream"].decode(), fields[b"id"].decode()) for _, fields in found} == appended
    assert all(fields[b"reason"] for _, fields in found)
    assert all(worker.alive for worker in workers)
    await at.redis.delete(at.keys.of("dead:in"))
    await at.redis.hdel(at.keys.of("counters"), "buried")
    await at.assert_in_order(ids)


async def _is_buried(at: CellProcesses, count: int) -> bool:
    return int(await at.redis.xlen(at.keys.of("dead:in"))) >= count


async def test_an_agent_is_killed_in_the_middle_of_its_tasks(at: CellProcesses) -> None:
    """Its tasks are done by another as soon as it has missed its beats; the record tells the story."""
    await at.worker("registry")
    await at.worker("distributor")
    victim = await at.agent("victim", capacity=4, interval_s=SOON_S)
    gate = at.folder / "gate"
    ids = await at.submit(12, until=gate)
    await wait_until(lambda: _is(at, TaskState.RUNNING, 4), "the victim is at work")
    victim.kill()
    gate.touch()
    other = await at.agent("other", capacity=4)
    await at.all_end(12)
    await at.assert_in_order(ids)
    records = [one for one in await queries.get_tasks(at.redis, at.keys, ids) if one]
    lost = [attempt for one in records for attempt in one.attempts]
    assert {(one.agent_id, one.how) for one in lost} == {("victim", "agent_lost")}
    assert len(lost) >= 4
    assert {one.result["pid"] for one in records if one.attempts} == {other.popen.pid}


@pytest.mark.guarantee("redis-restart")
async def test_redis_is_killed_and_comes_back(at: CellProcesses) -> None:
    """With its append-only file: everybody goes on by itself, no process is restarted, no task is lost or doubled."""
    people = [await at.worker(kind) for kind in CONSUMES]
    people += [await at.worker("distributor"), await at.agent("a1"), await at.agent("a2")]
    ids = await at.submit(120, seconds=0.05)
    await wait_until(lambda: _is(at, TaskState.COMPLETED, 20), "a part is done")
    at.server.kill()
    at.server.restart()
    await at.all_end(120)
    ids += await at.submit(20)
    await at.all_end(140)
    assert all(one.alive for one in people)
    await at.assert_in_order(ids)


async def test_sigterm_ends_every_worker_cleanly(at: CellProcesses) -> None:
    """Under load as when idle: exit code 0, nothing left pending, and who comes after finds every task."""
    workers = {kind: await at.worker(kind) for kind in CONSUMES}
    ids = await at.submit(600)
    for process in workers.values():
        process.send(signal.SIGTERM)
    for process in workers.values():
        assert await process.ended() == 0, process.told()
    for kind, streams in CONSUMES.items():
        for stream in streams:
            (group,) = await at.redis.xinfo_groups(at.keys.of(stream))
            assert group["pending"] == 0, f"{kind} left entries of {stream}"
    await at.worker("registry")
    await at.worker("distributor")
    await at.agent("a1")
    await at.all_end(600)
    await at.assert_in_order(ids)


@pytest.mark.guarantee("absent-coordinator")
async def test_a_registry_that_was_away_kills_no_healthy_agent(at: CellProcesses) -> None:
    """Beats that pile up while it is stopped are signs of life: nobody is stale when it comes back."""
    registry = await at.worker("registry")
    # The observed clock advances by 2 s at most, so an agent's patience must be above that and one interval.
    await at.agent("a1", interval_s=1.05)
    registry.send(signal.SIGSTOP)
    await wait_until(lambda: _beats(at, 4), "more beats wait than may be missed")
    registry.send(signal.SIGCONT)
    await wait_until(lambda: _beats(at, 0), "the beats are handled")
    log = await at.redis.execute_command("XRANGE", at.keys.of("log:agents"), "-", "+")
    assert b"agent.lost" not in {fields[b"type"] for _, fields in log}
    found = await queries.get_agent(at.redis, at.keys, "a1")
    assert found is not None
    assert (found.status, found.term) == (AgentStatus.ACTIVE, 1)


async def _are_known(at: CellProcesses, count: int) -> bool:
    """Whether so many tasks were admitted."""
    return queries.count_submitted(await queries.get_counters(at.redis, at.keys)) >= count


async def _is(at: CellProcesses, state: TaskState, count: int) -> bool:
    return await at.count(state) >= count


async def _beats(at: CellProcesses, count: int) -> bool:
    waiting = await at.redis.xlen(at.keys.of("in:beats"))
    return waiting >= count if count else waiting == 0
