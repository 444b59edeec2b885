"""The hub of events with a real server: what listeners get, from where, and what becomes of those that do not read."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from msgspec.structs import replace
from redis.asyncio import Redis

from coord.client.events import LogEvent
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.gateway import event_hub
from coord.gateway.backend import Backend
from coord.gateway.errors import RequestError
from coord.gateway.event_filter import EventFilter
from coord.gateway.event_hub import EventHub, Listener
from coord.keys import Keys
from coord.models.events import LOGS, Event, decode_position
from tests.waiting import wait_until

ALL = EventFilter()


class Cell:
    """The logs of a cell, in which only the test writes, and hubs that read them."""

    def __init__(self, redis: Redis, keys: Keys, backend: Backend) -> None:
        self.redis = redis
        self.keys = keys
        self.backend = backend
        self.hub = self.new_hub()
        self.written: list[str] = []  #: ``data.name`` of each event
        self._joined: list[tuple[EventHub, Listener]] = []

    def new_hub(self, most: int = 100) -> EventHub:
        """Return the hub of another gateway."""
        return EventHub(self.backend, most)

    async def write(self, log: str, kind: str, *names: str, **fields: str) -> str:
        """Append an entry with an event for each name; its id."""
        values = {"type": kind, "task_id": " ".join(names), "name": " ".join(names), **fields}
        if log != "tasks":
            del values["task_id"]
        pairs = [text for pair in values.items() for text in pair]
        entry: bytes = await self.redis.execute_command("XADD", self.keys.of(f"log:{log}"), "*", *pairs)
        self.written += names
        return entry.decode()

    async def join(self, start: str | None = None, wanted: EventFilter = ALL, hub: EventHub | None = None) -> Received:
        """Add a listener that is read from now on."""
        chosen = hub or self.hub
        listener = await chosen.join(wanted, None if start is None else decode_position(start))
        self._joined.append((chosen, listener))
        return Received(listener)

    async def close(self) -> None:
        """Remove all listeners and disconnect."""
        for hub, listener in self._joined:
            hub.leave(listener)
        await asyncio.sleep(0)
        await self.backend.close()


class Received:
    """What a listener got."""

    def __init__(self, listener: Listener) -> None:
        self.listener = listener
        self.events: list[dict[str, Any]] = []
        self._task: asyncio.Task[None] | None = None

    def read(self) -> Received:
        """Read in a task, for ever."""
        self._task = asyncio.create_task(self._read())
        return self

    async def _read(self) -> None:
        while (batch := await self.listener.next()) is not None:
            self.events += [json.loads(one.json) for one in batch.events]

    @property
    def names(self) -> list[str]:
        """The events, by the names that the test gave them."""
        return [event["data"]["name"] for event in self.events if "name" in event["data"]]

    @property
    def gaps(self) -> list[dict[str, Any]]:
        """The gaps."""
        return [event["data"] for event in self.events if event["type"] == "coord.gap"]

    async def counts(self, number: int) -> None:
        """Wait for a number of events."""
        await wait_until(lambda: len(self.names) >= number, f"{number} events are received")

    async def has(self, name: str) -> None:
        """Wait for an event."""
        await wait_until(lambda: name in self.names, f"{name} is received")


@pytest.fixture
async def cell(redis: Redis, server: EmbeddedServer, settings: Settings) -> AsyncIterator[Cell]:
    """The logs, and a hub."""
    backend = Backend(replace(settings, redis_url=server.url))
    backend.open(lambda error: pytest.fail(str(error)))

    def is_open() -> bool:
        try:
            return backend.client is not None
        except Exception:  # noqa: BLE001 -- not yet
            return False

    await wait_until(is_open, "the backend is open")
    built = Cell(redis, Keys(settings.namespace), backend)
    yield built
    await built.close()


async def test_a_position_continues_exactly(cell: Cell) -> None:
    """From each event, of five logs and in the middle of an entry of several: all that follows, once."""
    live = (await cell.join()).read()
    for n in range(4):
        for log in random.Random(n).sample(LOGS, len(LOGS)):
            await cell.write(log, f"{log.rstrip('s')}.n", f"{log}-{n}")
        await cell.write("tasks", "task.queued", *(f"batch-{n}-{i}" for i in range(3)))
    await live.counts(len(cell.written))
    assert sorted(live.names) == sorted(cell.written)
    assert len({(event["source"], event["id"]) for event in live.events}) == len(cell.written)
    other = cell.new_hub()
    for at, event in enumerate(live.events):
        again = (await cell.join(event["position"], hub=other)).read()
        await again.counts(len(live.events) - at - 1)
        assert sorted(identities(again)) == sorted(identities(live)[at + 1 :])
    assert not live.gaps


def identities(received: Received) -> list[tuple[str, str]]:
    """The events, as every gateway names them."""
    return [(event["source"], event["id"]) for event in received.events]


@pytest.mark.guarantee("no-lost-events")
async def test_listeners_join_while_events_come(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """With small pages, so that they meet the hub in all kinds of places: nothing is lost or sent twice."""
    monkeypatch.setattr(event_hub, "PAGE_ENTRIES", 2)
    monkeypatch.setattr(event_hub, "BATCH", 3)
    live = (await cell.join()).read()
    start = live.listener.position
    choice = random.Random(7)
    joined: list[tuple[str, Received]] = []
    for n in range(120):
        names = [f"e{n}"] if choice.random() < 0.7 else [f"e{n}-{i}" for i in range(5)]
        log = "tasks" if len(names) > 1 else choice.choice(LOGS)
        await cell.write(log, "task.queued", *names)
        if n % 6 == 5:
            since = choice.choice([start, *(event["position"] for event in live.events)])
            joined.append((since, (await cell.join(since)).read()))
    await live.counts(len(cell.written))
    assert sorted(live.names) == sorted(cell.written)
    positions = [start, *(event["position"] for event in live.events)]
    for since, received in joined:
        expected = live.names[positions.index(since) :]
        await received.counts(len(expected))
        assert sorted(received.names) == sorted(expected)
        assert not received.gaps
        # Its own positions continue exactly as well.
        middle = len(received.events) // 2
        rest = (await cell.join(received.events[middle]["position"])).read()
        await rest.counts(len(received.events) - middle - 1)
        assert sorted(rest.names) == sorted(received.names[middle + 1 :])


@pytest.mark.parametrize("batch", [1, 100])
async def test_a_listener_joins_a_hub_that_is_behind(cell: Cell, monkeypatch: pytest.MonkeyPatch, batch: int) -> None:
    """It gets from the hub only what it has not read itself, and its positions include what it has."""
    monkeypatch.setattr(event_hub, "BATCH", batch)
    live = (await cell.join()).read()
    start = live.listener.position
    gate, read = asyncio.Event(), cell.hub._reader.read

    async def read_later(block_ms: int | None = None) -> list[LogEvent]:
        await gate.wait()
        return await read(block_ms)

    monkeypatch.setattr(cell.hub._reader, "read", read_later)
    await cell.write("tasks", "task.queued", "before")
    await live.has("before")  # what the hub was reading; its next read waits
    await cell.write("tasks", "task.queued", "b1", "b2", "b3")
    await cell.write("agents", "agent.changed", "a1")
    received = (await cell.join(start)).read()
    await received.counts(5)
    assert received.listener in cell.hub._groups[ALL].skipping
    await cell.write("tasks", "task.queued", "b4", "b5")
    await cell.write("agents", "agent.changed", "a2")
    gate.set()
    await received.counts(8)
    await live.counts(8)
    assert sorted(received.names) == sorted(cell.written)
    await wait_until(lambda: received.listener in cell.hub._groups[ALL].joined, "it is one of its group")
    for at, event in enumerate(received.events):
        again = (await cell.join(event["position"])).read()
        await again.counts(7 - at)
        assert sorted(identities(again)) == sorted(identities(received)[at + 1 :])


async def test_a_listener_joins_a_hub_that_is_ahead(cell: Cell) -> None:
    """The hub reads an event after the last page of the listener, and before it joins: it reads another page."""
    live = (await cell.join()).read()
    await cell.write("tasks", "task.queued", "first")
    await live.has("first")
    late = await cell.join("0")
    reader = late.listener.reader
    assert reader is not None
    read = reader.read
    pages = 0

    async def read_then_wait(block_ms: int | None = None) -> list[LogEvent]:
        nonlocal pages
        pages += 1
        found = await read(block_ms)
        if pages == 1:
            await cell.write("agents", "agent.changed", "second")
            await live.has("second")
        return found

    reader.read = read_then_wait  # type: ignore[method-assign]
    late.read()
    await late.counts(2)
    assert (late.names, pages) == (["first", "second"], 2)


@pytest.mark.guarantee("event-gaps")
async def test_a_trimmed_position_begins_with_a_gap(cell: Cell) -> None:
    """The gap says which log; after it come the events that are left, and its own position has no gap."""
    live = (await cell.join()).read()
    start = live.listener.position
    for n in range(10):
        await cell.write("tasks", "task.queued", f"e{n}")
    await cell.write("tasks", "task.queued", "last")
    await live.has("last")
    await cell.redis.xtrim(cell.keys.of("log:tasks"), maxlen=4, approximate=False)
    for since, missed in ((start, 7), (live.events[1]["position"], None)):
        again = (await cell.join(since)).read()
        await again.has("last")
        assert again.events[0]["type"] == "coord.gap"
        assert (again.gaps[0]["reason"], again.gaps[0]["log"], again.gaps[0].get("missed")) == (
            "trimmed",
            "tasks",
            missed,
        )
        assert again.names == ["e7", "e8", "e9", "last"]
        after = (await cell.join(again.events[0]["position"])).read()
        await after.has("last")
        assert (after.names, after.gaps) == (again.names, [])
    oldest = (await cell.join("0")).read()
    await oldest.has("last")
    assert (oldest.names, oldest.gaps) == (["e7", "e8", "e9", "last"], [])
    whole = (await cell.join(live.events[7]["position"])).read()
    await whole.has("last")
    assert (whole.names, whole.gaps) == (["e8", "e9", "last"], [])


@pytest.mark.guarantee("event-gaps")
async def test_a_log_that_was_reset_is_a_gap(cell: Cell) -> None:
    """For a listener that is connected, and for one that resumes; then events go on."""
    live = (await cell.join()).read()
    await cell.write("tasks", "task.queued", "before")
    await live.has("before")
    await cell.redis.delete(cell.keys.of("log:tasks"))
    again = (await cell.join(live.events[0]["position"])).read()
    for received in (live, again):
        await wait_until(lambda one=received: one.gaps, "the reset is received")  # type: ignore[misc]
        assert received.gaps[0]["reason"] == "reset"
    await cell.write("tasks", "task.queued", "after")
    for received in (live, again):
        await received.has("after")


@pytest.mark.guarantee("event-gaps", "slow-listeners")
async def test_a_slow_listener_gets_a_gap_and_holds_no_memory(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others get everything; its gap says from where to resume, and there it is all again."""
    monkeypatch.setattr(event_hub, "QUEUE", 50)
    monkeypatch.setattr(event_hub, "BATCH", 10)
    slow, live = await cell.join(), (await cell.join()).read()
    await cell.write("tasks", "task.queued", "first")
    batch = await slow.listener.next()
    assert batch is not None
    for n in range(0, 200, 10):
        await cell.write("tasks", "task.queued", *(f"e{n + i}" for i in range(10)))
    await live.has("e199")
    assert slow.listener._waiting <= 50
    assert sum(len(one.events) for one in slow.listener._queue) == slow.listener._waiting
    slow.read()
    await wait_until(lambda: slow.gaps, "the gap is received")
    assert slow.gaps[-1] == {"reason": "slow", "resume_from": batch.position}
    assert slow.events[-1]["position"] == batch.position
    await cell.write("tasks", "task.queued", "last")
    await slow.has("last")
    assert slow.names == ["last"]
    again = (await cell.join(slow.gaps[-1]["resume_from"])).read()
    await again.has("last")
    assert again.names == [f"e{n}" for n in range(200)] + ["last"]
    assert not live.gaps


