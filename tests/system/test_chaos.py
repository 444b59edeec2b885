"""Tasks that fail, hang and kill their agents, and a killer beside them: every task ends, and what ran twice is told.

Execution is at least once. What is promised is that each attempt runs once, that each is on record with how it ended,
and that a task has one outcome: so every execution beyond a task's first is explained by an attempt that did not count.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from coord import TaskSpec, queries
from coord.fsck import examine
from coord.models.tasks import TERMINAL, TaskRecord, TaskState
from coord.programs.outcome import describe_exit
from coord.up.shutdown import Shutdown
from coord.up.supervisor import ManagedProgram, ProgramEvent, Supervisor, Timing
from tests.processes import MOMENTS, ROOT, CellProcesses, cell_processes
from tests.waiting import wait_until

SEED = 20_260_301
STRIKES_EVERY_S = 2.0
AGENTS = 5
CAPACITY = 8
#: How a task goes, and how many of a thousand do; whatever it does, it does at its first attempt.
KINDS = {"works": 860, "fails": 60, "bad": 20, "hangs": 8, "dies": 2, "slow": 50}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


class Crowd:
    """Two registries, two distributors and some agents, each started again when it ends; and who killed how many."""

    def __init__(self, at: CellProcesses, executions: Path) -> None:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COORD_")}
        environ = kept | MOMENTS | {
            "COORD_REDIS_URL": at.server.url,
            "COORD_HEARTBEAT_INTERVAL_S": "0.5",
            "PYTHONPATH": str(ROOT),
        }  # fmt: skip
        programs: list[ManagedProgram] = []
        for kind in ("registry", "distributor"):
            for number in (1, 2):
                name = f"{kind}-{number}"
                command = [sys.executable, "-P", "-m", "workers", kind, "--name", name, "--watch-stdin"]
                programs.append(
                    ManagedProgram(name=name, command=command, environ=environ, log=at.folder / f"{name}.log")
                )
        agent = Path(__file__).with_name("chaos_agent.py")
        for number in range(1, AGENTS + 1):
            name = f"agent-{number}"
            command = [sys.executable, "-P", str(agent), name, str(CAPACITY), str(executions)]
            programs.append(ManagedProgram(name=name, command=command, environ=environ, log=at.folder / f"{name}.log"))
        self.ended: Counter[str] = Counter()
        self.strikes: Counter[str] = Counter()
        self._supervisor = Supervisor(programs, self._tell, timing=Timing(longest_s=0.5, drain_s=5))
        self._shutdown = Shutdown()

    def _tell(self, event: ProgramEvent) -> None:
        if event.what == "ended":
            self.ended[f"{event.name.partition('-')[0]} {describe_exit(event.code or 0)}"] += 1

    async def _strike(self) -> None:
        chance = random.Random(SEED)
        while not await self._shutdown.requested_within(STRIKES_EVERY_S):
            name, pid = chance.choice(sorted(self._supervisor.pids.items()))
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            self.strikes[name.partition("-")[0]] += 1

    @contextlib.asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        """Everybody at work, and the killer among them; afterwards all have ended."""
        working = [asyncio.create_task(self._supervisor.run(self._shutdown)), asyncio.create_task(self._strike())]
        try:
            yield
        finally:
            self._shutdown.request()
            await asyncio.gather(*working)


def _load(count: int) -> list[TaskSpec]:
    """So many tasks, drawn from the seed."""
    chance = random.Random(SEED)
    drawn = chance.choices(list(KINDS), weights=list(KINDS.values()), k=count)
    return [
        TaskSpec(
            task_type="chaos",
            payload={"how": how, "s": chance.uniform(0.5, 1.0) if how == "slow" else chance.uniform(0.02, 0.12)},
            priority=chance.choice(["urgent", "critical", "high", "normal", "low"]),
            timeout=2.5,
            # Being killed is not the task's fault here, and a neighbour that dies takes up to seven others with it.
            retry={"max_attempts": 50, "backoff_max": 0.2},
        )
        for how in drawn
    ]


async def _chaos(at: CellProcesses, count: int, limit_s: float) -> None:
    executions = at.folder / "executions"
    specs = _load(count)
    crowd = Crowd(at, executions)
    async with crowd.at_work():
        ids = [handle.task_id for handle in await at.client.submit_many(specs)]
        await wait_until(lambda: _half(at, count), "half of them have ended", limit_s)
        midway = await examine(at.redis, at.keys)
        assert midway.findings == []
        await at.all_end(count, limit_s)
        await at.settle_down()
    records = [one for one in await queries.get_tasks(at.redis, at.keys, ids) if one]
    ran = Counter(tuple(line.split()) for line in executions.read_text().splitlines())
    print(_told(crowd, records, ran))  # noqa: T201 (shown by -s, and when something is wrong)
    _assert_outcomes(specs, records)
    _assert_explained(records, ran)
    assert sum(crowd.strikes.values()) >= 3
    report = await examine(at.redis, at.keys, trimmed=False)
    assert report.findings == []
    assert report.compared
    assert report.tasks == count


def _assert_outcomes(specs: Sequence[TaskSpec], records: Sequence[TaskRecord]) -> None:
    """Every task has the outcome that its kind has, whoever was killed meanwhile."""
    wanted = [TaskState.FAILED if spec.payload["how"] == "bad" else TaskState.COMPLETED for spec in specs]
    assert [one.state for one in records] == wanted


def _assert_explained(records: Sequence[TaskRecord], ran: Counter[tuple[str, ...]]) -> None:
    """No attempt ran twice, none ran that is not on record, and the one that counted did run."""
    assert max(ran.values()) == 1, [one for one, times in ran.items() if times > 1]
    for one in records:
        known = {str(attempt.attempt) for attempt in one.attempts} | {str(one.attempt)}
        tried = {attempt for task, attempt in ran if task == one.task_id}
        assert tried <= known, f"{one.task_id} ran {sorted(tried)}, and on record are {sorted(known)}"
        assert str(one.attempt) in tried, f"{one.task_id} ended at attempt {one.attempt}, which never ran"


def _told(crowd: Crowd, records: Sequence[TaskRecord], ran: Counter[tuple[str, ...]]) -> str:
    executed = Counter(task for task, _ in ran.elements())
    ended = Counter(
        attempt.how for one in records for attempt in one.attempts if (one.task_id, str(attempt.attempt)) in ran
    )
    unrun = sum(len(one.attempts) for one in records) - sum(ended.values())
    final_failures = sum(one.state == TaskState.FAILED for one in records)
    return (
        f"{len(records)} tasks, {ran.total()} executions, {ran.total() - len(executed)} of them not the first of "
        f"their task; attempts that ran and did not count: {dict(ended)} (of them {final_failures} the last of a "
        f"failed task); attempts lost before they ran: {unrun}; "
        f"strikes: {dict(crowd.strikes)}; ends: {dict(crowd.ended)}"
    )


async def _half(at: CellProcesses, count: int) -> bool:
    return sum([await at.count(state) for state in TERMINAL]) >= count // 2


@pytest.mark.guarantee("chaos")
@pytest.mark.timeout(400)
async def test_two_thousand_tasks_in_chaos_all_end(at: CellProcesses) -> None:
    """A killer strikes a worker or an agent every two seconds, and agents die of their tasks besides."""
    await _chaos(at, 2_000, 150)


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_twenty_thousand_tasks_in_chaos_all_end(at: CellProcesses) -> None:
    """The same for minutes."""
    await _chaos(at, 20_000, 800)
