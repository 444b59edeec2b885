"""Handlers of messages: send one to an agent or to all that match, return one, list the history."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from enum import StrEnum
from typing import Annotated, Any, TypeVar

from msgspec import UNSET, Meta, Struct, UnsetType
from msgspec.structs import force_setattr

from coord.agent_token import check_token
from coord.errors import ConfigError, MessageUndeliverable, ServerUnavailable, TokenInvalid
from coord.gateway.errors import Problem, RequestError
from coord.gateway.idempotency import conflict_is_reuse, id_of
from coord.gateway.inboxes import AckItem
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import iso, iso_or_none, now
from coord.models.agents import AgentType
from coord.models.facts import Names
from coord.models.ids import Id, new_id
from coord.models.messages import MessageRecipient, MessageRecord, MessageStatus, MessageType, Protocol
from coord.models.tasks import Lane, Priority, Seconds

E = TypeVar("E", bound=StrEnum)

#: The sender of a message that names none. Links and hierarchy do not bind it, because it is no agent.
SENDER = "coordinator.http"
#: The protocol of a message to all agents that match.
BROADCAST = "broadcast"
#: Maximum number of messages or recipients in a response: the default, and the limit of the limit.
MESSAGES, MOST_MESSAGES = 100, 1_000


class SendMessage(Struct, frozen=True, kw_only=True):
    """POST /messages/send; unknown keys are ignored."""

    receiver_id: Id | None = None
    recipient: Id | None = None  #: the same as ``receiver_id``
    sender_id: Id | None = None  #: None: ``SENDER``
    sender: Id | None = None  #: the same as ``sender_id``
    message_type: str
    payload: dict[str, Any] | UnsetType = UNSET
    content: dict[str, Any] | UnsetType = UNSET  #: the same as ``payload``
    priority: str | None = None
    protocol: str | None = None  #: None: it goes directly
    ttl: Seconds | None = None
    correlation_id: Id | None = None
    reply_to: Id | None = None
    message_id: Id | None = None

    def __post_init__(self) -> None:
        """Give the later names their meaning before the sender is checked against the caller's credential."""
        for name, later in (("receiver_id", self.recipient), ("sender_id", self.sender)):
            if getattr(self, name) is None:
                force_setattr(self, name, later)


class BroadcastMessage(Struct, frozen=True, kw_only=True):
    """POST /messages/broadcast; unknown keys are ignored."""

    message_type: str
    payload: dict[str, Any]
    sender_id: Id | None = None  #: None: ``SENDER``
    priority: str | None = None
    agent_type: str | None = None
    capabilities: Names = ()
    tags: Names = ()
    ttl: Seconds | None = None
    correlation_id: Id | None = None
    message_id: Id | None = None


class MessagesQuery(Struct, frozen=True):
    """The query of GET /messages/history."""

    sender_id: Id | None = None
    receiver_id: Id | None = None
    agent_id: Id | None = None  #: that sent or received it
    correlation_id: Id | None = None
    within: Annotated[int, Meta(ge=1, le=MOST_MESSAGES)] = MOST_MESSAGES  #: of how many of the newest messages
    limit: Annotated[int, Meta(ge=1, le=MOST_MESSAGES)] = MESSAGES
    offset: Annotated[int, Meta(ge=0, le=MOST_MESSAGES)] = 0
    cursor: str | None = None


class RecipientsQuery(Struct, frozen=True):
    """The query of GET /messages/{id}: a page of its recipients."""

    limit: Annotated[int, Meta(ge=1, le=MOST_MESSAGES)] = MESSAGES
    cursor: str | None = None


class ReadBody(Struct, frozen=True):
    """POST /messages/{id}/read; the body is optional, except for a message with several recipients."""

    agent_id: Id | None = None  #: the agent that has read it; None: the receiver


class MessageSchema(Struct, frozen=True, kw_only=True):
    """The record of a message."""

    message_id: str
    sender_id: str
    receiver_id: str
    message_type: str
    protocol: str
    priority: str
    status: MessageStatus
    sent_at: str
    expires_at: str
    payload: Any
    reason: str
    code: str  #: of a dead letter: why
    correlation_id: str | None
    reply_to: str | None
    conversation: str | None
    hops: int
    request: str | None  #: what became of a request; null: it is none
    reply_by: str | None
    recipient_count: int | None  #: of a broadcast
    delivered: int | None
    dead: int | None

    @classmethod
    def of(cls, record: MessageRecord) -> MessageSchema:
        """Build it from a record."""
        same = {name: getattr(record, name) for name in cls.__struct_fields__}
        times = {"sent_at": iso(record.sent_at), "expires_at": iso(record.expires_at)}
        return cls(**same | times | {"reply_by": iso_or_none(record.reply_by)})


class MessageSent(Struct, frozen=True, kw_only=True):
    """POST /messages/send."""

    status: str = "success"
    message: str = "Message sent successfully"
    message_id: str
    receiver_id: str
    protocol: str
    sent_at: str
    message_status: str  #: delivered, or accepted: no router has handled it yet