async def test_a_listener_that_takes_nothing_is_ended(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its connection is closed; one for which nothing waits stays, and gets signs of life that move its position."""
    monkeypatch.setattr(event_hub, "STALL_S", 0.05)
    monkeypatch.setattr(event_hub, "KEEP_ALIVE_S", 0.05)
    monkeypatch.setattr(event_hub, "LOOK_S", 0.01)
    stuck, idle = await cell.join(), await cell.join(wanted=EventFilter(types=("message",)))
    closed = asyncio.Event()
    stuck.listener.on_stall = closed.set
    live = (await cell.join()).read()
    await cell.write("tasks", "task.queued", "first")
    assert await stuck.listener.next() is not None
    await asyncio.wait_for(closed.wait(), 30)
    assert await stuck.listener.next() is None
    await live.has("first")

    async def moved() -> bool:
        batch = await idle.listener.next()
        assert batch is not None
        assert batch.events == ()
        return batch.position >= str(live.events[0]["position"])

    await wait_until(moved, "the position has moved")


async def test_filters_share_what_is_encoded(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """An event is encoded once for all, and not at all if nobody wants it; equal filters get the same bytes."""
    encoded: list[str] = []
    one, two = await cell.join(wanted=EventFilter(tasks=("t1",))), await cell.join(wanted=EventFilter(tasks=("t1",)))
    agents = (await cell.join(wanted=EventFilter(types=("task.completed",), agents=("a1",)))).read()
    encode = cell.hub._encoder.encode

    def counted(event: Event, number: int, position: str) -> bytes:
        encoded.append(event.fields["name"])
        return encode(event, number, position)

    monkeypatch.setattr(cell.hub._encoder, "encode", counted)
    await cell.write("tasks", "task.started", "t0", "t1", "t2", agent_id="a1 a1 a2")
    await cell.write("tasks", "task.completed", "t1", agent_id="a2")
    await cell.write("tasks", "task.completed", "t3", "t4", agent_id="a1 a2")
    await agents.has("t3")
    assert agents.names == ["t3"]
    assert sorted(encoded) == ["t1", "t1", "t3"]
    first, second = await one.listener.next(), await two.listener.next()
    assert first is not None
    assert first is second
    assert first.sse is first.sse


async def test_the_hub_reads_only_while_there_are_listeners(cell: Cell) -> None:
    """It stops with the last one, and begins again with the next; a hub that is closed takes none."""
    hub = cell.new_hub(most=1)
    received = await cell.join(hub=hub)
    reading = list(hub._work)
    hub.leave(received.listener)
    await asyncio.gather(*reading, return_exceptions=True)
    assert all(task.cancelled() for task in reading)
    await cell.write("tasks", "task.queued", "unread")
    assert (await cell.join(hub=hub)).listener.position != received.listener.position
    hub.take_place()
    with pytest.raises(RequestError, match="COORD_GATEWAY_LISTENERS"):
        hub.take_place()
    hub.free_place()
    hub.close()
    with pytest.raises(RequestError, match="shuts down"):
        hub.take_place()
    with pytest.raises(RequestError, match="shuts down"):
        await cell.join(hub=hub)
