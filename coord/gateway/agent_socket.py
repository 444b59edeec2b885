"""The frames of /ws with which an agent works over one WebSocket: it receives its inbox, and reports.

    {"id": 1, "register": {"agent_id": "a1", "agent_type": "worker", "capabilities": ["read"]}}
    {"id": 2, "inbox": {"agent_id": "a1"}}
    {"id": 3, "complete": {"task_id": "t1", "lease": "00d1ce5f8a6b7c2e", "result": {"words": 312}}}

A frame does what the request with the same name does, through the same handler. Each entry of the inbox is a frame
``{"inbox": {…}}``, sent once for each connection. While the socket receives, it counts as a poll of the agent.

One socket of an agent receives, over all gateways: the last that asked. Each writes its id to a key that all gateways
track; the one that finds another id there is closed.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Annotated, Any, NamedTuple

import msgspec
from msgspec import Meta, Raw, Struct

from coord import codec, logs
from coord.background import cancel_and_wait
from coord.errors import CoordError, ServerUnavailable
from coord.gateway import agents, inbox, messages, reports
from coord.gateway.access import authorize_frame, check_own
from coord.gateway.body import decode
from coord.gateway.errors import RequestError
from coord.gateway.failures import FrameError
from coord.gateway.inbox import LONGEST_S, AckBody, InboxItem, first_of, items_of
from coord.gateway.messages import SendMessage
from coord.gateway.reports import CompleteBody, FailBody, ProgressBody, ReleaseBody, StartBody
from coord.gateway.routes import Answer, Call, Handler
from coord.gateway.schemas import HeartbeatBody, RegisterAgent
from coord.inbox_watch import InboxWatch, wait_for
from coord.models.ids import Id
from coord.models.tasks import Lane

log = logs.get_logger()

#: Close code of a socket whose agent receives its inbox over another one since.
REPLACED = 4001
#: Seconds after which a socket that takes nothing is closed.
STALL_S = 30.0
#: Seconds between two attempts while Redis is not available.
AWAY_S = 0.5


class InboxWanted(Struct, frozen=True, forbid_unknown_fields=True):
    """Which inbox a socket receives."""

    agent_id: Id
    limit: Annotated[int, Meta(ge=1, le=100)] = 20  #: entries after the first ones wait until these are acknowledged


class InboxFrame(Struct, frozen=True):
    """An entry of the inbox; null: the socket receives no more, because of the error."""

    inbox: InboxItem | None
    error: FrameError | msgspec.UnsetType | None = msgspec.UNSET


class _OfAgent(Struct, frozen=True):
    agent_id: Id


class _OfTask(Struct, frozen=True):
    task_id: Id


class Action(NamedTuple):
    """What a frame asks for, as the row of the request in ``coord.gateway.table``."""

    handle: Handler
    body: type[Struct]
    names: type[Struct] | None = None  #: what is in the path of the request
    limited: bool = True


#: name of the field of a frame -> its action.
ACTIONS: dict[str, Action] = {
    "register": Action(agents.register, RegisterAgent, _OfAgent),
    "heartbeat": Action(agents.heartbeat, HeartbeatBody, _OfAgent, limited=False),
    "ack": Action(inbox.acknowledge, AckBody),
    "start": Action(reports.start, StartBody, _OfTask),
    "progress": Action(reports.progress, ProgressBody, _OfTask),
    "complete": Action(reports.complete, CompleteBody, _OfTask),
    "fail": Action(reports.fail, FailBody, _OfTask),
    "release": Action(reports.release, ReleaseBody, _OfTask),
    "send": Action(messages.send, SendMessage),
}


class AgentSocket:
    """What a WebSocket does for an agent.

    Args:
        call: its handshake.
        send: sends a text frame.
    """

    def __init__(self, call: Call[None, Any], send: Callable[[str], Awaitable[None]]) -> None:
        self._call = call
        self._send = send
        self._wanted: InboxWanted | None = None
        self._id = ""
        self._receiving: asyncio.Task[None] | None = None

    async def act(self, name: str, raw: Raw) -> Struct:
        """Do what a frame asks for; return the body of the response to the same request.

        Args:
            name: a key of ``ACTIONS``.
            raw: its value.

        Raises:
            CoordError: as the request.
        """
        action = ACTIONS[name]
        data, params = bytes(raw), dict[str, str]()
        if name == "ack":
            if self._wanted is None:
                raise RequestError("frame_invalid", 'ack: receive the inbox first: {"inbox": {"agent_id": …}}')
            data, params = b'{"entries":%b}' % data, {"agent_id": self._wanted.agent_id}
        elif action.names is not None:
            params = msgspec.structs.asdict(decode(data, action.names, at=("frame", name)))
        body = decode(data, action.body, at=("frame", name))
        await authorize_frame(self._call, name, params.get("agent_id"), limited=action.limited)
        if isinstance(body, SendMessage):
            check_own(self._call.credential, "sender_id", body.sender_id)
        answer = await action.handle(self._call.inner(body, params))
        if isinstance(answer, Answer):
            answer = answer.body  # type: ignore[assignment]  # 202: it says that no worker has answered yet
        assert isinstance(answer, Struct)  # noqa: S101 (the handlers of ACTIONS return no other)
        return answer

    async def receive(self, wanted: InboxWanted) -> None:
        """Make this the socket that receives an inbox, in place of any other.

        Raises:
            CoordError: as the poll.
        """
        await self.stop()
        await authorize_frame(self._call, "inbox", wanted.agent_id, limited=True)
        inboxes = self._call.gateway.inboxes
        await inboxes.check(wanted.agent_id, self._call.bearer_token)
        await inboxes.watch()
        self._id = secrets.token_hex(8)
        await inboxes.claim(wanted.agent_id, self._id)
        self._wanted = wanted

    def begin(self) -> None:
        """Send the entries from now on."""
        if self._wanted is not None:
            self._receiving = asyncio.create_task(self._receive(self._wanted))

    async def stop(self) -> None:
        """Receive no more, if it does."""
        self._wanted = None
        await cancel_and_wait(self._receiving)
        self._receiving = None

    async def _receive(self, wanted: InboxWanted) -> None:
        connection = self._call.connection
        try:
            is_replaced = await self._send_entries(wanted)
            if is_replaced:
                reason = "replaced: the agent receives its inbox over another connection since"
                await connection.send({"type": "websocket.close", "code": REPLACED, "reason": reason})
        except CoordError as error:
            self._wanted = None
            await self._send(codec.encode(InboxFrame(None, FrameError.of(self._call, error))).decode())
        except TimeoutError:
            connection.abort()
        except OSError:
            return  # it has disconnected
        except Exception:
            log.exception("background.failed", task="websocket.inbox")
            connection.abort()

    async def _send_entries(self, wanted: InboxWanted) -> bool:
        """Send entries until another socket receives them; return True then."""
        inboxes, agent_id = self._call.gateway.inboxes, wanted.agent_id
        watch, gone, sent = await inboxes.watch(), asyncio.Event(), dict[Lane, str]()
        with watch.watching(agent_id) as signal:
            guarding = asyncio.create_task(self._guard(watch, agent_id))

            def end(_task: asyncio.Task[None]) -> None:
                gone.set()
                signal.set()

            guarding.add_done_callback(end)
            try:
                while not gone.is_set():
                    try:
                        await authorize_frame(self._call, "inbox", agent_id, limited=False)
                        await inboxes.check(agent_id, self._call.bearer_token)
                        until = monotonic() + LONGEST_S
                        entries = await inboxes.poll(
                            agent_id, wanted.limit, until=until, gone=gone, signal=signal, sent=sent
                        )
                    except ServerUnavailable:
                        await asyncio.sleep(AWAY_S)
                        continue
                    entries = first_of(entries)  # the others are read again: a socket that takes nothing holds few
                    for entry in entries:
                        if gone.is_set():
                            break
                        async with asyncio.timeout(STALL_S):
                            for item in items_of([entry]):
                                await self._send(codec.encode(InboxFrame(item)).decode())
                        sent[entry.lane] = entry.id
            finally:
                guarding.remove_done_callback(end)
                await cancel_and_wait(guarding)
        return True

    async def _guard(self, watch: InboxWatch, agent_id: str) -> None:
        """Return when another socket receives the inbox."""
        with watch.watching_socket(agent_id) as signal:
            while True:
                signal.clear()
                try:
                    found = await watch.socket(agent_id)
                    if found is None:  # its time is over, or Redis was emptied
                        await self._call.gateway.inboxes.claim(agent_id, self._id, "NX")
                        continue
                except ServerUnavailable:
                    await wait_for(signal, AWAY_S)
                    continue
                if found != self._id:
                    return
                await wait_for(signal, LONGEST_S)