class BroadcastSent(Struct, frozen=True, kw_only=True):
    """POST /messages/broadcast."""

    status: str = "success"
    message: str = "Broadcast sent successfully"
    message_id: str
    recipients: tuple[str, ...]  #: ids of agents, the first 1,000 by id; GET /messages/{id} pages through all
    count: int  #: agents that matched
    delivered: int  #: of these, agents that have it; the others are dead letters
    broadcast_at: str


class MessagesListed(Struct, frozen=True, kw_only=True):
    """GET /messages/history: the newest messages first, without their payloads."""

    status: str = "success"
    messages: list[MessageSchema]
    count: int
    total: int  #: of the newest messages (``within``, 1,000 by default), those that match
    limit: int
    offset: int
    next: str | None  #: cursor for the messages before those
    timestamp: str


class MessageFound(Struct, frozen=True, kw_only=True):
    """GET /messages/{id}."""

    status: str = "success"
    message: MessageSchema
    recipients: tuple[MessageRecipient, ...]  #: what became of it for each, sorted by agent
    next: str | None  #: cursor of the next page of recipients
    timestamp: str


class ConversationMessage(Struct, frozen=True, kw_only=True):
    """A message of a conversation, without its payload."""

    message_id: str
    parent: str | None  #: the message before it in its chain of answers
    reply_to: str | None  #: the message that it replies to
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    status: MessageStatus
    sent_at: str
    request: str | None  #: what became of a request; null: it is none
    failed: bool  #: it replies that the request failed
    late: bool  #: it replies to a request that had timed out
    code: str
    reason: str
    recipient_count: int | None  #: of a broadcast

    @classmethod
    def of(cls, record: MessageRecord) -> ConversationMessage:
        """Build it from a record."""
        values = {name: getattr(record, name) for name in cls.__struct_fields__}
        return cls(**values | {"sent_at": iso(record.sent_at)})


class ConversationFound(Struct, frozen=True, kw_only=True):
    """GET /messages/conversations/{id}: its messages in their order."""

    status: str = "success"
    conversation_id: str
    messages: list[ConversationMessage]  #: those that are still kept
    count: int  #: all messages that it had
    timestamp: str


class MessageRead(Struct, frozen=True, kw_only=True):
    """POST /messages/{id}/read."""

    status: str = "success"
    message: str = "The message is read"
    message_id: str
    agent_id: str
    removed: bool  #: from the inbox of the agent; false: it was not there any more
    read_at: str


async def send(call: Call[SendMessage, None]) -> Struct | Answer:
    """Send a message to an agent."""
    body = call.body
    receiver = body.receiver_id
    payload = body.content if body.payload is UNSET else body.payload
    _require(receiver is not None, "receiver_id")
    _require(payload is not UNSET, "payload")
    protocol = _protocol(body.protocol)
    key_id = id_of(call)
    message_id = body.message_id or key_id or new_id()
    options: dict[str, Any] = {
        "message_type": _member(MessageType, body.message_type, "message_type"),
        "priority": Priority(_member(Lane, body.priority, "priority") or Lane.NORMAL),
        "ttl": body.ttl,
        "correlation_id": body.correlation_id,
        "message_id": message_id,
        "sender_id": body.sender_id or SENDER,
        "token": _token(call),
        "traceparent": call.traceparent,
    }
    with conflict_is_reuse(message_id, key_id), dead_letter_is_final():
        if protocol is None:
            options["message_type"] = MessageType.BROADCAST
            at, answered, *_ = await call.backend.broadcast(payload, call.wait_s, options)
        else:
            if options["sender_id"] == SENDER:
                if options["message_type"] is MessageType.DIRECT:
                    options["message_type"] = MessageType(protocol)
                options["protocol"] = Protocol.DIRECT
            else:
                options["protocol"] = protocol
            options["reply_to"] = body.reply_to
            at, answered = await call.backend.send(str(receiver), payload, call.wait_s, options)
    answer = MessageSent(
        message_id=message_id,
        receiver_id=str(receiver),
        protocol=protocol or BROADCAST,
        sent_at=at,
        message_status="delivered" if answered else "accepted",
    )
    return written(call, answer, answered=answered, path=f"/messages/{message_id}")


async def broadcast(call: Call[BroadcastMessage, None]) -> Struct | Answer:
    """Send a message to every active agent that matches."""
    body = call.body
    key_id = id_of(call)
    message_id = body.message_id or key_id or new_id()
    options: dict[str, Any] = {
        "message_type": _member(MessageType, body.message_type, "message_type"),
        "priority": Priority(_member(Lane, body.priority, "priority") or Lane.NORMAL),
        "agent_type": _member(AgentType, body.agent_type, "agent_type"),
        "capabilities": body.capabilities,
        "tags": body.tags,
        "ttl": body.ttl,
        "correlation_id": body.correlation_id,
        "message_id": message_id,
        "sender_id": body.sender_id or SENDER,
        "token": _token(call),
        "traceparent": call.traceparent,
    }
    with conflict_is_reuse(message_id, key_id):
        sent = await call.backend.broadcast(body.payload, call.wait_s, options)
    recipients: tuple[str, ...] = ()
    if sent.answered:
        with suppress(ServerUnavailable):  # it has been sent, so an error would be wrong
            page = await call.backend.message_recipients(message_id, limit=MOST_MESSAGES)
            recipients = tuple(one.agent_id for one in page.recipients)
    answer = BroadcastSent(
        message_id=message_id,
        recipients=recipients,
        count=sent.recipients,
        delivered=sent.delivered,
        broadcast_at=sent.at,
    )
    return written(call, answer, answered=sent.answered, path=f"/messages/{message_id}")


