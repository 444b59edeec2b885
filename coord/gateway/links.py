"""Handlers of links between agents, and of the hierarchy: an operator's acts, at once and without consent."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from coord.errors import AgentNotFound
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import now
from coord.models.ids import Id

#: Maximum number of agents in the list of all links.
MOST_AGENTS = 1_000


class PeersQuery(Struct, frozen=True):
    """The query of POST /peers/add and /peers/remove."""

    agent_id: Id
    peer_id: Id


class ConnectionsQuery(Struct, frozen=True):
    """The query of GET /peers."""

    limit: Annotated[int, Meta(ge=1, le=MOST_AGENTS)] = MOST_AGENTS


class PeerAdded(Struct, frozen=True, kw_only=True):
    """POST /peers/add."""

    status: str = "success"
    message: str = "Peer connection added"
    agent_id: str
    peer_id: str
    connected_at: str


class PeerRemoved(Struct, frozen=True, kw_only=True):
    """POST /peers/remove."""

    status: str = "success"
    message: str = "Peer connection removed"
    agent_id: str
    peer_id: str
    removed_at: str


class PeersFound(Struct, frozen=True, kw_only=True):
    """GET /peers/{id}."""

    status: str = "success"
    agent_id: str
    peers: tuple[str, ...]
    count: int
    timestamp: str


class ConnectionsFound(Struct, frozen=True, kw_only=True):
    """GET /peers."""

    status: str = "success"
    connections: dict[str, tuple[str, ...]]  #: agent -> the agents that it is linked with
    total_agents: int  #: agents with a link
    total_peers: int  #: links, counted from both ends
    timestamp: str


class SubordinatesFound(Struct, frozen=True, kw_only=True):
    """GET /agents/{id}/subordinates."""

    status: str = "success"
    agent_id: str
    master: str | None
    subordinates: tuple[str, ...]
    count: int
    timestamp: str


class SubordinateChanged(Struct, frozen=True, kw_only=True):
    """POST and DELETE /agents/{id}/subordinates/{sub}."""

    status: str = "success"
    message: str
    agent_id: str
    subordinate_id: str
    updated_at: str


async def add_peer(call: Call[None, PeersQuery]) -> Struct | Answer:
    """Link two agents, in both directions: messages of the protocol peer_to_peer pass between them."""
    query = call.query
    answered = await call.backend.link(query.agent_id, query.peer_id, call.wait_s)
    body = PeerAdded(agent_id=query.agent_id, peer_id=query.peer_id, connected_at=now())
    return written(call, body, answered=answered, path=f"/peers/{query.agent_id}")


async def remove_peer(call: Call[None, PeersQuery]) -> Struct | Answer:
    """End the link of two agents, in both directions."""
    query = call.query
    answered = await call.backend.unlink(query.agent_id, query.peer_id, call.wait_s)
    body = PeerRemoved(agent_id=query.agent_id, peer_id=query.peer_id, removed_at=now())
    return written(call, body, answered=answered, path=f"/peers/{query.agent_id}")


async def peers(call: Call[None, None]) -> PeersFound:
    """Return the agents with which an agent is linked."""
    found = await call.backend.links(call.params["agent_id"])
    return PeersFound(agent_id=found.agent_id, peers=found.peers, count=len(found.peers), timestamp=now())


async def connections(call: Call[None, ConnectionsQuery]) -> ConnectionsFound:
    """Return the links of all agents."""
    found = {one.agent_id: one.peers for one in await call.backend.list_links() if one.peers}
    shown = dict(list(found.items())[: call.query.limit])
    total = sum(map(len, found.values()))
    return ConnectionsFound(connections=shown, total_agents=len(found), total_peers=total, timestamp=now())


async def subordinates(call: Call[None, None]) -> SubordinatesFound:
    """Return the subordinates of an agent, and its master."""
    found = await call.backend.links(call.params["agent_id"])
    return SubordinatesFound(
        agent_id=found.agent_id,
        master=found.master,
        subordinates=found.subordinates,
        count=len(found.subordinates),
        timestamp=now(),
    )


async def add_subordinate(call: Call[None, None]) -> Struct | Answer:
    """Make an agent the master of another one, in place of an earlier master."""
    agent_id, subordinate_id = call.params["agent_id"], call.params["subordinate_id"]
    answered = await call.backend.set_master(subordinate_id, agent_id, call.wait_s)
    body = SubordinateChanged(
        message="Subordinate added", agent_id=agent_id, subordinate_id=subordinate_id, updated_at=now()
    )
    return written(call, body, answered=answered, path=f"/agents/{agent_id}/subordinates")


async def remove_subordinate(call: Call[None, None]) -> Struct | Answer:
    """End that an agent is the master of another one."""
    agent_id, subordinate_id = call.params["agent_id"], call.params["subordinate_id"]
    if (await call.backend.links(subordinate_id)).master != agent_id:
        raise AgentNotFound(f"Agent '{subordinate_id}' is no subordinate of '{agent_id}'")
    answered = await call.backend.set_master(subordinate_id, None, call.wait_s)
    body = SubordinateChanged(
        message="Subordinate removed", agent_id=agent_id, subordinate_id=subordinate_id, updated_at=now()
    )
    return written(call, body, answered=answered, path=f"/agents/{agent_id}/subordinates")
