"""Messages: type, status, the message as its receiver sees it, and its record."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct

from coord.models.agents import AgentStatus, AgentType
from coord.models.tasks import Text


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


class MessageStatus(StrEnum):
    """The delivery status of a message."""

    DELIVERING = "delivering"  #: of a broadcast: some of its recipients do not have it yet
    DELIVERED = "delivered"  #: it is in the receiver's inbox; of a broadcast: all recipients have an outcome
    DEAD = "dead"  #: it could not be delivered; the reason is recorded


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
    recipients: int | None = None  #: of a broadcast: agents to which it goes
    delivered: int | None = None  #: of a broadcast: recipients that have got it so far
    dead: int | None = None  #: of a broadcast: recipients that cannot get it


class RecipientStatus(StrEnum):
    """What became of a broadcast for one of its recipients."""

    WAITING = "waiting"  #: it is not delivered yet
    DELIVERED = "delivered"  #: it is in the inbox
    READ = "read"  #: the agent has deleted it: after its handler, or because it had expired
    EXPIRED = "expired"  #: its time to live passed before it was delivered
    DEAD = "dead"  #: it cannot be delivered, for a reason
    GONE = "gone"  #: the agent was removed with its inbox


class MessageRecipient(Struct, frozen=True, omit_defaults=True):
    """One recipient of a broadcast."""

    agent_id: str
    status: RecipientStatus
    code: str = ""  #: why it could not be delivered
    dead_letter: str = ""  #: id of the dead letter of this recipient, which can be replayed
