"""One cell for each test of a script, on every server; afterwards its books must balance and its keys must end."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from coord.config import Settings
from tests.ledger import assert_keys_end, assert_ledger
from tests.scripts.cell import Cell


@pytest.fixture
async def cell(redis_or_fake: Redis, settings: Settings) -> AsyncIterator[Cell]:
    """A cell with its scripts loaded and its groups made, at ``START``."""
    made = Cell(redis_or_fake, settings)
    await made.begin()
    yield made
    # Scripts build every key from the namespace and take none from outside.
    assert all([key.startswith(made.keys.prefix.encode()) async for key in made.redis.scan_iter(count=1000)])
    if not made.broken:
        await assert_ledger(made.redis, made.keys, trimmed=made.trimmed)
        await assert_keys_end(made.redis, made.keys)
