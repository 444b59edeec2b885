"""Slots that are not ready: the agent offers less, and claims nothing for them. The test plays the coordinator."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Agent, Task
from coord.errors import FactInvalid
from coord.models.agents import AgentStatus
from coord.models.facts import AgentRegistered, AgentStatusChanged, TaskCompleted, TaskReleased
from tests.agent.played_coordinator import PlayedCoordinator
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


@pytest.mark.parametrize("count", [-1, 3, 1.5, "1"])
def test_a_number_of_slots_that_does_not_fit_is_refused(agent: Agent, count: Any) -> None:
    """The error has the valid range."""
    with pytest.raises(FactInvalid, match="count: expected a whole number from 0 to 2, not"):
        agent.hold_slots(count)
