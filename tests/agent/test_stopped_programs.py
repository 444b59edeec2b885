"""Programs that get the signal that stops their agent: a service manager signals every process of a service."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from coord import Agent
from coord.embedded import EmbeddedServer
from coord.models.facts import TaskFailed, TaskReleased
from coord.programs import Options, program_agent
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


@pytest.mark.parametrize("keep_alive", [False, True])
async def test_its_task_is_given_back(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path, keep_alive: bool
) -> None:
    """The program ends before the agent has noticed; that is no failed attempt."""
    agent = agent_of(tmp_path, server, coordinator, keep_alive=keep_alive)
    await agent.start()
    lease = await coordinator.assign("a", "anything")
    os.kill(await pid_of(tmp_path), signal.SIGTERM)
    await agent.stop()
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert report.lease == lease
    assert report.reason.startswith("the program was stopped together with its agent: ")


async def test_the_end_of_a_program_alone_is_a_failure(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """The agent was not asked to stop."""
    agent = agent_of(tmp_path, server, coordinator, keep_alive=False)
    await agent.start()
    await coordinator.assign("a", "anything")
    os.kill(await pid_of(tmp_path), signal.SIGTERM)
    (report,) = await coordinator.wait_for("in:reports", TaskFailed)
    assert (report.code, report.retryable) == ("killed", True)
    await agent.stop()


def agent_of(folder: Path, server: EmbeddedServer, coordinator: PlayedCoordinator, *, keep_alive: bool) -> Agent:
    """An agent whose program writes its process id and waits."""
    wait = f"read line; echo $$ >{folder}/pid.new; mv {folder}/pid.new {folder}/pid; exec sleep 600"
    options = Options(keep_alive=keep_alive)
    return program_agent(
        "a", ["sh", "-c", wait], coordinator.settings, options, capabilities=["anything"], capacity=1, url=server.url
    )


async def pid_of(folder: Path) -> int:
    """Wait for the program."""
    await wait_until((folder / "pid").exists, "the program runs")
    return int((folder / "pid").read_text())
