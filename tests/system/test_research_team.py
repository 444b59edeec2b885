"""examples/research_team: the orchestrator is killed at every step, and no task runs twice."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord import queries
from coord.models.tasks import TaskState
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

TOPIC = "How does a keeper trim the lamp of a lighthouse when a walrus watches?"
#: Five documents have most of the topic's words, so the first plan leaves out the sixth, the only one with a walrus.
DOCUMENTS = {
    f"{name}.md": f"# {name}\n\nThe keeper of the {name} lighthouse trims its lamp at dusk. "
    f"At night the {name} keeper trims the lamp again.\n\n* A {name} lamp without a keeper goes out before morning.\n"
    for name in ("amber", "basalt", "coral", "dune", "ember")
} | {"shore.md": "# Shore\n\nA walrus watches the shore from a flat rock for hours.\n"}
#: Processes start slowly on a machine with much to do.
START_S = 60.0


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with a registry and a distributor, and the documents."""
    (tmp_path / "documents").mkdir()
    for name, text in DOCUMENTS.items():
        (tmp_path / "documents" / name).write_text(text)
    async with cell_processes(tmp_path) as built:
        await built.worker("registry")
        await built.worker("distributor")
        yield built


async def join(at: CellProcesses, role: str) -> None:
    """Start an agent of a role, and wait until it may be given work."""
    options = ("--documents", str(at.folder / "documents"), "--ledger", str(at.folder / "ledger"))
    await until_active(at, at.start(role, "-m", "examples.research_team.team", role, "--id", role, *options))


async def lead_agent(at: CellProcesses, agent_id: str, interval_s: float = 5.0) -> Process:
    """Start the orchestrator as an agent, and wait until it may be given work; it is lost after three intervals."""
    beats = {"COORD_HEARTBEAT_INTERVAL_S": str(interval_s)}
    process = at.start(agent_id, "-m", "examples.research_team.lead_agent", "--id", agent_id, **beats)
    await until_active(at, process)
    return process


async def until_active(at: CellProcesses, process: Process) -> None:
    """Wait until an agent may be given work."""

    async def is_active() -> bool:
        assert process.alive, process.told()
        return bool(await at.redis.sismember(at.keys.of("agents:active"), process.name))

    await wait_until(is_active, f"{process.name} is active", START_S)


def lead(at: CellProcesses, run: str) -> Process:
    """Start the orchestrator of a run."""
    return at.start(f"lead-{run}", "-m", "examples.research_team.lead", TOPIC, "--run", run)


def executed(at: CellProcesses) -> list[str]:
    """Return a line for each execution of a task by an agent."""
    ledger = at.folder / "ledger"
    return ledger.read_text().splitlines() if ledger.exists() else []


async def kill_at(at: CellProcesses, process: Process, *task_ids: str) -> None:
    """Kill the orchestrator when it has submitted these tasks, which no agent can do yet."""

    async def are_queued() -> bool:
        assert process.alive, process.told()
        records = await queries.get_tasks(at.redis, at.keys, task_ids)
        return all(record is not None and record.state is TaskState.QUEUED for record in records)

    await wait_until(are_queued, f"{task_ids} are queued", START_S)
    process.kill()


async def until_completed(at: CellProcesses, *task_ids: str) -> None:
    """Wait until these tasks are completed, while there is no orchestrator."""

    async def are_completed() -> bool:
        records = await queries.get_tasks(at.redis, at.keys, task_ids)
        return all(record is not None and record.state is TaskState.COMPLETED for record in records)

    await wait_until(are_completed, f"{task_ids} are completed", START_S)


async def report(process: Process) -> list[str]:
    """Wait for the end of an orchestrator; return the lines of its report."""
    assert await process.ended(START_S) == 0, process.told()
    return [line for line in process.log.read_text().splitlines() if line.endswith("]")]


@pytest.mark.guarantee("deterministic-ids")
@pytest.mark.timeout(300)
async def test_the_orchestrator_is_killed_at_each_step_and_nothing_runs_twice(at: CellProcesses) -> None:
    """Killed after its plan, in the fan-out, before the review; tasks go on without it; each was executed once.

    The team grows by one role after each kill. So the orchestrator cannot end before it is killed.
    """
    reads = [f"run.1.read.{number}" for number in range(1, 6)]
    await kill_at(at, lead(at, "run"), "run.1.plan")
    await join(at, "planner")
    await until_completed(at, "run.1.plan")
    await kill_at(at, lead(at, "run"), *reads)
    await join(at, "reader")
    await until_completed(at, *reads)
    await kill_at(at, lead(at, "run"), "run.1.write")
    await join(at, "writer")
    await until_completed(at, "run.1.write")
    await kill_at(at, lead(at, "run"), "run.1.review")
    await join(at, "reviewer")
    found = await report(lead(at, "run"))

    again = [f"run.2.{step}" for step in ("plan", "read.1", "write", "review")]
    ids = ["run.1.plan", *reads, "run.1.write", "run.1.review", *again]
    assert sorted(executed(at)) == sorted(f"{task_id} attempt 1" for task_id in ids)
    await at.assert_in_order(ids)
    assert "A walrus watches the shore from a flat rock for hours.  [shore.md:3]" in found
    assert any("trims its lamp at dusk.  [" in line for line in found)

    assert await report(lead(at, "run")) == found, "the same command shows the report again"
    assert len(executed(at)) == len(ids)
    both = lead(at, "undisturbed"), lead(at, "undisturbed")
    assert [await report(process) for process in both] == [found, found], "two at once share a run"
    assert len(executed(at)) == 2 * len(ids)


@pytest.mark.guarantee("deterministic-ids")
@pytest.mark.timeout(300)
async def test_an_orchestrator_that_is_an_agent_is_started_again_by_coord(at: CellProcesses) -> None:
    """Killed in the fan-out; another agent continues the run in a second attempt, and no other task runs twice."""
    await join(at, "planner")
    first = await lead_agent(at, "lead-1", interval_s=0.5)
    handle = await at.client.submit("research", TOPIC, task_id="run", retry={"backoff": 0.01})
    reads = [f"run.1.read.{number}" for number in range(1, 6)]
    await kill_at(at, first, *reads)
    for role in ("reader", "writer", "reviewer"):
        await join(at, role)
    await lead_agent(at, "lead-2")
    found = await handle.result(timeout=START_S)
    assert {quote["path"] for quote in found["quotes"]} > {"shore.md"}
    record = await handle.record()
    assert (record.agent_id, record.attempts[0].code) == ("lead-2", "agent_lost")
    again = [f"run.2.{step}" for step in ("plan", "read.1", "write", "review")]
    ids = ["run.1.plan", *reads, "run.1.write", "run.1.review", *again]
    assert sorted(executed(at)) == sorted(f"{task_id} attempt 1" for task_id in ids)
    await at.assert_in_order(["run", *ids])
