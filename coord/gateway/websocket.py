"""/ws: the events of the cell over a WebSocket, and the work of an agent (``coord.gateway.agent_socket``).

Each event is a text frame with the same CloudEvent as in /events. A caller subscribes by the parameters of the query,
as of /events, or by a frame. A later frame replaces the subscription, and null ends it:

    {"id": 1, "subscribe": {"type": "task", "task": ["t-1", "t-2"]}, "last_event_id": "0.0.17.0.0"}
    {"id": 1, "ok": true, "position": "0.0.17.0.0"}

Each frame is answered in order; without ``id`` only if it failed: ``{"id": 1, "ok": false, "error": {"code": …,
"message": …, "detail": …}}``. Now and then ``{"position": …}`` moves the position over events that the caller does not
want.
"""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
from msgspec import UNSET, Raw, Struct, UnsetType

from coord import codec, logs
from coord.background import cancel_and_wait
from coord.errors import CoordError
from coord.gateway.access import count_frame
from coord.gateway.agent_socket import ACTIONS, STALL_S, AgentSocket, InboxWanted
from coord.gateway.body import decode
from coord.gateway.errors import RequestError
from coord.gateway.event_filter import EventFilter
from coord.gateway.event_hub import Listener
from coord.gateway.events import UNREAD, EventsQuery
from coord.gateway.failures import FrameError
from coord.gateway.routes import Call
from coord.gateway.socket_protocol import SHUTDOWN
from coord.models.api_keys import CallerRole
from coord.models.events import Position, decode_position

log = logs.get_logger()

#: Close code of a listener that was ended: connect again, with the last position.
TRY_AGAIN = 1013


class Subscription(Struct, frozen=True, forbid_unknown_fields=True):
    """What a caller wants; each a text, or a list of them."""

    type: str | list[str] = []
    agent: str | list[str] = []
    task: str | list[str] = []

    def filter(self) -> EventFilter:
        """Return the filter; raises ``RequestError``."""
        return EventFilter.parse(_values(self.type), _values(self.agent), _values(self.task), "frame")


class Frame(Struct, frozen=True, forbid_unknown_fields=True):
    """A frame of a caller."""

    id: str | int | None = None  #: of the frame, for its answer
    subscribe: Subscription | UnsetType | None = UNSET  #: null: end the subscription
    last_event_id: str | None = None
    inbox: InboxWanted | UnsetType | None = UNSET  #: null: receive no more
    register: Raw | UnsetType = UNSET
    heartbeat: Raw | UnsetType = UNSET
    ack: Raw | UnsetType = UNSET
    start: Raw | UnsetType = UNSET
    progress: Raw | UnsetType = UNSET
    complete: Raw | UnsetType = UNSET
    fail: Raw | UnsetType = UNSET
    release: Raw | UnsetType = UNSET
    send: Raw | UnsetType = UNSET


class FrameId(Struct, frozen=True):
    """The id of a frame that is otherwise invalid."""

    id: str | int | None = None


class FrameAnswer(Struct, frozen=True, omit_defaults=True):
    """The answer to a frame."""

    id: str | int | None
    ok: bool
    position: str | UnsetType = UNSET
    answer: Any = UNSET  #: the body of the response to the same request
    error: FrameError | UnsetType = UNSET


#: The fields of a frame of which it has one.
_ASKS = ("subscribe", "inbox", *ACTIONS)


