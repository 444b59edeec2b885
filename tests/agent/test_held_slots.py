"""Slots that are not ready: the agent offers less, and claims nothing for them. The test plays the coordinator."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from coord import Agent, Task
from coord.embedded import EmbeddedServer
from coord.errors import FactInvalid
from coord.models.agents import AgentStatus
from coord.models.facts import AgentRegistered, AgentStatusChanged, TaskCompleted, TaskReleased
from coord.programs import Options, program_agent
from tests.agent.played_coordinator import PlayedCoordinator
from tests.unit.programs_world import script
from tests.waiting import wait_until


async def test_a_slot_that_is_held_gets_no_task(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """What was assigned to it before waits, and is claimed when the slot is ready."""
    over = asyncio.Event()

    @agent.task("wait")
    async def wait(task: Task) -> None:
        await over.wait()

    await agent.start()
    agent.hold_slots(1)
    for _ in range(2):
        await coordinator.assign("a", "wait")
    await wait_until(lambda: agent.running, "one runs")
    registered = await coordinator.wait_for("in:registry", AgentRegistered, 2)
    assert registered[-1].capacity == 1
    assert agent.running == 1
    agent.hold_slots(0)
    await wait_until(lambda: agent.running == 2, "both run")
    assert (await coordinator.wait_for("in:registry", AgentRegistered, 3))[-1].capacity == 2
    over.set()
    await coordinator.wait_for("in:reports", TaskCompleted, 2)


async def test_an_agent_without_a_slot_that_is_ready_is_busy(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It gives back what it is assigned all the same; also when its slots were held before it started."""
    agent.hold_slots(2)
    await agent.start()
    (changed,) = await coordinator.wait_for("in:registry", AgentStatusChanged)
    assert changed.status is AgentStatus.BUSY
    await coordinator.assign("a", "echo")
    (released,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert released.code == "no_slot"
    agent.hold_slots(0)
    assert (await coordinator.wait_for("in:registry", AgentStatusChanged, 2))[-1].status is AgentStatus.ACTIVE
    await coordinator.assign("a", "echo")
    await coordinator.wait_for("in:reports", TaskCompleted)


async def test_an_agent_claims_nothing_before_its_program_is_ready(
    server: EmbeddedServer, coordinator: PlayedCoordinator, tmp_path: Path
) -> None:
    """It is not even registered, and its limit for a task does not end the load."""
    (tmp_path / "loading").touch()
    program = script(
        tmp_path / "program",
        f"#!/bin/sh\ntouch {tmp_path}/started\nwhile [ -e {tmp_path}/loading ]; do sleep 0.05; done\n"
        """echo '{"ready": true}'\nwhile read -r line; do echo '{"task_id": "t1", "result": 1}'; done\n""",
    )
    options = Options(keep_alive=True, wait_ready=True, timeout_s=0.4)
    agent = program_agent(
        "a", [program], coordinator.settings, options, capabilities=["anything"], capacity=1, url=server.url
    )  # fmt: skip
    await coordinator.assign("a", "anything", task_id="t1")
    starting = asyncio.create_task(agent.start())
    try:
        await wait_until((tmp_path / "started").exists, "the program loads")
        await asyncio.wait([starting], timeout=0.8)
        assert not starting.done()
        assert await coordinator.facts("in:registry") == []
        assert await coordinator.inbox("a") == 1
        (tmp_path / "loading").unlink()
        await starting
        await coordinator.wait_for("in:reports", TaskCompleted)
    finally:
        await agent.stop(grace=0)


@pytest.mark.parametrize("count", [-1, 3, 1.5, "1"])
def test_a_number_of_slots_that_does_not_fit_is_refused(agent: Agent, count: Any) -> None:
    """The error has the valid range."""
    with pytest.raises(FactInvalid, match="count: expected a whole number from 0 to 2, not"):
        agent.hold_slots(count)
