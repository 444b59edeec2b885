"""`coord trace export`: what a real cell did, as a file that `coord simulate` reads."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord.simulation import read_trace, scenario_of, write_trace
from tests.processes import CellProcesses, cell_processes


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def test_a_trace_has_what_the_cell_did(at: CellProcesses, tmp_path: Path) -> None:
    """Each completed task once, with its times, its agent and its requirements; in the time asked for, and no other."""
    await at.worker("registry")
    await at.worker("distributor")
    for number in (1, 2):
        await at.agent(f"a{number}", 4)
    before = await at.client.server_time()
    ids = await at.submit(40, 0.02)
    await at.all_end(40)
    await at.settle_down()
    after = await at.client.server_time() + 1
    ids_later = await at.submit(5)
    await at.all_end(45)
    trace = await at.client.trace(before, after)
    assert sorted(task.task_id for task in trace.tasks) == sorted(ids)
    assert {task.task_type for task in trace.tasks} == {"echo"}
    assert {task.capabilities for task in trace.tasks} == {("echo",)}
    assert [agent.agent_id for agent in trace.agents] == ["a1", "a2"]
    for task in trace.tasks:
        assert before <= task.ready_at <= task.assigned_at < task.finished_at <= after
    assert (trace.header.strategy, trace.header.skipped) == ("least_connections", 0)
    everything = await at.client.trace(0)
    assert {task.task_id for task in everything.tasks} == {*ids, *ids_later}

    await at.redis.delete(at.keys.task(ids[0]))
    assert (await at.client.trace(before, after)).header.skipped == 1

    path = tmp_path / "trace.jsonl"
    command = ("-m", "coord.cli", "trace", "export", "--since", "1h", "-o", str(path))
    assert await at.start("export", *command).ended() == 0
    read = read_trace(path.read_bytes())
    assert len(read.tasks) == 44
    assert len(scenario_of(read).jobs) == 44
    assert read_trace(write_trace(read)) == read
