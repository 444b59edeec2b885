"""examples/strategies as a package: installed where distributors run and where tasks are submitted."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import tomllib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord.models.tasks import TaskRecord
from tests.processes import ROOT, CellProcesses, cell_processes
from tests.waiting import wait_until

EXAMPLE = ROOT / "examples" / "strategies"
#: An agent with a price.
PRICED = """
import sys
from coord import Agent
agent = Agent(sys.argv[1], labels={"price": sys.argv[2]}, capacity=2)
agent.task("echo")(lambda task: task.payload)
agent.run()
"""


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


def put(folder: Path) -> None:
    """Put the package into a folder as pip does: its module, and its entry points as pyproject.toml declares them."""
    project = tomllib.loads((EXAMPLE / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir(parents=True)
    points = [f"{name} = {value}" for name, value in project["entry-points"]["coord.strategies"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[coord.strategies]", *points, ""]))
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    (folder / "cheapest.py").write_text((EXAMPLE / "cheapest.py").read_text())


async def placed(at: CellProcesses, folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[TaskRecord]:
    """The records of tasks that a distributor with the package has placed, and a client with it has submitted."""
    monkeypatch.syspath_prepend(str(folder))
    await at.worker("registry")
    # Not a fork of a process that has looked for its packages already.
    command = (sys.executable, "-P", "-m", "workers", "distributor", "--name", "distributor-1")
    at.start_program("distributor-1", *command, PYTHONPATH=f"{folder}:{ROOT}")
    for agent_id, price in (("dear", "0.30"), ("cheap", "0.10"), ("middle", "0.20")):
        at.start(agent_id, "-c", PRICED, agent_id, price)

    async def are_active() -> bool:
        return int(await at.redis.scard(at.keys.of("agents:active"))) == 3

    await wait_until(are_active, "three agents are active", 60)
    found = []
    for number in range(5):
        handle = await at.client.submit("echo", number, strategy="cheapest")  # type: ignore[arg-type]
        assert await handle.result(timeout=60) == number
        found.append(await handle.record())
    return found


async def test_a_cell_places_tasks_by_the_strategy_of_the_example(
    at: CellProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The agent with the lowest price gets each task while it has room."""
    put(tmp_path / "packages")
    records = await placed(at, tmp_path / "packages", monkeypatch)
    assert {(one.agent_id, one.placement and one.placement["strategy"]) for one in records} == {("cheap", "cheapest")}


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_the_example_is_installed_as_its_readme_says(
    at: CellProcesses, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By pip, into a folder of its own."""
    folder = tmp_path / "packages"
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), str(EXAMPLE)]
    await asyncio.to_thread(subprocess.run, command, check=True, timeout=200)
    records = await placed(at, folder, monkeypatch)
    assert {one.agent_id for one in records} == {"cheap"}
