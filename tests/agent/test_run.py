"""Agents as a process: signals. The test plays the coordinator."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from coord.agent.run import ONE_STOP_S
from coord.embedded import EmbeddedServer
from coord.models.facts import (
    AgentDeregistered,
    AgentRegistered,
    AgentStatusChanged,
    TaskCompleted,
    TaskReleased,
    TaskStarted,
)
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until

SCRIPT = """
import asyncio, os, time
from coord import Agent, run

first, second = Agent("first", drain_timeout=0.2), Agent("second")

@first.task("hang")
async def hang(task):
    await asyncio.Event().wait()

@first.task("grind")
def grind(task):
    time.sleep(60)

@second.task("grind")
def grind_too(task):
    time.sleep(60)

@second.task("wait")
async def wait(task):
    while not os.path.exists(task.payload):
        await asyncio.sleep(0.01)

@second.task("echo")
async def echo(task):
    return task.payload

if "ODD" in os.environ:
    @first.on_stop
    async def odd():
        raise OSError("it is odd")

run(first, second)
"""


@asynccontextmanager
async def started(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path, **environ: str
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Two agents in one process, registered."""
    script = tmp_path / "agents.py"
    script.write_text(SCRIPT)
    environment = {
        **os.environ,
        "COORD_REDIS_URL": server.url,
        "COORD_NAMESPACE": coordinator.settings.namespace,
        "PYTHONPATH": str(Path(__file__).parents[2]),
        **environ,
    }
    process = await asyncio.create_subprocess_exec(sys.executable, str(script), env=environment)
    await coordinator.wait_for("in:registry", AgentRegistered, 2)
    yield process
    if process.returncode is None:
        process.kill()
        await process.wait()


@pytest.fixture
async def process(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Two agents in one process, registered."""
    async with started(server, coordinator, tmp_path) as running:
        yield running


async def test_sigterm_drains_all_agents_of_the_process(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator
) -> None:
    """What hangs is cancelled after the grace and given back; both leave; the process ends well."""
    await coordinator.assign("second", "echo")
    await coordinator.wait_for("in:reports", TaskCompleted)
    await coordinator.assign("first", "hang")

    async def is_claimed() -> bool:
        return await coordinator.inbox("first") == 0

    await wait_until(is_claimed, "the task is claimed")
    process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 0
    await coordinator.wait_for("in:reports", TaskReleased)
    await coordinator.wait_for("in:registry", AgentDeregistered, 2)


async def test_sigterm_lets_what_runs_come_to_its_end(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """Each agent drains with its own grace: what is done within it is completed, not given back."""
    gate = tmp_path / "gate"
    await coordinator.assign("second", "wait", str(gate))
    await coordinator.wait_for("in:reports", TaskStarted)
    process.send_signal(signal.SIGTERM)
    await coordinator.wait_for("in:registry", AgentStatusChanged, 2)
    gate.touch()
    assert await asyncio.wait_for(process.wait(), 20) == 0
    assert [type(fact) for fact in await coordinator.facts("in:reports")] == [TaskStarted, TaskCompleted]


async def test_an_error_in_the_end_of_one_agent_takes_nothing_from_the_others(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """They have their grace; then the error is raised."""
    gate = tmp_path / "gate"
    async with started(server, coordinator, tmp_path, ODD="1") as process:
        await coordinator.assign("second", "wait", str(gate))
        await coordinator.wait_for("in:reports", TaskStarted)
        process.send_signal(signal.SIGTERM)
        await coordinator.wait_for("in:registry", AgentDeregistered)
        gate.touch()
        assert await asyncio.wait_for(process.wait(), 20) == 1
    assert [type(fact) for fact in await coordinator.facts("in:reports")] == [TaskStarted, TaskCompleted]


async def test_a_thread_that_does_not_end_does_not_hold_the_process(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator
) -> None:
    """Its task is given back and the process ends, saying so by its exit code."""
    await coordinator.assign("first", "grind")

    async def is_claimed() -> bool:
        return await coordinator.inbox("first") == 0

    await wait_until(is_claimed, "the task is claimed")
    process.send_signal(signal.SIGINT)
    assert await asyncio.wait_for(process.wait(), 20) == 1
    await coordinator.wait_for("in:reports", TaskReleased)
    await coordinator.wait_for("in:registry", AgentDeregistered, 2)


async def test_a_second_signal_gives_running_tasks_back(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """The drain has no limit; the agent whose task ends meanwhile is not affected."""
    lease = await coordinator.assign("second", "wait", str(tmp_path / "never"))
    await coordinator.wait_for("in:reports", TaskStarted)
    process.send_signal(signal.SIGTERM)
    await coordinator.wait_for("in:registry", AgentStatusChanged, 2)
    await asyncio.sleep(1.5 * ONE_STOP_S)  # signals of one stop count once
    process.send_signal(signal.SIGTERM)
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert report.lease == lease
    assert await asyncio.wait_for(process.wait(), 20) == 0
    await coordinator.wait_for("in:registry", AgentDeregistered, 2)


async def test_a_third_signal_ends_the_process_at_once(
    process: asyncio.subprocess.Process, coordinator: PlayedCoordinator
) -> None:
    """A thread cannot be stopped, and the second signal waits for it for a while."""
    await coordinator.assign("second", "grind")
    await coordinator.wait_for("in:reports", TaskStarted)
    for count in range(3):
        if count:
            await asyncio.sleep(1.5 * ONE_STOP_S)
        process.send_signal(signal.SIGTERM)
    assert await asyncio.wait_for(process.wait(), 20) == 128 + signal.SIGTERM
    assert not [fact for fact in await coordinator.facts("in:reports") if isinstance(fact, TaskReleased)]


async def test_an_agent_that_cannot_run_says_why_in_one_line(tmp_path: Path) -> None:
    """Never a traceback for something a user did: an address that is none ends the program with one line."""
    script = tmp_path / "agent.py"
    script.write_text("from coord import Agent, run\nrun(Agent('alone', url='http://127.0.0.1:1'))\n")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), env=environment, stderr=asyncio.subprocess.PIPE
    )
    _, output = await process.communicate()
    assert process.returncode == 1
    assert b"Traceback" not in output
    assert output.decode().splitlines()[-1].startswith("alone: 'http://127.0.0.1:1' is not a Redis URL")
