"""⚠ What the registry's scripts share may be of a wrong type: a loss cannot be taken back, so nothing is begun then."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
from redis.exceptions import ResponseError

from tests.scripts.cell import Cell

SHARED = [
    "agents:active",
    "agents:all",
    "agents:by:capability:new",
    "agents:by:status:active",
    "agents:by:status:inactive",
    "agents:by:status:stale",
    "agents:departed",
    "agents:expiry",
    "agents:health",
    "agents:lost",
    "clock",
    "counters",
    "in:losses",
    "inflight:a1",
]


async def replaced(cell: Cell) -> None:
    """A newer process registers, with a capability that nobody had."""
    await cell.register(incarnation="i2", interval_ms=5_000, digest="d2", facets="type:worker capability:new")


async def declared_stale(cell: Cell) -> None:
    """Somebody says that it is gone."""
    await cell.change_status(status="stale")


async def left(cell: Cell) -> None:
    """It leaves."""
    await cell.deregister()


async def silent(cell: Cell) -> None:
    """It misses its beats."""
    for _ in range(8):
        cell.now += 2_000
        await cell.run(cell.scripts.tick_liveness(256))


@asynccontextmanager
async def broken(cell: Cell, name: str) -> AsyncIterator[None]:
    """A key is of a wrong type for a while."""
    key, kept = cell.keys.of(name), cell.keys.of("kept")
    there = bool(await cell.redis.exists(key))
    if there:
        await cell.redis.rename(key, kept)
    await cell.redis.set(key, "x")
    yield
    if there:
        await cell.redis.rename(kept, key)
    else:
        await cell.redis.delete(key)


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("end", [replaced, declared_stale, left, silent], ids=lambda end: end.__name__)
async def test_a_loss_is_announced_of_a_term_that_has_ended(
    cell: Cell, end: Callable[[Cell], Awaitable[None]], name: str
) -> None:
    """Tried three times meanwhile, as a worker does, and then when it is mended: one loss, of the term that ended."""
    await cell.register(interval_ms=5_000)
    await cell.assign()
    async with broken(cell, name):
        for _ in range(3):
            with contextlib.suppress(ResponseError):
                await end(cell)
        term = int(await cell.redis.hget(cell.keys.agent("a1"), "term") or 0)
    assert bool(await cell.stream("in:losses")) == (term == 2)
    await end(cell)
    agent = await cell.agent()
    assert agent.term == 2
    # (Until somebody takes back what it had, the tick tells of it again.)
    assert {one["data"] for one in await cell.stream("in:losses")} == {'{"agent_id":"a1","term":1}'}
    assert await cell.redis.sismember(cell.keys.of("agents:active"), "a1") == (end is replaced)


@pytest.mark.parametrize("log", ["log:agents", "log:messages"])
async def test_a_log_that_cannot_be_written_undoes_nothing(cell: Cell, log: str) -> None:
    """What it would tell of has happened: an agent is there once, and a message is delivered once."""
    async with broken(cell, log):
        assert await cell.register() == "REGISTERED"
        delivery = cell.scripts.deliver([await cell.delivery()])
        assert await cell.word(delivery) == "DELIVERED"
        assert await cell.word(delivery) == "GONE"
    assert len(await cell.stream("inbox:a1:normal")) == 1
    assert await cell.counter("messages_delivered") == 1


@pytest.mark.parametrize("name", ["counters", "messages:dead"])
async def test_a_message_is_delivered_once(cell: Cell, name: str) -> None:
    """It waits until what every message may need is of its type."""
    await cell.register()
    delivery = cell.scripts.deliver([await cell.delivery()])
    async with broken(cell, name):
        for _ in range(3):
            with pytest.raises(ResponseError, match="WRONGTYPE"):
                await cell.scripts.run(delivery)
    assert await cell.stream("inbox:a1:normal") == []
    assert await cell.word(delivery) == "DELIVERED"
