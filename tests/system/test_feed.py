"""Following the logs: as one, in order, across the absences of Redis, and honest about what was lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from pathlib import Path

import pytest
from redis.asyncio import Redis

from coord.background import cancel_and_wait
from coord.client import events as feed
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from coord.models.events import RESET, TRIMMED, Event
from tests.waiting import wait_until


@pytest.fixture
def keys(namespace: str) -> Keys:
    """Of this test's own cell, in which nothing but the test works."""
    return Keys(namespace)


async def tell(redis: Redis, keys: Keys, log: str, kind: str, entry_id: str = "*") -> str:
    """Append an event to a log; its id."""
    entry: bytes = await redis.execute_command("XADD", keys.of(f"log:{log}"), entry_id, "type", kind)
    return entry.decode()


async def told(stream: AsyncGenerator[Event]) -> list[tuple[str, str]]:
    """Everything until the end: type and id."""
    async with aclosing(stream):
        return [(event.type, event.id) async for event in stream]


class Listener:
    """Follows in a task of its own."""

    def __init__(self, stream: AsyncGenerator[Event]) -> None:
        self.heard: list[Event] = []
        self._task = asyncio.create_task(self._listen(stream))

    async def _listen(self, stream: AsyncGenerator[Event]) -> None:
        async with aclosing(stream):
            async for event in stream:
                self.heard.append(event)

    async def hears(self, kind: str) -> Event:
        """Wait for an event of a type."""

        def found() -> Event | None:
            if self._task.done():
                self._task.result()
            return next((event for event in self.heard if event.type == kind), None)

        event = await wait_until(found, f"{kind} is heard", 30)
        assert event is not None
        return event

    async def end(self) -> None:
        """Listen no more."""
        await cancel_and_wait(self._task)


@pytest.fixture
async def listen(redis: Redis, keys: Keys) -> AsyncIterator[list[Listener]]:
    """Listeners that end with the test."""
    listeners: list[Listener] = []
    yield listeners
    for one in listeners:
        await one.end()


async def test_three_logs_are_one(redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of their ids, also where one log holds much more than is read at a time."""
    monkeypatch.setattr(feed, "COUNT", 3)
    for n in range(20):
        await tell(redis, keys, "tasks", f"t{n}", f"{n * 10 + 1}-0")
    for n in range(0, 20, 5):
        await tell(redis, keys, "agents", f"a{n}", f"{n * 10 + 1}-1")
        await tell(redis, keys, "messages", f"m{n}", f"{n * 10 + 2}-0")
    heard = await told(feed.follow_events(redis, keys, since="0-0", follow=False))
    assert len(heard) == 28
    assert [one for _, one in heard] == sorted(
        (one for _, one in heard), key=lambda one: tuple(map(int, one.split("-")))
    )
    assert await told(feed.follow_events(redis, keys, since=heard[-2][1], follow=False)) == heard[-1:]
    assert await told(feed.follow_events(redis, keys, follow=False)) == []


async def test_only_what_happens_from_now_on(redis: Redis, keys: Keys, listen: list[Listener]) -> None:
    """Also in a log that does not exist yet."""
    await tell(redis, keys, "tasks", "before")
    listen.append(Listener(feed.follow_events(redis, keys, block_ms=50)))
    # It has its place once it has asked; what is told until then is before now.
    await wait_until(lambda: _is_blocked(redis), "it listens")
    await tell(redis, keys, "messages", "after")
    await listen[0].hears("after")
    assert [event.type for event in listen[0].heard] == ["after"]


async def _is_blocked(redis: Redis) -> bool:
    return int((await redis.info("clients"))["blocked_clients"]) > 0


async def test_events_that_were_trimmed_away_are_told_of(redis: Redis, keys: Keys) -> None:
    """In their place, and how many, for whoever was there before; what is left comes after it."""
    ids = [await tell(redis, keys, "tasks", f"t{n}") for n in range(10)]
    await redis.xtrim(keys.of("log:tasks"), maxlen=4, approximate=False)
    # From the beginning is from whatever there is.
    assert [kind for kind, _ in await told(feed.follow_events(redis, keys, since="0-0", follow=False))] == [
        "t6",
        "t7",
        "t8",
        "t9",
    ]
    # From an event that is gone: something is missing, nobody knows how much.
    heard = await told(feed.follow_events(redis, keys, since=ids[2], follow=False))
    assert [kind for kind, _ in heard] == [TRIMMED, "t6", "t7", "t8", "t9"]
    # From an event that is there: nothing is missing.
    assert [kind for kind, _ in await told(feed.follow_events(redis, keys, since=ids[7], follow=False))] == ["t8", "t9"]


async def test_who_reads_too_slowly_is_told_how_many_are_missing(
    redis: Redis, keys: Keys, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While it follows, the count is exact."""
    monkeypatch.setattr(feed, "COUNT", 2)
    for n in range(4):
        await tell(redis, keys, "tasks", f"t{n}")
    async with aclosing(feed.follow_events(redis, keys, since="0-0", block_ms=50)) as stream:
        assert [(await anext(stream)).type for _ in range(2)] == ["t0", "t1"]
        for n in range(4, 20):
            await tell(redis, keys, "tasks", f"t{n}")
        await redis.xtrim(keys.of("log:tasks"), maxlen=3, approximate=False)
        lost = await anext(stream)
        assert (lost.log, lost.type, lost.fields) == ("tasks", TRIMMED, {"missed": "15"})
        assert [(await anext(stream)).type for _ in range(3)] == ["t17", "t18", "t19"]
        await redis.delete(keys.of("log:tasks"))
        assert (await anext(stream)).type == RESET
        await tell(redis, keys, "tasks", "anew")
        assert (await anext(stream)).type == "anew"


async def test_it_goes_on_when_redis_was_away(tmp_path: Path, keys: Keys, listen: list[Listener]) -> None:
    """Killed and started again: what is told then is heard, once, and the absence was said."""
    server = EmbeddedServer.start(tmp_path / "data", extra=("--appendfsync", "always"))
    said: list[str] = []
    try:
        redis = connect(server.url, Settings(), retries=0)
        await tell(redis, keys, "tasks", "first")
        listen.append(Listener(feed.follow_events(redis, keys, since="0-0", block_ms=50, on_outage=said.append)))
        await listen[0].hears("first")
        server.kill()
        await wait_until(lambda: said, "the absence is said", 30)
        server.restart()
        await wait_until(lambda: said[-1] == "Redis is back", "its return is said", 30)
        await tell(redis, keys, "tasks", "second")
        await listen[0].hears("second")
        assert [event.type for event in listen[0].heard] == ["first", "second"]
        assert len(said) == 2
        await listen[0].end()
        await redis.aclose()
    finally:
        server.stop(force=True)
