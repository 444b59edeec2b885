"""Fixtures of the client's tests: a client whose workers the test plays."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.client.played_workers import PlayedWorkers, workers_of_a_client


@pytest.fixture
async def workers(
    server: EmbeddedServer, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PlayedWorkers]:
    """Those of a client, which looks at records often."""
    async with workers_of_a_client(server, redis, settings, monkeypatch) as workers:
        yield workers