async def history(call: Call[None, MessagesQuery]) -> MessagesListed:
    """List messages, the newest first: of a sender, to a receiver, of a conversation, or all."""
    query = call.query
    page = await call.backend.list_messages(
        agent_id=query.receiver_id or query.sender_id or query.agent_id,
        conversation_id=query.correlation_id,
        limit=query.within,
        cursor=query.cursor,
    )
    found = [record for record in page.messages if _matches(record, query)]
    shown = [MessageSchema.of(record) for record in found[query.offset : query.offset + query.limit]]
    return MessagesListed(
        messages=shown,
        count=len(shown),
        total=len(found),
        limit=query.limit,
        offset=query.offset,
        next=page.next,
        timestamp=now(),
    )


async def get(call: Call[None, RecipientsQuery]) -> MessageFound:
    """Return a message, and what became of it for each recipient."""
    message_id = call.params["message_id"]
    record = await call.backend.message(message_id)
    page = await call.backend.message_recipients(message_id, limit=call.query.limit, cursor=call.query.cursor)
    return MessageFound(message=MessageSchema.of(record), recipients=page.recipients, next=page.next, timestamp=now())


async def conversation(call: Call[None, None]) -> ConversationFound:
    """Return a conversation, by its id or by that of a message of it: who sent what to whom, without payloads."""
    found = await call.backend.conversation(call.params["conversation_id"])
    return ConversationFound(
        conversation_id=found.conversation_id,
        messages=[ConversationMessage.of(record) for record in found.messages],
        count=found.counted,
        timestamp=now(),
    )


async def read(call: Call[ReadBody, None]) -> MessageRead:
    """Acknowledge a message: take it out of the inbox of its receiver, which has read it."""
    message_id = call.params["message_id"]
    copy = await call.backend.message_copy(message_id, call.body.agent_id)
    removed = False
    if copy.entry:
        await call.gateway.inboxes.check(copy.agent_id, call.bearer_token)
        (removed,) = await call.gateway.inboxes.delete(copy.agent_id, [AckItem(copy.lane, copy.entry)])
    return MessageRead(message_id=message_id, agent_id=copy.agent_id, removed=removed, read_at=now())


@contextmanager
def dead_letter_is_final() -> Iterator[None]:
    """Say of a message that found no room that a repetition finds the dead letter."""
    try:
        yield
    except MessageUndeliverable as error:
        advice = "the message is a dead letter; send it again later, under another message_id or Idempotency-Key"
        raise MessageUndeliverable(f"{error}; {advice}") from None


def _matches(record: MessageRecord, query: MessagesQuery) -> bool:
    """Return True if a message is from the sender, to the receiver, and of the agent, that are asked for."""
    if query.agent_id not in {None, record.sender_id, record.receiver_id} and record.recipient_count is None:
        return False
    if query.sender_id is not None and record.sender_id != query.sender_id:
        return False
    # The history of an agent has what it sent and what it received; of a broadcast, ``receiver_id`` names no agent.
    return query.receiver_id is None or record.receiver_id == query.receiver_id or record.sender_id != query.receiver_id


def _token(call: Call[Any, Any]) -> str | None:
    """Return the token of the sender; None without one."""
    token = call.bearer_token
    if not token:
        return None
    try:
        return check_token(token, "the header Authorization")
    except ConfigError as error:
        raise TokenInvalid(str(error)) from None


def _protocol(name: str | None) -> Protocol | None:
    """Return the protocol of this name, in any case; None for ``broadcast``, which is a fact of its own."""
    if name is None:
        return Protocol.DIRECT
    if name.lower() == BROADCAST:
        return None
    known = [*_values(Protocol), BROADCAST]
    if name.lower() not in known:
        raise RequestError("invalid_protocol", f"Invalid protocol: {name[:60]}. Valid protocols: {', '.join(known)}")
    return Protocol(name.lower())


def _member(kind: type[E], name: str | None, field: str) -> E | None:
    """Return the member of an enumeration, in any case; None for no name."""
    if name is None:
        return None
    try:
        return kind(name.lower())
    except ValueError:
        title = field.replace("_", " ")
        message = f"Invalid {title}: {name[:60]}. Valid {_plural(title)}: {', '.join(_values(kind))}"
        raise RequestError(f"invalid_{field}", message) from None


def _plural(title: str) -> str:
    return f"{title[:-1]}ies" if title.endswith("y") else f"{title}s"


def _values(kind: Iterable[StrEnum]) -> list[str]:
    return [member.value for member in kind]


def _require(present: object, field: str) -> None:
    if not present:
        raise RequestError(
            "body_invalid", f"{field}: field required", [Problem(["body", field], "field required", "missing")]
        )
