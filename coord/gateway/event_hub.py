"""The hub of events: reads the logs once for all listeners of a gateway.

``EventHub`` reads while there are listeners, on one connection. It decodes each event once, encodes it once if anyone
wants it, and hands the same bytes to every listener that wants it. All listeners with one filter share their batches.

A ``Listener`` that resumes reads what it missed from Redis, a page at a time and only as fast as it is read, and then
joins the hub: when it has read at least as far as the hub, it skips what it has read. So nothing is lost or sent twice.

A listener that reads too slowly loses its queue, and finds a gap in its place. The gap says from where to resume. One
that does not read at all is ended.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple, TypeVar

from redis import exceptions as redis_errors

from coord import logs
from coord.background import keep
from coord.backoff import Backoff
from coord.client.events import AWAY_S, LogEvent, LogReader
from coord.gateway.backend import Backend
from coord.gateway.cloud_events import EventEncoder
from coord.gateway.errors import RequestError
from coord.gateway.event_filter import EventFilter, FilterIndex
from coord.models.events import LOGS, RESET, TRIMMED, Event, LogPlace, Position, encode_place, encode_position
from coord.models.ids import EntryOrder, entry_order

log = logs.get_logger()

#: Entries of each log in one read of the hub, and of a listener that resumes. An entry holds up to some hundred events.
HUB_ENTRIES, PAGE_ENTRIES = 100, 20
#: Listeners that read a page at a time.
PAGES = 4
#: Events in one batch: other work of the gateway goes on between two of them.
BATCH = 100
#: Events that may wait for a listener. One that is further behind gets a gap instead.
QUEUE = 10_000
#: Seconds between two signs of life for a listener; they also move its position over events that it does not want.
KEEP_ALIVE_S = 15.0
#: A listener that has taken nothing for so many seconds while something waits for it is ended.
STALL_S = 30.0
#: Seconds of a pause of the hub for each batch that a listener got, so that waking them leaves time for other work; and
#: the least and the longest pause.
PAUSE_EACH_S, PAUSE_S = 0.0001, (0.005, 0.25)
#: Seconds between two looks at the listeners.
LOOK_S = 1.0

T = TypeVar("T")

#: In place of the number of events of an entry that were read: all.
_WHOLE = 1 << 62


class Encoded(NamedTuple):
    """An event as JSON."""

    position: str
    json: bytes


class Batch:
    """Some events for all listeners with one filter; without events, a sign of life."""

    def __init__(self, events: Sequence[Encoded], position: str) -> None:
        self.events = events
        self.position = position  #: after the last event

    @cached_property
    def sse(self) -> bytes:
        """The events as server-sent events, encoded once."""
        if not self.events:
            return f": alive\nid: {self.position}\n\n".encode()
        return b"".join(b"id: %b\ndata: %b\n\n" % (one.position.encode(), one.json) for one in self.events)

    @cached_property
    def texts(self) -> list[str]:
        """The events as text frames, decoded once."""
        if not self.events:
            return [f'{{"position":"{self.position}"}}']
        return [one.json.decode() for one in self.events]


class Listener:
    """One listener; ``next`` returns what it gets. Made by ``EventHub.join``."""

    def __init__(self, hub: EventHub, wanted: EventFilter, position: str) -> None:
        self.wanted = wanted
        self.position = position  #: up to which ``next`` has returned all that it wants
        self.reader: LogReader | None = None  #: while it reads what it missed
        self.skips: dict[str, LogPlace] = {}  #: up to where it has read itself, when it has joined the hub again
        self.taken_at: float | None = None  #: when it took a batch that it has not passed on yet
        #: Called when the listener takes nothing any more: closes its connection.
        self.on_stall: Callable[[], None] = lambda: None
        self._hub = hub
        self._queue: deque[Batch] = deque()
        self._waiting = 0
        self._is_behind = False
        self._is_over = False
        self._wake: asyncio.Future[None] | None = None

    async def next(self) -> Batch | None:
        """Return the next batch, once there is one; None at the end."""
        self.taken_at = None
        while not self._is_over:
            if self._is_behind:
                self._is_behind = False
                return self._take(self._hub.slow_batch(self.position))
            if self._queue:
                batch = self._queue.popleft()
                self._waiting -= len(batch.events)
                return self._take(batch)
            if self.reader is not None:
                for batch in await self._hub.read_page(self, self.reader):
                    self._queue.append(batch)
                    self._waiting += len(batch.events)
                continue
            self._wake = asyncio.get_running_loop().create_future()
            try:
                await self._wake
            finally:
                self._wake = None
        return None

    def push(self, batch: Batch) -> None:
        """Add a batch to what waits for the listener."""
        if self._is_behind or self._is_over:
            return
        if self._waiting + len(batch.events) > QUEUE:
            self._queue.clear()
            self._waiting, self._is_behind = 0, True
        else:
            self._queue.append(batch)
            self._waiting += len(batch.events)
        self._rouse()

    def is_idle(self) -> bool:
        """Return True if nothing waits for the listener, and it has passed on what it took."""
        return not self._queue and not self._is_behind and self.taken_at is None

    def end(self) -> None:
        """Let ``next`` return None."""
        self._is_over = True
        self._queue.clear()
        self._rouse()

    def _take(self, batch: Batch) -> Batch:
        self.position = batch.position
        self.taken_at = asyncio.get_running_loop().time()
        return batch

    def _rouse(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)


class _Group:
    """The listeners with one filter."""

    def __init__(self) -> None:
        self.joined: set[Listener] = set()
        self.skipping: set[Listener] = set()  # that have read further than the hub


class EventHub:
    """Reads the logs once for all listeners.

    Args:
        backend: the gateway's client.
        most: number of connections at most.
    """

    def __init__(self, backend: Backend, most: int) -> None:
        self._backend = backend
        self._most = most
        self._places: Counter[str] = Counter()  # by caller
        self._users = 0  # listeners, and those that are about to join
        self._listeners: set[Listener] = set()
        self._groups: dict[EventFilter, _Group] = {}
        self._index = FilterIndex()
        self._opening: asyncio.Task[None] | None = None
        self._work: list[asyncio.Task[None]] = []
        self._reader: LogReader
        self._encoder: EventEncoder
        self._position: dict[str, LogPlace] = {}
        self._parts: dict[str, str] = {}  # the same, encoded
        self._pages = asyncio.Semaphore(PAGES)
        self._is_closed = False

    def take_place(self, caller: str = "") -> None:
        """Count a connection, until ``free_place``.

        Args:
            caller: who connects, and has a tenth of the places at most; empty: security is off.

        Raises:
            RequestError: there are too many, or the gateway shuts down.
        """
        self._check_open()
        if self._places.total() >= self._most:
            raise RequestError(
                "overloaded", f"{self._most} listeners are connected (COORD_GATEWAY_LISTENERS); try again"
            )
        share = max(1, self._most // 10)
        if caller and self._places[caller] >= share:
            raise RequestError(
                "overloaded", f"{share} listeners are connected with your credential; use another one, or fewer"
            )
        self._places[caller] += 1

    def free_place(self, caller: str = "") -> None:
        """Count a connection no more."""
        self._places[caller] -= 1
        if not self._places[caller]:
            del self._places[caller]

    async def join(self, wanted: EventFilter, start: str | Position | None) -> Listener:
        """Add a listener, until ``leave``. Its connection has a place.

        Args:
            wanted: the events that it wants.
            start: None: from now on; an entry id: after it, in all logs; else a position.

        Raises:
            RequestError: the gateway shuts down.
            ServerUnavailable: Redis is not available.
        """
        self._users += 1
        try:
            await self._open()
            listener = Listener(self, wanted, encode_position(self._position))
            if start is not None:
                listener.reader = await self._backend.open_logs(start, PAGE_ENTRIES)
                listener.position = encode_position(listener.reader.position)
            self._check_open()
        except BaseException:
            self._release()
            raise
        if listener.reader is None:
            self._attach(listener)
        self._listeners.add(listener)
        return listener

    def leave(self, listener: Listener) -> None:
        """Remove a listener."""
        if listener in self._listeners:
            listener.end()
            self._listeners.discard(listener)
            self._detach(listener)
            self._release()

    def close(self) -> None:
        """End all listeners, and admit no other."""
        self._is_closed = True
        self._end_all()

    async def read_page(self, listener: Listener, reader: LogReader) -> list[Batch]:
        """Return what a listener that resumes gets next; attach it once it has read as far as the hub."""
        position = reader.position
        found = await self._read_missed(reader)
        events: list[Encoded] = []
        for event, place, number in found:
            position[event.log] = place
            if _is_gap(event) or listener.wanted.passes(event):
                text = encode_position(position)
                events.append(Encoded(text, self._encoder.encode(event, number, text)))
        position = reader.position
        if reader.is_full:
            pass
        elif all(_order(position[name]) >= _order(self._position[name]) for name in LOGS):
            listener.reader, listener.skips = None, position
            self._attach(listener)
        elif not found:
            await asyncio.sleep(PAUSE_S[0])  # the hub is ahead: what it has read is found by the next read
        return [Batch(some, some[-1].position) for some in chunks(events, BATCH)]

    def slow_batch(self, position: str) -> Batch:
        """Return the gap of a listener that read too slowly."""
        return Batch([Encoded(position, self._encoder.encode_slow(position))], position)

    def _check_open(self) -> None:
        if self._is_closed:
            raise RequestError("overloaded", "the gateway shuts down; try again")

    async def _open(self) -> None:
        """Start to read, unless the hub reads already."""
        if self._opening is None:
            self._opening = asyncio.create_task(self._start())
        opening = self._opening
        try:
            await asyncio.shield(opening)
        except BaseException:
            if opening.done() and self._opening is opening:
                self._opening = None
            raise

    async def _start(self) -> None:
        self._reader = await self._backend.open_logs(None, HUB_ENTRIES)
        self._encoder = EventEncoder(self._backend.client.connection.settings.namespace)
        self._position = self._reader.position
        self._parts = {name: encode_place(self._position[name]) for name in LOGS}
        self._work = [keep("events.read", self._read), keep("events.look", self._look)]

    def _release(self) -> None:
        """Stop to read when nobody listens any more."""
        self._users -= 1
        if self._users:
            return
        for task in self._work:
            task.cancel()
        if self._opening is not None:
            self._opening.cancel()
        self._work, self._opening = [], None

    async def _read(self) -> None:
        """Read the logs and pass the events on, for ever."""
        block_ms = self._backend.client.connection.settings.read_block_ms
        backoff, is_away = Backoff(*AWAY_S), False
        while True:
            try:
                found = await self._reader.read(block_ms)
            except (redis_errors.RedisError, OSError) as error:
                if not is_away:
                    log.warning("events.away", error=str(error))
                is_away = True
                await asyncio.sleep(backoff.next_s())
                continue
            if is_away:
                log.info("events.back")
                is_away = False
                backoff.reset()
            if found:
                await asyncio.sleep(await self._pass_on(found))

    async def _pass_on(self, found: list[LogEvent]) -> float:
        """Pass events on; return the seconds of the pause after them."""
        pushed = 0
        try:
            for some in chunks(found, BATCH):
                pushed += self._dispatch(some)
                await asyncio.sleep(0)
        except Exception:
            self._end_all()  # what was read would be missing; they resume from where they are
            raise
        least, longest = PAUSE_S
        return min(longest, max(least, pushed * PAUSE_EACH_S))

    def _dispatch(self, some: Sequence[LogEvent]) -> int:
        """Pass some events on to all listeners; return how many batches they got."""
        skipping = [listener for group in self._groups.values() for listener in group.skipping]
        pushed = sum(self._dispatch_to(listener, some) for listener in skipping)
        matched: dict[EventFilter, list[Encoded]] = {}
        for event, place, number in some:
            self._position[event.log] = place
            self._parts[event.log] = encode_place(place)
            filters = self._groups if _is_gap(event) else self._index.find(event)
            if filters:
                text = ".".join(self._parts.values())
                encoded = Encoded(text, self._encoder.encode(event, number, text))
                for wanted in filters:
                    matched.setdefault(wanted, []).append(encoded)
        for wanted, events in matched.items():
            batch = Batch(events, events[-1].position)
            for listener in self._groups[wanted].joined:
                listener.push(batch)
                pushed += 1
        for listener in skipping:
            self._end_skipping(listener)
        return pushed

    def _dispatch_to(self, listener: Listener, some: Sequence[LogEvent]) -> int:
        """Pass on what a listener has not read itself. Its positions are its own: they include what it has read."""
        events: list[Encoded] = []
        skips = listener.skips
        for event, place, number in some:
            if event.type == RESET or _order(place) > _order(skips[event.log]):
                skips[event.log] = place
                if _is_gap(event) or listener.wanted.passes(event):
                    text = encode_position(skips)
                    events.append(Encoded(text, self._encoder.encode(event, number, text)))
        if not events:
            return 0
        listener.push(Batch(events, events[-1].position))
        return 1

    def _end_skipping(self, listener: Listener) -> None:
        """Make a listener one of its group if the hub has read as far as it."""
        if all(_order(self._position[name]) >= _order(place) for name, place in listener.skips.items()):
            group = self._groups[listener.wanted]
            group.skipping.discard(listener)
            group.joined.add(listener)

    def _attach(self, listener: Listener) -> None:
        group = self._groups.get(listener.wanted)
        if group is None:
            group = self._groups[listener.wanted] = _Group()
            self._index.add(listener.wanted)
        if listener.skips:
            group.skipping.add(listener)
            self._end_skipping(listener)
        else:
            group.joined.add(listener)

    def _detach(self, listener: Listener) -> None:
        group = self._groups.get(listener.wanted)
        if group is None:
            return
        group.joined.discard(listener)
        group.skipping.discard(listener)
        if not group.joined and not group.skipping:
            del self._groups[listener.wanted]
            self._index.remove(listener.wanted)

    async def _look(self) -> None:
        """Give signs of life, and end listeners that take nothing, for ever."""
        clock = asyncio.get_running_loop().time
        alive_at = clock()
        while True:
            await asyncio.sleep(LOOK_S)
            for listener in [*self._listeners]:
                if listener.taken_at is not None and clock() - listener.taken_at > STALL_S:
                    listener.end()
                    listener.on_stall()
            if clock() - alive_at >= KEEP_ALIVE_S:
                alive_at = clock()
                batch = Batch((), encode_position(self._position))
                for group in self._groups.values():
                    for listener in group.joined:
                        if listener.is_idle():
                            listener.push(batch)

    async def _read_missed(self, reader: LogReader) -> list[LogEvent]:
        """Read a page, when Redis is available."""
        backoff = Backoff(*AWAY_S)
        while True:
            try:
                async with self._pages:
                    return await reader.read()
            except (redis_errors.RedisError, OSError):
                await asyncio.sleep(backoff.next_s())

    def _end_all(self) -> None:
        for listener in self._listeners:
            listener.end()


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in chunks of at most ``size``."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _is_gap(event: Event) -> bool:
    """Return True for an event in place of lost ones, which every listener gets."""
    return event.type in {TRIMMED, RESET}


def _order(place: LogPlace) -> tuple[EntryOrder, int]:
    """Return the key by which the places of one log are compared."""
    return entry_order(place.entry), place.done or _WHOLE
