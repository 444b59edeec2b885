"""Fixtures of the agent's tests: a played coordinator, and an agent that the test starts."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from coord import Agent, Task
from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.agent.desk import Desk
from tests.agent.played_coordinator import PlayedCoordinator, played_coordinator


@pytest.fixture
async def coordinator(redis: Redis, settings: Settings) -> AsyncIterator[PlayedCoordinator]:
    """A coordinator whose registry answers."""
    async with played_coordinator(redis, settings) as coordinator:
        yield coordinator


@pytest.fixture
async def agent(server: EmbeddedServer, coordinator: PlayedCoordinator) -> AsyncIterator[Agent]:
    """An agent for two tasks at a time that echoes; started by the test."""
    agent = Agent("a", url=server.url, settings=coordinator.settings, capacity=2, heartbeat_interval=0.1)

    @agent.task("echo")
    async def echo(task: Task) -> Any:
        return task.payload

    yield agent
    coordinator.answers.clear()
    await agent.stop(grace=0.5)


@pytest.fixture
async def desk() -> Desk:
    """One for two tasks at a time."""
    return Desk(2)
