"""What the stories share: a client of the test's own cell, and agents that end with the test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from coord import Agent, Client
from tests.running import RunningCell

MakeAgent = Callable[..., Agent]


@pytest.fixture
async def client(cell: RunningCell) -> AsyncIterator[Client]:
    """A client of the cell."""
    async with Client(cell.url, settings=cell.settings) as client:
        yield client


@pytest.fixture
async def make_agent(cell: RunningCell) -> AsyncIterator[MakeAgent]:
    """Makes agents of the cell; the test starts them, and they are stopped when it has ended."""
    made: list[Agent] = []

    def make(agent_id: str, **options: Any) -> Agent:
        agent = Agent(agent_id, url=cell.url, settings=cell.settings, **options)
        made.append(agent)
        return agent

    yield make
    for agent in made:
        await agent.stop(grace=1.0)
