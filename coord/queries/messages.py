"""Messages: single records, and pages of messages by time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.messages import Conversation, MessageRecord, MessageStatus, RequestState
from coord.queries.reads import chunks, decode_fields, parse_int, parse_json, read_hash

#: Fields that a list shows: all but the payload, which may be large.
_HEADER = (
    "sender_id", "receiver_id", "message_type", "priority", "status", "sent_at", "expires_at", "reason",
    "correlation_id", "reply_to", "parent", "conversation", "hops", "reply_by", "request", "failed", "late",
    "traceparent",
)  # fmt: skip
#: Log entries read in one step.
STEP = 200
#: Maximum number of log entries read for one page.
BUDGET = 10_000
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


class MessagePage(Struct, frozen=True):
    """A page of messages, without payload."""

    messages: tuple[MessageRecord, ...]
    next: str | None  #: cursor of the next page; None: last page. A page may be short, even empty, before the last


async def get_message(redis: Redis, keys: Keys, message_id: str) -> MessageRecord | None:
    """Return a message's record, or None."""
    raw = await read_hash(redis, keys.message(message_id))
    return _message_record(message_id, raw) if raw else None


async def list_messages(
    redis: Redis,
    keys: Keys,
    *,
    agent_id: str | None = None,
    status: MessageStatus | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> MessagePage:
    """Return at most ``limit`` messages, newest first, starting at ``cursor``.

    Listed are the messages that are still in the message log and whose records are still kept.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        agent_id: only messages that this agent sent or received.
        status: only messages with this status.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from a list of messages.
    """
    if cursor is not None and not _CURSOR.fullmatch(cursor):
        raise CursorInvalid(
            f"cursor {cursor[:80]!r} does not come from a list of messages; leave it out to start at the beginning"
        )
    found: dict[str, MessageRecord] = {}
    for _ in range(BUDGET // STEP):
        until = "+" if cursor is None else f"({cursor}"
        command = ("XREVRANGE", keys.of("log:messages"), until, "-", "COUNT", STEP)
        entries: list[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(*command)
        ids = [fields.get(b"message_id", b"").decode("utf-8", "replace") for _, fields in entries]
        records = await _headers(redis, keys, ids)
        for (entry_id, _), record in zip(entries, records, strict=True):
            cursor = entry_id.decode()
            if record is None or record.message_id in found or status not in {None, record.status}:
                continue
            if agent_id in {None, record.sender_id, record.receiver_id}:
                found[record.message_id] = record
                if len(found) == limit:
                    return MessagePage(tuple(found.values()), cursor)
        if len(entries) < STEP:
            return MessagePage(tuple(found.values()), None)
    return MessagePage(tuple(found.values()), cursor)


async def get_conversation(redis: Redis, keys: Keys, conversation_id: str) -> Conversation | None:
    """Return a conversation, or None.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        conversation_id: its id, or that of one of its messages.
    """
    ids: list[bytes] = await redis.execute_command("ZRANGE", keys.conversation(conversation_id), 0, -1)
    if not ids:
        (record,) = await _headers(redis, keys, [conversation_id])
        if record is None:
            return None
        if record.conversation is None:
            return Conversation(conversation_id, (record,), 1)
        conversation_id = record.conversation
        ids = await redis.execute_command("ZRANGE", keys.conversation(conversation_id), 0, -1)
        if not ids:
            return Conversation(conversation_id, (record,), 1)
    found: list[MessageRecord] = []
    for chunk in chunks([raw.decode() for raw in ids], STEP):
        found += [record for record in await _headers(redis, keys, chunk) if record is not None]
    return Conversation(conversation_id, tuple(found), len(ids))


async def _headers(redis: Redis, keys: Keys, message_ids: Sequence[str]) -> list[MessageRecord | None]:
    pipe = redis.pipeline(transaction=False)
    for message_id in message_ids:
        pipe.execute_command("HMGET", keys.message(message_id), *_HEADER)
    records: list[MessageRecord | None] = []
    for message_id, values in zip(message_ids, await pipe.execute(), strict=True):
        raw = {name.encode(): value for name, value in zip(_HEADER, values, strict=True) if value is not None}
        records.append(_message_record(message_id, raw) if raw else None)
    return records


def _message_record(message_id: str, raw_fields: Mapping[bytes, bytes]) -> MessageRecord:
    raw = decode_fields(raw_fields)
    return MessageRecord(
        message_id=message_id,
        sender_id=raw["sender_id"],
        receiver_id=raw["receiver_id"],
        message_type=raw["message_type"],
        priority=raw["priority"],
        status=MessageStatus(raw["status"]),
        sent_at=int(raw["sent_at"]),
        expires_at=int(raw["expires_at"]),
        payload=parse_json(raw.get("body")),
        reason=raw.get("reason", ""),
        correlation_id=raw.get("correlation_id"),
        reply_to=raw.get("reply_to"),
        parent=raw.get("parent"),
        conversation=raw.get("conversation"),
        hops=int(raw.get("hops", 0)),
        reply_by=parse_int(raw.get("reply_by")),
        request=RequestState(raw["request"]) if "request" in raw else None,
        failed=raw.get("failed") == "1",
        late=raw.get("late") == "1",
        traceparent=raw.get("traceparent"),
    )
