"""The links of an agent with other agents, and its master: ``agent.links``.

Messages of the protocol ``peer_to_peer`` need a link, those of ``hierarchical`` a master. The records decide; the
orders that arrive in the inbox only tell the agent to look.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TypeAlias

from msgspec import Struct

from coord import codec
from coord.agent.inbox import Fields
from coord.agent.outgoing import Outgoing
from coord.arguments import as_seconds
from coord.client.submission import build_fact
from coord.errors import CoordError, LinkDeclined, ResultTimeout
from coord.logs import get_logger
from coord.models.facts import LinkAccepted, LinkRemoved, LinkRequested, MasterCleared, MasterSet
from coord.models.ids import check_id
from coord.models.links import Link, Links, LinkState
from coord.pipeline import pack
from coord.queries import parse_link
from coord.reconnect import ReconnectingConnection
from coord.redis_protocol import ignore_answer
from coord.streams import Append

log = get_logger()

#: The stream of agents' changes to their links.
STREAM = "in:links"
#: Seconds that a router has to answer.
ANSWER_S = 10.0
#: Seconds that ``connect`` waits for the other agent, and between two looks at the record.
ACCEPT_S, LOOK_S = 30.0, 2.0
#: Bytes of a fact about a link, more than any has.
FACT_BYTES = 4_096


class LinkRequest(Struct, frozen=True):
    """Another agent requests a link."""

    agent_id: str  #: the other agent
    note: str  #: its reason, or empty


#: Returns True to accept, False to decline, None to leave the request open.
LinkRequestHandler: TypeAlias = Callable[[LinkRequest], Awaitable[bool | None]]


class AgentLinks:
    """The links of one agent; use it as ``agent.links`` while the agent runs.

    Each method returns when a router has made the change, so a message that is sent afterwards meets the new rule. All
    of them raise ``ConfigError`` if the agent does not run, ``IdInvalid`` or ``FactInvalid`` if an argument does not
    fit, and ``ResultTimeout`` if no router answered within 10 s.

    Args:
        agent_id: id of the agent.
        outgoing: returns what sends the facts of the agent.
    """

    def __init__(self, agent_id: str, outgoing: Callable[[], Outgoing]) -> None:
        self._agent_id = agent_id
        self._outgoing = outgoing
        self._changed: dict[str, asyncio.Event] = {}  # by the other agent, while ``connect`` waits

    async def connect(self, peer_id: str, *, note: str = "", timeout: float = ACCEPT_S) -> None:
        """Request a link with another agent, and wait until it is accepted.

        Args:
            peer_id: id of the other agent.
            note: for the other agent, up to 256 characters.
            timeout: seconds to wait for the other agent.

        Raises:
            AgentNotFound, AgentLeft: there is no such agent, or it has left.
            LinkDeclined: the other agent has declined.
            LinksFull: one of the agents has as many links as it may have.
            ResultTimeout: it has not accepted in time; the request stays open.
        """
        timeout = as_seconds(timeout, "timeout")
        changed = self._changed.setdefault(peer_id, asyncio.Event())
        try:
            state = await self.request(peer_id, note=note)
            async with asyncio.timeout(timeout):
                while state is not LinkState.LINKED:
                    changed.clear()
                    with suppress(TimeoutError):  # an inbox without room gets no order
                        await asyncio.wait_for(changed.wait(), LOOK_S)
                    link = await self._read_link(peer_id)
                    if link is None:
                        raise LinkDeclined(f"agent '{peer_id}' has declined the link with '{self._agent_id}'")
                    state = link.state
        except TimeoutError as error:
            if isinstance(error, ResultTimeout):
                raise
            raise ResultTimeout(
                f"agent '{peer_id}' has not accepted the link within {timeout:g} s; the request stays open"
            ) from None
        finally:
            self._changed.pop(peer_id, None)

    async def request(self, peer_id: str, *, note: str = "") -> LinkState:
        """Request a link with another agent; return its state, without waiting for the other agent.

        Raises: as ``connect``, except ``LinkDeclined``.
        """
        return LinkState(await self._change(LinkRequested, peer_id=check_id(peer_id, "peer_id"), note=note))

    async def accept(self, peer_id: str) -> None:
        """Accept the request of another agent.

        Raises:
            LinkNotRequested: it has not requested a link.
        """
        await self._change(LinkAccepted, peer_id=check_id(peer_id, "peer_id"))

    async def remove(self, peer_id: str, *, note: str = "") -> None:
        """End the link with another agent, decline its request, or withdraw the one of this agent."""
        await self._change(LinkRemoved, peer_id=check_id(peer_id, "peer_id"), note=note)

    async def set_master(self, master_id: str | None) -> None:
        """Choose the master of this agent, in place of an earlier one; None: it has none from now on.

        Raises:
            AgentNotFound: there is no such agent.
            HierarchyCycle: it is below this agent.
            LinksFull: it has as many subordinates, or masters above it, as an agent may have.
        """
        if master_id is None:
            await self._change(MasterCleared)
        else:
            await self._change(MasterSet, master_id=check_id(master_id, "master_id"))

    async def read(self) -> Links:
        """Read the links of this agent, its master and its subordinates."""
        outgoing, agent_id = self._outgoing(), self._agent_id
        raw = await outgoing.read("HGETALL", outgoing.keys.links(agent_id))
        master = await outgoing.read("HGET", outgoing.keys.of("masters"), agent_id)
        subordinates = await outgoing.read("SMEMBERS", outgoing.keys.subordinates(agent_id))
        return Links(
            agent_id=agent_id,
            links=tuple(parse_link(peer, raw[peer]) for peer in sorted(raw)),
            master=master.decode() if master is not None else None,
            subordinates=tuple(sorted(one.decode() for one in subordinates)),
        )

    async def _read_link(self, peer_id: str) -> Link | None:
        outgoing = self._outgoing()
        raw = await outgoing.read("HGET", outgoing.keys.links(self._agent_id), peer_id)
        return parse_link(peer_id.encode(), raw) if raw is not None else None

    async def _change(self, kind: type[Struct], **fields: str) -> str:
        fact, data = build_fact(STREAM, kind, {"agent_id": self._agent_id, **fields}, FACT_BYTES)
        _, answer = await self._outgoing().request(Append(STREAM, fact, self._agent_id, data), ANSWER_S)
        if not answer.ok:
            raise answer.error
        return str(codec.decode_json(answer.data).get("state", ""))

    def look(self, peer_id: str) -> None:
        """Look at the record of a link: it has changed."""
        if peer_id in self._changed:
            self._changed[peer_id].set()


class LinkOrders:
    """The orders in an agent's inbox that tell of its links.

    Args:
        links: of the agent.
        link: the connection for writes.
        lanes: the streams of the inbox.
        handler: decides on requests; None leaves them open.
    """

    def __init__(
        self, links: AgentLinks, link: ReconnectingConnection, lanes: list[str], handler: LinkRequestHandler | None
    ) -> None:
        self._links = links
        self._link = link
        self._lanes = lanes
        self._handler = handler
        self._deciding: dict[bytes, asyncio.Task[None]] = {}  # by entry

    def receive(self, lane: int, entry: bytes, fields: Fields) -> None:
        """Handle an order; it is deleted when that is done."""
        peer_id = fields[b"agent_id"].decode()
        self._links.look(peer_id)
        if fields.get(b"change") == b"requested" and self._handler is not None:
            if entry not in self._deciding:
                request = LinkRequest(peer_id, fields.get(b"note", b"").decode("utf-8", "replace"))
                self._deciding[entry] = asyncio.create_task(self._decide(self._handler, lane, entry, request))
            return
        self._delete(lane, entry)

    async def close(self) -> None:
        """Stop the handlers that still decide; their requests are decided by the next process."""
        deciding = list(self._deciding.values())
        for task in deciding:
            task.cancel()
        await asyncio.gather(*deciding, return_exceptions=True)

    async def _decide(self, handler: LinkRequestHandler, lane: int, entry: bytes, request: LinkRequest) -> None:
        try:
            is_accepted = await handler(request)
            if is_accepted is not None:
                await (self._links.accept if is_accepted else self._links.remove)(request.agent_id)
        except CoordError as error:  # such as a request that was withdrawn meanwhile
            log.warning("link.not_decided", peer_id=request.agent_id, code=error.code, error=str(error))
        except Exception:
            log.exception("link.handler_failed", peer_id=request.agent_id, hint="the request stays open")
        finally:
            self._deciding.pop(entry, None)
        self._delete(lane, entry)

    def _delete(self, lane: int, entry: bytes) -> None:
        self._link.send_until_answered(pack(("XDEL", self._lanes[lane], entry)), ignore_answer)
