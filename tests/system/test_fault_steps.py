"""kill -9 at each step: of a worker's loop, and of a task's way through an agent. Whoever comes next makes it whole."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord import queries
from coord.keys import CONSUMES
from tests.processes import CellProcesses, cell_processes
from tests.system import stepped_agent, stepped_worker
from tests.system.fault_work import WORK

#: Facts that each victim finds; it reads four at a time.
FACTS = 12
#: The batch or the round trip at which it is struck.
NTH = 2
#: The names of one victim and the next.
SAME = ("same", "same")
OTHER = ("one", "two")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.mark.guarantee("killed-worker")
@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("distributor", SAME),
        ("registry", OTHER),
        pytest.param("distributor", OTHER, marks=pytest.mark.long),
        pytest.param("registry", SAME, marks=pytest.mark.long),
        pytest.param("router", SAME, marks=pytest.mark.long),
        pytest.param("router", OTHER, marks=pytest.mark.long),
    ],
)
async def test_a_worker_is_killed_at_each_step_of_its_loop(
    at: CellProcesses, kind: str, names: tuple[str, str]
) -> None:
    """One after the other, each at another step, leaves what it had to the next: every fact has one effect."""
    for other in CONSUMES:
        if other != kind:
            await at.worker(other)
    work = WORK[kind](at)
    if kind != "registry":
        await work.prepare()
    for number, step in enumerate(stepped_worker.STEPS):
        victim = at.stepped_worker(kind, names[number % 2], step, NTH)
        await work.add(FACTS)
        assert await victim.ended(30) == -signal.SIGKILL, victim.told()
    await at.worker(kind, "last" if names[0] != names[1] else names[0])
    await work.check()
    if kind != "distributor":
        await at.agent("hands")
        ids = await at.submit(5)
        await at.all_end(5)
        await at.assert_in_order(ids)


@pytest.mark.guarantee("killed-agent")
@pytest.mark.parametrize(
    "steps",
    [
        pytest.param(stepped_agent.STEPS, id="each"),
        *(pytest.param([step] * 2, id=step, marks=pytest.mark.long) for step in stepped_agent.STEPS),
    ],
)
async def test_an_agent_is_killed_at_each_step_of_a_task(at: CellProcesses, steps: list[str]) -> None:
    """One after the other under one id, then another does the rest: what was reported stays, the rest is done again."""
    await at.worker("registry")
    await at.worker("distributor", COORD_MAX_ATTEMPTS="20")
    ids = await at.submit(16, seconds=0.15)
    reported: list[int] = []
    for step in steps:
        victim = at.stepped_agent("victim", step, NTH, capacity=3)
        assert await victim.ended(30) == -signal.SIGKILL, victim.told()
        reported += [victim.popen.pid] if step == "reported" else []
    heir = await at.agent("heir", capacity=8)
    await at.all_end(len(ids))
    await at.assert_in_order(ids)
    records = [one for one in await queries.get_tasks(at.redis, at.keys, ids) if one]
    assert {attempt.how for one in records for attempt in one.attempts} <= {"agent_lost"}
    done_by = Counter(one.result["pid"] for one in records)
    assert done_by[heir.popen.pid] >= 1
    assert all(done_by[pid] >= NTH for pid in reported), "what Redis had was done again"
