"""Statistics: the histograms that scripts keep, the totals of task types, and what ``get_statistics`` returns."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest

from coord.models.agents import AgentStatus
from coord.models.statistics import BOUNDS_MS, CellStatistics
from coord.models.tasks import Priority, TaskState
from coord.queries import get_statistics, get_weights
from tests.scripts.cell import START, Cell
from workers.transitions import Replay


async def statistics(cell: Cell) -> CellStatistics:
    """The statistics of the cell."""
    return await get_statistics(cell.redis, cell.keys, cell.settings, presence_ttl_ms=15_000)


async def histograms(cell: Cell) -> dict[str, int]:
    """The hash of histograms as it is stored."""
    raw = await cell.redis.hgetall(cell.keys.of("histograms"))
    return {name.decode(): int(value) for name, value in raw.items()}


def test_script_and_reader_have_the_same_buckets() -> None:
    """The bounds in the script are those of the model."""
    text = files("workers.lua.lib").joinpath("histograms.lua").read_text(encoding="utf-8")
    found = re.search(r"BOUNDS = \{ (.+?) \}", text)
    assert found is not None
    assert tuple(int(bound) for bound in found[1].split(", ")) == BOUNDS_MS


@pytest.mark.guarantee("exact-metrics")
@pytest.mark.on_fakeredis
async def test_the_phases_of_a_task_are_observed(cell: Cell) -> None:
    """Waiting until its assignment, distribution until its start, running until its report; no phase twice."""
    await cell.register()
    await cell.submit("t1")
    cell.now = START + 7
    assert await cell.dispatch() == "ASSIGNED"
    cell.now = START + 1_000
    await cell.report("completed", "t1", started_ms_ago=900)
    assert await histograms(cell) == {
        "wait:normal:10": 1, "wait:normal:sum": 7,
        "distribution:100": 1, "distribution:sum": 93,
        "run:completed:1000": 1, "run:completed:sum": 900,
    }  # fmt: skip


async def test_a_start_that_was_reported_before_counts_once(cell: Cell) -> None:
    """The start gives the distribution, the result only the run."""
    await cell.register()
    await cell.submit("t1")
    cell.now = START + 5
    assert await cell.dispatch() == "ASSIGNED"
    cell.now = START + 25
    await cell.report("started", "t1", started_ms_ago=0)
    cell.now = START + 4_025
    await cell.report("completed", "t1")
    assert await histograms(cell) == {
        "wait:normal:5": 1, "wait:normal:sum": 5,
        "distribution:25": 1, "distribution:sum": 20,
        "run:completed:5000": 1, "run:completed:sum": 4_000,
    }  # fmt: skip


async def test_a_retry_waits_from_its_own_time(cell: Cell) -> None:
    """The wait of an attempt begins when its task is queued again; its failed attempt is observed by how it ended."""
    await cell.register()
    await cell.submit("t1", at=START, backoff_ms=1_000, backoff_max_ms=1_000)
    assert await cell.dispatch() == "ASSIGNED"
    cell.now = START + 60
    await cell.fail("t1", started_ms_ago=10)
    cell.now = START + 100_000
    assert await cell.run_alarms() == ["QUEUED"]
    cell.now += 3
    await cell.register("a2")
    await cell.dispatch("a2")
    found = await histograms(cell)
    assert found["wait:normal:sum"] == 3
    assert (found["run:failed:10"], found["run:failed:sum"], found["distribution:sum"]) == (1, 10, 50)
    assert (await statistics(cell)).wait[Priority.NORMAL].count == 2


@pytest.mark.parametrize("kind", ["failed", "released", "expired"])
async def test_an_absence_of_the_coordinator_is_no_run_time(cell: Cell, kind: str) -> None:
    """A report ends the run at the time at which the agent appended it, however late a distributor reads it."""
    await cell.register()
    await cell.submit("t1", at=START, **({"deadline": START + 30} if kind == "expired" else {}))
    assert await cell.dispatch() == "ASSIGNED"
    cell.now = START + 60
    report = await cell.reported("completed" if kind == "expired" else kind, "t1", started_ms_ago=40)
    cell.now = START + 3_600_000
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    found = await histograms(cell)
    assert (found[f"run:{kind}:50"], found[f"run:{kind}:sum"]) == (1, 40)


async def test_a_batch_writes_each_bucket_once(cell: Cell) -> None:
    """A batch of many tasks sends a command for each bucket, not for each task."""
    await cell.register(capacity=100)
    await cell.admit(*[await cell.submission(f"t{n}") for n in range(100)])
    before = await increments(cell)
    await cell.run(cell.scripts.dispatch([await cell.placement() for _ in range(100)]))
    assert await increments(cell) - before < 10
    assert (await statistics(cell)).wait[Priority.NORMAL].count == 100


async def increments(cell: Cell) -> int:
    """How many HINCRBY the server has executed."""
    return int((await cell.redis.info("commandstats")).get("cmdstat_hincrby", {"calls": 0})["calls"])


async def test_types_are_counted_and_bounded(cell: Cell) -> None:
    """Each type has a total; types beyond the first 1,000 are counted together."""
    await cell.redis.hset(cell.keys.of("task_types"), mapping={f"type{n}": 0 for n in range(999)})
    for n, task_type in enumerate(("a", "b", "a", "c")):
        one = await cell.submission(f"t{n}", pool=f"p-{task_type}")
        await cell.run(
            cell.scripts.admit([one], {one.pool: b'{"task_type":"x"}'}, {one.pool: task_type}, nearly_full=False)
        )
    types = (await statistics(cell)).task_types
    assert {name: count for name, count in types.items() if not name.startswith("type")} == {"a": 2, "": 2}
    assert len(types) == 1_001


async def test_statistics_of_an_empty_cell(cell: Cell) -> None:
    """Everything is zero; nothing divides by zero."""
    found = await statistics(cell)
    assert (found.submitted, found.assignments, found.success_rate) == (0, 0, 1.0)
    assert (found.avg_distribution_time, found.avg_agent_load) == (0.0, 0.0)
    assert set(found.queue_sizes.values()) == {0}
    assert found.strategy == "least_connections"
    assert found.waiting is None


async def test_statistics_of_a_cell(cell: Cell) -> None:
    """Totals, gauges, agents and streams are those of the cell."""
    await cell.register("a1", capacity=4)
    await cell.register("a2")
    for n in range(3):
        await cell.submit(f"t{n}")
    await cell.submission("t9")
    assert await cell.dispatch() == "ASSIGNED"
    found = await statistics(cell)
    assert found.submitted == 3
    assert found.tasks_in(TaskState.QUEUED)[Priority.NORMAL] == 2
    assert found.agents[AgentStatus.ACTIVE] == found.active_agents == found.total_agents == 2
    assert found.avg_agent_load == 0.5
    assert found.pools == 1
    streams = {stream.stream: stream for stream in found.streams}
    assert (streams["in:tasks:normal"].entries, streams["in:tasks:normal"].pending) == (1, 1)
    assert await get_weights(cell.redis, cell.keys) == {"a1": 1.0, "a2": 1.0}


@pytest.mark.guarantee("exact-metrics")
async def test_a_replay_does_not_lower_a_total(cell: Cell) -> None:
    """A total of failed tasks stays when one of them is replayed, or Prometheus would see a restart."""
    await cell.register()
    await cell.submit("t1")
    assert await cell.dispatch() == "ASSIGNED"
    await cell.fail("t1", retryable=False)
    assert (await statistics(cell)).total(TaskState.FAILED) == 1
    entry = await cell.append("in:control:distributor", "task.replayed")
    await cell.run(cell.scripts.replay([Replay(entry, "t1", "")]))
    found = await statistics(cell)
    assert (found.total(TaskState.FAILED), found.total(TaskState.QUEUED)) == (1, 1)


@pytest.mark.guarantee("exact-metrics")
async def test_a_broken_histogram_stops_no_task(cell: Cell) -> None:
    """A key of another type loses observations, and nothing else."""
    cell.broken = True
    await cell.redis.set(cell.keys.of("histograms"), "x")
    await cell.redis.set(cell.keys.of("task_types"), "x")
    await cell.register()
    assert await cell.submit("t1") == "QUEUED"
    assert await cell.dispatch() == "ASSIGNED"
    assert await cell.report("completed", "t1", started_ms_ago=1) == "OK"
