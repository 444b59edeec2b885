"""The server forgets, pauses, is away or is full: everybody goes on by himself, and no process is restarted."""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from coord import queries
from coord.errors import ServerFull, ServerUnavailable, TaskRefused
from coord.keys import CONSUMES
from coord.models.tasks import TaskState
from tests.ledger import assert_keys_end, assert_ledger
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

MIB = 1024 * 1024
#: The observed clock advances by 2 s at most, so an agent's patience must be above that and one interval.
PATIENT_S = 1.05


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def everybody(at: CellProcesses, **environ: str) -> list[Process]:
    """One worker of each kind, and two agents."""
    found = [await at.worker(kind, **environ) for kind in CONSUMES]
    return [*found, *[await at.agent(name, interval_s=PATIENT_S) for name in ("a1", "a2")]]


@pytest.mark.guarantee("redis-flushed")
async def test_everything_is_flushed(at: CellProcesses) -> None:
    """FLUSHALL in the middle of the work: within 10 s new tasks are done by the same processes."""
    people = await everybody(at)
    await at.submit(200, seconds=0.05)
    await wait_until(lambda: _is(at, TaskState.COMPLETED, 10), "a part is done")
    await at.redis.flushall()
    ids = await at.submit(40)
    await at.all_end(len(ids), timeout=10)
    assert all(one.alive for one in people)
    await wait_until(lambda: _are_active(at, "a1", "a2"), "both agents are back")
    await at.assert_in_order(ids)
    receipt = await at.client.send("a1", {"n": 1})
    assert receipt.receiver_id == "a1"


@pytest.mark.guarantee("scripts-flushed")
async def test_scripts_are_flushed_again_and_again(at: CellProcesses) -> None:
    """SCRIPT FLUSH under load: scripts are loaded again, nothing is lost or done twice."""
    people = await everybody(at)
    ids = await at.submit(400, seconds=0.01)
    for done in range(0, 400, 50):
        await wait_until(partial(_is, at, TaskState.COMPLETED, done), f"{done} are done", 30)
        await at.redis.script_flush()
    await at.all_end(400)
    assert all(one.alive for one in people)
    await at.assert_in_order(ids)
    assert await _failures(at, ids) == {0: 400}


@pytest.mark.guarantee("absent-coordinator", "redis-freezes")
@pytest.mark.parametrize(
    ("seconds", "answer_timeout_s"),
    [
        pytest.param(2, "0.5", id="longer-than-workers-wait"),
        pytest.param(2, "10", id="shorter-than-workers-wait", marks=pytest.mark.long),
        pytest.param(30, "10", id="half-a-minute", marks=pytest.mark.long),
    ],
)
async def test_the_server_stands_still(at: CellProcesses, seconds: float, answer_timeout_s: str) -> None:
    """SIGSTOP of the server under load: afterwards all goes on, and no agent's silence is held against it."""
    people = await everybody(at, COORD_ANSWER_TIMEOUT_S=answer_timeout_s)
    ids = await at.submit(200, seconds=0.05)
    await wait_until(lambda: _is(at, TaskState.COMPLETED, 10), "a part is done")
    os.kill(at.server.pid, signal.SIGSTOP)
    try:
        await _time_passes(seconds)
    finally:
        os.kill(at.server.pid, signal.SIGCONT)
    await at.all_end(200, timeout=30)
    ids += await at.submit(20)
    await at.all_end(220)
    assert all(one.alive for one in people)
    await at.assert_in_order(ids)
    assert await _failures(at, ids) == {0: 220}


@pytest.mark.guarantee("redis-refuses")
async def test_connections_are_refused_for_a_while(at: CellProcesses) -> None:
    """A client is told so, a worker that starts meanwhile waits; the server is back with all that it had."""
    people = await everybody(at)
    ids = await at.submit(120, seconds=0.05)
    await wait_until(lambda: _is(at, TaskState.COMPLETED, 10), "a part is done")
    at.server.stop(force=True)
    late = at.start("late", "-m", "workers", "distributor", "--name", "late")
    task = {"task_type": "echo", "payload": {"s": 0}, "task_id": "said-twice"}
    with pytest.raises(ServerUnavailable, match="Repeating it with the same task_id"):
        await at.client.submit_many([task])  # its retries are what the outage lasts
    at.server.restart()
    await at.client.submit_many([task])
    await at.all_end(121)
    assert all(one.alive for one in [*people, late])
    await wait_until(lambda: at.redis.exists(at.keys.worker("distributor", "late")), "the late one is at work")
    await at.assert_in_order([*ids, "said-twice"])
    assert await _failures(at, ids) == {0: 120}


