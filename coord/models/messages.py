"""Messages: type, status, the message as its receiver sees it, and its record."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, TypeAlias

from msgspec import Meta, Struct

from coord.models.agents import AgentStatus, AgentType
from coord.models.tasks import Text

#: The receiver of messages to the coordinator itself, and the sender of its answers.
COORDINATOR = "coordinator"


#: What the SDK of an agent answers itself, without a handler: the field ``op`` in the payload of a request of type
#: ``heartbeat``.
INQUIRIES = ("ping", "info", "stats")
InquiryName: TypeAlias = Literal["ping", "info", "stats"]
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


class RecipientFilter(Struct, frozen=True, omit_defaults=True):
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


class RequestState(StrEnum):
    """What became of a request."""

    OPEN = "open"  #: its sender waits for the reply
    ANSWERED = "answered"
    TIMED_OUT = "timed_out"  #: there was no reply in time; one that comes later is marked as late
    REFUSED = "refused"  #: it could not be delivered


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
    reply_by: int | None = None  #: its sender waits for a reply until about then; None: it is no request
    failed: bool = False  #: it replies that the request failed; the payload has ``code`` and ``message``
    late: bool = False  #: it replies to a request that had timed out
    hops: int = 0  #: messages before it in its chain of answers
    traceparent: str | None = None
    protocol: str = "direct"

    @property
    def conversation(self) -> str:
        """Id of its conversation."""
        return self.correlation_id or self.id

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
    correlation_id: str | None = None
    reply_to: str | None = None
    parent: str | None = None  #: id of the message before it in its chain of answers
    conversation: str | None = None  #: id of its conversation; None: it is not part of one yet
    hops: int = 0  #: messages before it in that chain
    reply_by: int | None = None  #: its sender waits for a reply until about then; None: it is no request
    request: RequestState | None = None  #: what became of the request
    failed: bool = False  #: it replies that the request failed
    late: bool = False  #: it replies to a request that had timed out
    traceparent: str | None = None
    protocol: str = "direct"
    code: str = ""  #: of a dead letter: why
    recipient_count: int | None = None  #: of a broadcast: agents to which it goes
    delivered: int | None = None  #: of a broadcast: recipients that have got it so far
    dead: int | None = None  #: of a broadcast: recipients that could not get it


class AgentState(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The last known state of an agent that did not reply. Times are milliseconds since 1970."""

    agent_id: str
    status: str  #: as in its record; ``unknown``: it has none
    since: int | None = None  #: when it turned stale or left
    last_heartbeat: int | None = None
    inbox: int = 0  #: entries in its inbox


class Conversation(Struct, frozen=True):
    """A conversation: its messages that are still kept, in their order, without payloads."""

    conversation_id: str
    messages: tuple[MessageRecord, ...]
    counted: int  #: all messages that it had


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
