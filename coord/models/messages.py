"""Messages: type, status, the message as its receiver sees it, and its record."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from coord.models.agents import AgentStatus, AgentType
from coord.models.tasks import Text

#: The names of ``MessageType``.
MessageTypeName: TypeAlias = Literal[
    "direct",
    "broadcast",
    "hierarchical",
    "peer_to_peer",
    "coordination",
    "task_assignment",
    "status_update",
    "heartbeat",
    "discovery",
    "consensus",
]
#: The names of ``Protocol``.
ProtocolName: TypeAlias = Literal["direct", "peer_to_peer", "hierarchical"]


class MessageType(StrEnum):
    """The way in which a message travels, or its topic."""

    DIRECT = "direct"
    BROADCAST = "broadcast"
    HIERARCHICAL = "hierarchical"
    PEER_TO_PEER = "peer_to_peer"
    COORDINATION = "coordination"
    TASK_ASSIGNMENT = "task_assignment"
    STATUS_UPDATE = "status_update"
    HEARTBEAT = "heartbeat"
    DISCOVERY = "discovery"
    CONSENSUS = "consensus"


class AgentFilter(Struct, frozen=True, omit_defaults=True):
    """The agents to which a broadcast goes: those that have all of these properties. Unknown keys are ignored."""

    agent_type: AgentType | None = None
    capabilities: tuple[Text, ...] = ()  #: all of them
    services: tuple[Text, ...] = ()  #: all of them
    tags: tuple[Text, ...] = ()  #: all of them
    labels: dict[Text, str] = {}  #: all of them, with these values
    statuses: Annotated[tuple[AgentStatus, ...], Meta(min_length=1, max_length=7)] = (
        AgentStatus.ACTIVE,
    )  #: any of them

    def __post_init__(self) -> None:
        if AgentStatus.INACTIVE in self.statuses:
            raise ValueError("statuses: an inactive agent has left the cell; choose from the other statuses")


class Protocol(StrEnum):
    """The rule that a message must meet."""

    DIRECT = "direct"  #: to any agent
    PEER_TO_PEER = "peer_to_peer"  #: along a link that both agents have accepted
    HIERARCHICAL = "hierarchical"  #: to the master, to a subordinate, or to all subordinates


class MessageStatus(StrEnum):
    """The status of a message, or of its copy for one recipient."""

    DELIVERING = "delivering"  #: a broadcast on its way: not delivered to all of its recipients yet, or not to this one
    DELIVERED = "delivered"  #: it is in the receiver's inbox; of a broadcast: all recipients have an outcome
    READ = "read"  #: its receiver has taken it out of its inbox
    EXPIRED = "expired"  #: its time to live passed before it was read; a dead letter
    DEAD = "dead"  #: it could not be delivered; a dead letter, with its reason


class AgentMessage(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A message as its receiver sees it. Times are milliseconds since 1970 on the server's clock."""

    id: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    timestamp: int
    expires_at: int
    payload: Any = None
    correlation_id: str | None = None
    reply_to: str | None = None
    protocol: str = "direct"

    @property
    def ttl(self) -> float:
        """Seconds to live, from when it was sent."""
        return (self.expires_at - self.timestamp) / 1000


class MessageRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a message. Times are milliseconds since 1970 on the server's clock."""

    message_id: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    status: MessageStatus
    sent_at: int
    expires_at: int
    payload: Any = None
    reason: str = ""
    protocol: str = "direct"
    code: str = ""  #: of a dead letter: why
    correlation_id: str | None = None
    reply_to: str | None = None
    recipient_count: int | None = None  #: of a broadcast: agents to which it goes
    delivered: int | None = None  #: of a broadcast: recipients that have got it so far
    dead: int | None = None  #: of a broadcast: recipients that could not get it


class Recipient(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One recipient of a message when it was delivered."""

    agent_id: str
    state: str = ""  #: status of the agent, such as ``active``, ``draining`` or ``stale``
    ahead: int = 0  #: entries before the message in its lane of the inbox
    deaf: bool = False  #: the agent reports that it does not read its inbox
    code: str = ""  #: why this agent did not get it; empty: it did


class MessageRecipient(Struct, frozen=True, omit_defaults=True):
    """What became of a message for one recipient."""

    agent_id: str
    status: MessageStatus
    code: str = ""  #: of a copy that expired or could not be delivered
    dead_letter: str = ""  #: of a broadcast: id of the dead letter of this recipient, which can be replayed