@pytest.mark.guarantee("full-server")
async def test_a_server_that_is_nearly_full_takes_no_more_tasks(at: CellProcesses) -> None:
    """Submissions are refused with a clear error, what was taken goes on; once there is memory, all is as before."""
    people = await everybody(at)
    ids = await at.submit(100, seconds=0.1)
    await wait_until(lambda: _is(at, TaskState.COMPLETED, 5), "it goes on")
    used = (await queries.get_memory(at.redis)).used
    await at.redis.config_set("maxmemory", int(used * 1.1))
    refused = await _until_refused(at)
    assert "again" in refused
    taken = queries.count_submitted(await queries.get_counters(at.redis, at.keys))
    await at.all_end(taken)
    await at.redis.config_set("maxmemory", used * 10)
    more = await _until_accepted(at)
    await at.all_end(taken + 1)
    assert all(one.alive for one in people)
    assert (await at.client.task(more)).state == TaskState.COMPLETED
    assert await _all_are_completed(at, ids)
    await _assert_books(at)


@pytest.mark.guarantee("full-server")
@pytest.mark.parametrize("mended_by", ["draining", pytest.param("more-memory", marks=pytest.mark.long)])
async def test_a_full_server_drains(at: CellProcesses, mended_by: str) -> None:
    """Filled by submissions while nobody takes them: they are refused, and the work that was under way is told."""
    people = await everybody(at)
    gate = at.folder / "gate"
    ids = await at.submit(8, until=gate)
    distributor = next(one for one in people if one.name.startswith("distributor"))
    await wait_until(lambda: _is(at, TaskState.RUNNING, 8), "it is at work")
    distributor.send(signal.SIGSTOP)
    gate.touch()
    used = (await queries.get_memory(at.redis)).used
    await at.redis.config_set("maxmemory", used + 6 * MIB)
    flood = await _flood(at)
    assert len(flood) > 10
    await at.redis.config_set("maxmemory", used + 2 * MIB)
    await _time_passes(3.7 * PATIENT_S)  # no agent can beat
    if mended_by == "more-memory":
        await at.redis.config_set("maxmemory", used + 100 * MIB)
    distributor.send(signal.SIGCONT)
    await wait_until(lambda: _all_are_completed(at, ids), "what was under way is told", 20)
    await wait_until(lambda: _have_ended(at, flood), "the flood is over", 20)
    more = await _until_accepted(at)
    await wait_until(lambda: _all_are_completed(at, [more]), "new tasks are done", 20)
    assert all(one.alive for one in people)
    assert await _failures(at, ids) == {0: 8}
    log = await at.redis.execute_command("XRANGE", at.keys.of("log:agents"), "-", "+")
    assert b"agent.lost" not in {fields[b"type"] for _, fields in log}, "silence was held against an agent"
    await _assert_books(at)


async def _time_passes(seconds: float) -> None:
    """The length of a fault that nobody ends earlier."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await wait_until(lambda: loop.time() >= until, "the time is over", seconds + 5)


async def _flood(at: CellProcesses) -> list[str]:
    """Submit large tasks until the server is full; those that it took."""
    taken: list[str] = []
    while True:
        try:
            taken.append((await at.client.submit("echo", {"s": 0, "x": "x" * 20_000})).task_id)
        except ServerFull:
            return taken


async def _until_refused(at: CellProcesses) -> str:
    """Submit tasks until one is refused; what was said."""

    async def refused() -> str:
        handle = await at.client.submit("echo", {"s": 0})
        try:
            await handle.accepted(timeout=10)
        except TaskRefused as error:
            return str(error)
        return ""

    return await wait_until(refused, "a task is refused")


async def _until_accepted(at: CellProcesses) -> str:
    """Submit tasks until one is taken; its id."""

    async def accepted() -> str:
        try:
            handle = await at.client.submit("echo", {"s": 0})
            await handle.accepted(timeout=10)
        except (TaskRefused, ServerFull):
            return ""
        return handle.task_id

    return await wait_until(accepted, "a task is taken", 20)


async def _is(at: CellProcesses, state: TaskState, count: int) -> bool:
    return await at.count(state) >= count


async def _are_active(at: CellProcesses, *agents: str) -> bool:
    return all([await at.redis.sismember(at.keys.of("agents:active"), agent) for agent in agents])


async def _failures(at: CellProcesses, ids: list[str]) -> dict[int, int]:
    """How many attempts counted as failed -> of how many tasks."""
    return dict(Counter(one.failures for one in await queries.get_tasks(at.redis, at.keys, ids) if one))


async def _all_are_completed(at: CellProcesses, ids: list[str]) -> bool:
    records = await queries.get_tasks(at.redis, at.keys, ids)
    return {one.state if one else None for one in records} == {TaskState.COMPLETED}


async def _have_ended(at: CellProcesses, ids: list[str]) -> bool:
    """Completed or refused."""
    records = await queries.get_tasks(at.redis, at.keys, ids)
    return {one.state if one else None for one in records} <= {TaskState.COMPLETED, TaskState.REFUSED}


async def _assert_books(at: CellProcesses) -> None:
    """Where some were refused: the books balance and nothing is in flight."""
    await at.settle_down()
    assert [key async for key in at.redis.scan_iter(match=at.keys.inflight("*"))] == []
    await assert_ledger(at.redis, at.keys)
    await assert_keys_end(at.redis, at.keys)
