"""Handlers of dead messages: list those that could not be delivered, deliver them again, delete them."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from coord.gateway.errors import Problem, RequestError
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import iso, now
from coord.models.facts import Age
from coord.models.ids import Id
from coord.models.tasks import Seconds
from coord.queries import DeadMessage

#: Maximum number of messages in a response: the default, and the limit of the limit.
MESSAGES, MOST_MESSAGES = 100, 1_000
PATH = "/messages/dead"


class DeadQuery(Struct, frozen=True):
    """The query of GET /messages/dead."""

    limit: Annotated[int, Meta(ge=1, le=MOST_MESSAGES)] = MESSAGES
    cursor: str | None = None


class ReplayMessage(Struct, frozen=True):
    """POST /messages/{id}/replay; the body is optional."""

    ttl: Seconds | None = None  #: new time to live; None: that of the routers


class PurgeMessages(Struct, frozen=True):
    """POST /messages/dead/purge; exactly one of both."""

    message_id: Id | None = None
    older_than: Age | None = None  #: seconds; 0: all


class DeadMessageSchema(Struct, frozen=True, kw_only=True):
    """A message that could not be delivered, or that expired; without its payload."""

    message_id: str
    died_at: str
    code: str
    reason: str
    sender_id: str
    receiver_id: str
    message_type: str
    priority: str
    sent_at: str
    conversation: str | None

    @classmethod
    def of(cls, dead: DeadMessage) -> DeadMessageSchema:
        """Build it from a dead message."""
        times = {"died_at": iso(dead.died_at), "sent_at": iso(dead.record.sent_at)}
        same = {name: getattr(dead.record, name) for name in cls.__struct_fields__ if name not in times}
        return cls(**same | times)


class DeadMessagesListed(Struct, frozen=True, kw_only=True):
    """GET /messages/dead: the latest first."""

    status: str = "success"
    messages: list[DeadMessageSchema]
    count: int
    total: int  #: all dead messages of the cell
    next: str | None  #: cursor of the next page; null: this is the last one
    timestamp: str


class MessageReplayed(Struct, frozen=True, kw_only=True):
    """POST /messages/{id}/replay."""

    status: str = "success"
    message: str = "The message is delivered"
    message_id: str


class MessagesPurged(Struct, frozen=True, kw_only=True):
    """POST /messages/dead/purge."""

    status: str = "success"
    message: str = "Dead messages deleted"
    purged: int | None  #: null: no router has answered yet


async def list_dead(call: Call[None, DeadQuery]) -> DeadMessagesListed:
    """List messages that could not be delivered, or that expired, with the reason; the latest first."""
    page = await call.backend.dead_messages(limit=call.query.limit, cursor=call.query.cursor)
    found = list(map(DeadMessageSchema.of, page.messages))
    return DeadMessagesListed(messages=found, count=len(found), total=page.total, next=page.next, timestamp=now())


async def replay(call: Call[ReplayMessage, None]) -> Struct | Answer:
    """Deliver a dead message as if it had been sent now."""
    message_id = call.params["message_id"]
    answered = await call.backend.replay_message(message_id, call.body.ttl, call.wait_s)
    return written(call, MessageReplayed(message_id=message_id), answered=answered, path=f"/messages/{message_id}")


async def purge(call: Call[PurgeMessages, None]) -> Struct | Answer:
    """Delete dead messages: one, or all that died at least some time ago. They cannot be restored."""
    message_id, older_than = call.body.message_id, call.body.older_than
    if (message_id is None) == (older_than is None):
        message = "give either message_id or older_than, in seconds (0 for all)"
        raise RequestError("body_invalid", message, [Problem(["body", "message_id"], message, "value_error")])
    purged = await call.backend.purge_messages(message_id, older_than, call.wait_s)
    return written(call, MessagesPurged(purged=purged), answered=purged is not None, path=PATH)