class EventSocket:
    """One WebSocket.

    Args:
        call: its handshake.
    """

    def __init__(self, call: Call[None, EventsQuery]) -> None:
        self._call = call
        self._connection = call.connection
        self._agent = AgentSocket(call, self._send)
        self._hub = call.gateway.events
        self._listener: Listener | None = None
        self._sending: asyncio.Task[None] | None = None

    async def subscribe(self, wanted: EventFilter, start: str | Position | None) -> Listener:
        """Replace the subscription; raises what ``EventHub.join`` raises, and the earlier one is over then."""
        await self.unsubscribe()
        self._listener = listener = await self._hub.join(wanted, start)
        listener.on_stall = self._connection.abort
        return listener

    async def end(self) -> None:
        """End all that goes on."""
        await self._agent.stop()
        await self.unsubscribe()

    async def unsubscribe(self) -> None:
        """End the subscription, if there is one."""
        await cancel_and_wait(self._sending)
        if self._listener is not None:
            self._hub.leave(self._listener)
        self._sending = self._listener = None

    def begin(self, listener: Listener) -> None:
        """Send the events of a subscription from now on."""
        self._sending = asyncio.create_task(self._send_events(listener))

    async def serve(self) -> None:
        """Handle the frames of the caller until it disconnects or the gateway shuts down."""
        closing = self._call.gateway.closing
        while not closing.is_set():
            event = await self._connection.receive()
            if event["type"] == "websocket.disconnect":
                break
            text = event.get("text")
            await self._handle(text if text is not None else event.get("bytes") or b"")
        if closing.is_set():
            reason = "the gateway shuts down; connect again"
            await self._connection.send({"type": "websocket.close", "code": SHUTDOWN, "reason": reason})

    async def _handle(self, frame: str | bytes) -> None:
        found = FrameId()
        try:
            raw = _text(frame)
            found = _id_of(raw)
            await self._do(_decoded(raw))
        except Exception as error:
            if isinstance(error, OSError) and not isinstance(error, CoordError):
                raise  # it has disconnected
            await self._answer(FrameAnswer(found.id, ok=False, error=FrameError.of(self._call, error)))

    async def _do(self, frame: Frame) -> None:
        asked = [name for name in _ASKS if getattr(frame, name) is not UNSET]
        if not asked:
            raise RequestError("frame_invalid", 'the frame asks for nothing; send {"subscribe": {}} for all events')
        if len(asked) > 1:
            raise RequestError("frame_invalid", f"the frame asks for {' and '.join(asked)}; send a frame for each")
        if asked[0] in ACTIONS:
            answer = await self._agent.act(asked[0], getattr(frame, asked[0]))
            if frame.id is not None:
                await self._answer(FrameAnswer(frame.id, ok=True, answer=answer))
        elif isinstance(frame.inbox, InboxWanted):
            await self._agent.receive(frame.inbox)
            await self._done(frame, UNSET)
            self._agent.begin()
        elif frame.inbox is None:
            await self._agent.stop()
            await self._done(frame, UNSET)
        else:
            await self._subscribe(frame)

    async def _subscribe(self, frame: Frame) -> None:
        if not isinstance(frame.subscribe, Subscription):
            await self.unsubscribe()
            await self._done(frame, UNSET)
            return
        await count_frame(self._call)
        wanted = frame.subscribe.filter()
        start = decode_position(frame.last_event_id) if frame.last_event_id else None
        listener = await self.subscribe(wanted, start)
        await self._done(frame, listener.position)
        self.begin(listener)

    async def _done(self, frame: Frame, position: str | UnsetType) -> None:
        if frame.id is not None:
            await self._answer(FrameAnswer(frame.id, ok=True, position=position))

    async def _answer(self, answer: FrameAnswer) -> None:
        try:
            with self._call.gateway.deadlines.limit(STALL_S):
                await self._send(codec.encode(answer).decode())
        except TimeoutError:  # it reads nothing
            self._connection.abort()

    async def _send_events(self, listener: Listener) -> None:
        try:
            while (batch := await listener.next()) is not None:
                for text in batch.texts:
                    await self._send(text)
            if not self._call.gateway.closing.is_set():
                await self._connection.send({"type": "websocket.close", "code": TRY_AGAIN, "reason": "connect again"})
        except OSError:
            return  # it has disconnected
        except Exception:
            log.exception("background.failed", task="websocket.events")
            self._connection.abort()

    async def _send(self, text: str) -> None:
        await self._connection.send({"type": "websocket.send", "text": text})


async def serve(call: Call[None, EventsQuery]) -> None:
    """Stream the events of the cell, and the inbox of an agent that works over the same WebSocket."""
    wanted, start = call.query.filter(), call.query.start()
    hub, socket = call.gateway.events, EventSocket(call)
    hub.take_place(call.subject)
    try:
        # A query that subscribes is checked before the handshake: what is wrong with it is an HTTP response.
        listener = await socket.subscribe(wanted, start) if call.query != EventsQuery() else None
        if (await call.connection.receive())["type"] != "websocket.connect":
            return
        call.connection.limit_unread(UNREAD)
        if call.credential is None or call.credential.role.rank >= CallerRole.AGENT.rank:
            call.connection.allow_large_frames()  # others only subscribe
        await call.connection.send({"type": "websocket.accept"})
        if listener is not None:
            socket.begin(listener)
        await socket.serve()
    except OSError:
        return  # it has disconnected
    finally:
        hub.free_place(call.subject)
        await socket.end()


def _values(value: str | list[str]) -> list[str]:
    return [value] if isinstance(value, str) else value


def _text(frame: str | bytes) -> bytes:
    if isinstance(frame, bytes):
        raise RequestError("frame_invalid", "send text frames with a JSON object")
    return frame.encode()


def _id_of(raw: bytes) -> FrameId:
    """Return the id of a frame, as far as it can be read."""
    try:
        return msgspec.json.decode(raw, type=FrameId)
    except (msgspec.DecodeError, RecursionError):
        return FrameId()


def _decoded(raw: bytes) -> Frame:
    try:
        return decode(raw, Frame, at=("frame",))
    except RequestError as error:
        problems: Any = error.problems
        raise RequestError("frame_invalid", str(error).replace("the body", "the frame"), problems) from None
