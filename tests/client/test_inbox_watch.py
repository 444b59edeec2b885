"""The watch of many inboxes on one connection: an entry wakes who waits for it, and nobody else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.inbox_watch import InboxWatch, wait_for
from coord.keys import Keys
from tests.waiting import wait_until


class World:
    """A watch, and a client that fills inboxes."""

    def __init__(self, url: str, settings: Settings) -> None:
        self.redis: Redis = connect(url, settings)
        self.keys = Keys(settings.namespace)
        self.watch = InboxWatch(url, settings)

    async def put(self, agent_id: str, lane: str, **fields: str) -> str:
        """Put an entry into a lane; return its id."""
        pairs = [part for pair in fields.items() for part in pair]
        entry: bytes = await self.redis.execute_command("XADD", self.keys.inbox(agent_id, lane), "*", *pairs)
        return entry.decode()


@pytest.fixture
async def world(server: EmbeddedServer, settings: Settings) -> AsyncIterator[World]:
    """A watch on a real server."""
    world = World(server.url, settings)
    await world.watch.open()
    yield world
    await world.watch.close()
    await world.redis.aclose()


async def test_lanes_come_in_the_order_of_their_priority_up_to_the_limit(world: World) -> None:
    """The highest lane first, the oldest entry of a lane first; nothing is deleted."""
    await world.put("a", "low", n="4")
    await world.put("a", "normal", n="2")
    await world.put("a", "normal", n="3")
    await world.put("a", "critical", n="1")
    found = await world.watch.read("a", 10)
    assert [(one.lane.value, one.fields[b"n"]) for one in found] == [
        ("critical", b"1"), ("normal", b"2"), ("normal", b"3"), ("low", b"4"),
    ]  # fmt: skip
    assert [one.fields[b"n"] for one in await world.watch.read("a", 2)] == [b"1", b"2"]


async def test_an_entry_wakes_who_waits_for_its_inbox_and_nobody_else(world: World) -> None:
    """⚠ Also the second entry, and one in an inbox that was there before; 500 others cost no command."""
    others = [world.watch.watching(f"b{number}") for number in range(500)]
    signals = [one.__enter__() for one in others]
    for number in range(500):
        await world.watch.read(f"b{number}", 1)
    with world.watch.watching("a") as signal:
        for lane in ("low", "critical", "low"):
            signal.clear()
            before = len(await world.watch.read("a", 10))
            assert not signal.is_set()
            await world.put("a", lane, n="1")
            assert await wait_for(signal, 30)
            assert len(await world.watch.read("a", 10)) == before + 1
    assert not any(signal.is_set() for signal in signals)
    for one in others:
        one.__exit__(None, None, None)


async def test_after_a_lost_connection_everybody_looks_again(world: World) -> None:
    """What came while the connection was away was not noticed, so each watcher is woken; later entries are noticed."""
    with world.watch.watching("a") as signal:
        signal.clear()
        assert await world.watch.read("a", 10) == []
        (tracking,) = [one["id"] for one in await world.redis.client_list() if "t" in one["flags"]]
        assert await world.redis.execute_command("CLIENT", "KILL", "ID", tracking)
        assert await wait_for(signal, 30)

        async def reads() -> bool:
            return await world.watch.read("a", 10) == []

        await wait_until(reads, "the connection is back")
        signal.clear()
        await world.watch.read("a", 10)
        await world.put("a", "high", n="1")
        assert await wait_for(signal, 30)


async def test_a_wait_ends_in_time(world: World) -> None:
    """Without an entry it returns False; with no time left it says what is known."""
    signal = asyncio.Event()
    assert not await wait_for(signal, 0.01)
    signal.set()
    assert await wait_for(signal, 0)
