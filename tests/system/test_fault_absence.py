"""The coordinator is away while agents work: what they finish in time counts, whatever reads it later."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest

from coord import queries
from coord.models.tasks import TaskState
from tests.processes import CellProcesses, cell_processes
from tests.waiting import wait_until

#: How long a handler takes, what it may take, and for how long the coordinator is away: seconds.
WORKS_S, TIMEOUT_S, AWAY_S = 1.0, 4.0, 8.0
TASKS = 20


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def submitted(at: CellProcesses, **options: float) -> list[str]:
    """Tasks that an agent has begun; their ids."""
    payload = {"s": WORKS_S, "until": "/"}
    one = {"task_type": "echo", "payload": payload, "requirements": {"capabilities": ["echo"]}, **options}
    ids = [handle.task_id for handle in await at.client.submit_many([one] * TASKS)]
    await wait_until(partial(_are_running, at), "all run")
    return ids


@pytest.mark.guarantee("work-in-time-counts")
@pytest.mark.parametrize("who", ["distributor", "server"])
async def test_work_that_ends_in_time_counts_when_the_coordinator_was_away(at: CellProcesses, who: str) -> None:
    """⚠ The only distributor, or Redis, stands still for twice the timeout: no attempt is judged for that."""
    await at.worker("registry")
    distributor = await at.worker("distributor")
    await at.agent("a1", capacity=TASKS, interval_s=60.0)
    ids = await submitted(at, timeout=TIMEOUT_S)
    pid = distributor.popen.pid if who == "distributor" else at.server.pid
    os.kill(pid, signal.SIGSTOP)
    try:
        await _time_passes(AWAY_S)
    finally:
        os.kill(pid, signal.SIGCONT)
    await at.all_end(TASKS)
    await at.assert_in_order(ids)
    records = await queries.get_tasks(at.redis, at.keys, ids)
    assert [one.attempts for one in records if one] == [()] * TASKS


@pytest.mark.guarantee("work-in-time-counts")
async def test_reports_that_a_killed_distributor_had_read_count(at: CellProcesses) -> None:
    """⚠ It dies with the reports in its hands; its successor takes them over after the attempts' time is up."""
    await at.worker("registry")
    victim = await at.worker("distributor", "one")
    await at.agent("a1", capacity=TASKS, interval_s=60.0)
    ids = await submitted(at, timeout=TIMEOUT_S)
    victim.send(signal.SIGSTOP)
    await wait_until(lambda: at.redis.xlen(at.keys.of("in:reports")), "a report waits")
    # Read by the victim, as far as Redis knows, and never handled.
    await at.redis.xreadgroup("distributor", "one", {at.keys.of("in:reports"): ">"}, count=1)
    await _time_passes(TIMEOUT_S)
    await at.redis.xreadgroup("distributor", "one", {at.keys.of("in:reports"): ">"}, count=1_000)
    victim.kill()
    await at.worker("distributor", "two")
    await at.all_end(TASKS)
    await at.assert_in_order(ids)


async def _are_running(at: CellProcesses) -> bool:
    return await at.count(TaskState.RUNNING) == TASKS


async def _time_passes(seconds: float) -> None:
    """The length of a fault that nobody ends earlier."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await wait_until(lambda: loop.time() >= until, "the time is over", seconds + 5)
