"""GET /events: the events of the cell as server-sent events."""

from __future__ import annotations

import random
from collections.abc import AsyncGenerator
from typing import Any

from msgspec import Struct

from coord.errors import CursorInvalid
from coord.gateway.errors import Problem, RequestError
from coord.gateway.event_filter import EventFilter
from coord.gateway.event_hub import EventHub, Listener
from coord.gateway.routes import Call, Stream
from coord.models.events import Position, decode_position

#: Milliseconds after which a client connects again: at random, so that the listeners of a gateway that ended do not all
#: connect at once.
RETRY_MS = (1_000, 3_000)
#: Bytes that the system keeps for a listener that reads slowly.
UNREAD = 128 * 1024
#: Without it, a proxy such as nginx would keep events back until a buffer is full.
_HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}


class EventsQuery(Struct, frozen=True):
    """What a listener wants; a repeated parameter and commas name several values."""

    type: list[str] = []  #: types, or their first words: ``coord.task.completed``, ``task``
    agent: list[str] = []  #: ids of agents
    task: list[str] = []  #: ids of tasks
    last_event_id: str | None = None  #: continue after this position; ``0``: begin with the oldest event

    def filter(self, at: str = "query") -> EventFilter:
        """Return the filter; raises ``RequestError``."""
        return EventFilter.parse(self.type, self.agent, self.task, at)

    def start(self, header: str | None = None) -> str | Position | None:
        """Return where to begin; ``header`` is Last-Event-ID, which is newer where a browser connects again.

        Raises:
            RequestError: it is not a position.
        """
        position = header or self.last_event_id
        try:
            return decode_position(position) if position else None
        except CursorInvalid as error:
            loc: list[str | int] = ["header", "last-event-id"] if header else ["query", "last_event_id"]
            raise RequestError("query_invalid", str(error), [Problem(loc, str(error), "value_error")]) from None


class EventStream(AsyncGenerator[bytes, None]):
    """What one listener is sent, until its connection or the gateway ends."""

    def __init__(self, hub: EventHub, listener: Listener, caller: str) -> None:
        self._hub = hub
        self._caller = caller  # which has a place
        self._listener = listener
        self._has_begun = self._is_closed = False

    async def asend(self, value: None) -> bytes:
        """Return the next events; first the position, so that a connection that breaks at once loses nothing."""
        if not self._has_begun:
            self._has_begun = True
            retry_ms = random.randint(*RETRY_MS)  # noqa: S311 -- not a secret
            return f"retry: {retry_ms}\nid: {self._listener.position}\n\n".encode()
        batch = await self._listener.next()
        if batch is None:
            raise StopAsyncIteration
        return batch.sse

    async def athrow(self, *error: Any) -> bytes:
        """Raise an error."""
        await self.aclose()
        raise error[0]

    async def aclose(self) -> None:
        """Remove the listener."""
        if not self._is_closed:
            self._is_closed = True
            self._hub.leave(self._listener)
            self._hub.free_place(self._caller)


async def listen(call: Call[None, EventsQuery]) -> Stream:
    """Stream the events of the cell as they happen.

    Each event is a CloudEvent; its ``id`` is the position after it, with which ``Last-Event-ID`` continues.
    """
    wanted = call.query.filter()
    start = call.query.start(call.header(b"last-event-id"))
    if call.method == "HEAD":
        return Stream(_nothing(), "text/event-stream", headers=_HEADERS)
    hub = call.gateway.events
    hub.take_place(call.subject)
    try:
        listener = await hub.join(wanted, start)
    except BaseException:
        hub.free_place(call.subject)
        raise
    listener.on_stall = call.connection.abort
    call.connection.limit_unread(UNREAD)
    return Stream(EventStream(hub, listener, call.subject), "text/event-stream", headers=_HEADERS)


async def _nothing() -> AsyncGenerator[bytes, None]:
    """Return what a HEAD request is sent."""
    for chunk in tuple[bytes, ...]():
        yield chunk
