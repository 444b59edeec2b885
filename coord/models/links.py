"""Links between agents, and the hierarchy of masters and subordinates."""

from __future__ import annotations

from enum import StrEnum

from msgspec import Struct


class LinkState(StrEnum):
    """The state of a link, as one of its two agents sees it."""

    LINKED = "linked"  #: both have accepted: messages of the protocol peer_to_peer pass
    REQUESTED = "requested"  #: this agent has requested it
    ASKED = "asked"  #: the other agent has requested it


class Link(Struct, frozen=True):
    """A link of an agent, or a request."""

    peer_id: str  #: the other agent
    state: LinkState
    since: int  #: ms since 1970 on the server's clock
    by: str  #: ``agent``, or ``operator``: without consent


class Links(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The links of an agent, and its place in the hierarchy."""

    agent_id: str
    links: tuple[Link, ...] = ()  #: sorted by the id of the other agent
    master: str | None = None
    subordinates: tuple[str, ...] = ()  #: sorted

    @property
    def peers(self) -> tuple[str, ...]:
        """The agents that it is linked with."""
        return tuple(link.peer_id for link in self.links if link.state is LinkState.LINKED)

    @property
    def requests(self) -> tuple[str, ...]:
        """The agents that have requested a link, and wait for this one to accept it."""
        return tuple(link.peer_id for link in self.links if link.state is LinkState.ASKED)
