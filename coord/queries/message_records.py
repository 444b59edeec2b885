"""The records of messages: one, and pages of them by time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.messages import MessageRecord, MessageStatus
from coord.queries.fields import decoded, hash_of, json_of

#: What a list shows: without the payload, which may be large.
_HEADER = (
    "sender_id", "receiver_id", "message_type", "priority", "status", "sent_at", "expires_at", "reason",
)  # fmt: skip
#: Entries of the log read in one step, and at most for one page.
STEP = 200
BUDGET = 10_000
_ENTRY = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


class MessagePage(Struct, frozen=True):
    """Some messages, without payload."""

    messages: tuple[MessageRecord, ...]
    next: str | None  #: cursor of the next page; None: there is none. A page may be short, even empty, and go on


async def message(redis: Redis, keys: Keys, message_id: str) -> MessageRecord | None:
    """A message's record, or None."""
    raw = await hash_of(redis, keys.message(message_id))
    return _message_record(message_id, raw) if raw else None


async def message_page(
    redis: Redis,
    keys: Keys,
    *,
    agent_id: str | None = None,
    status: MessageStatus | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> MessagePage:
    """At most ``limit`` messages, the last first, from ``cursor`` on.

    They are those that the message log still tells of and whose records are still kept.

    Args:
        redis: a client.
        keys: of the cell.
        agent_id: sent or received by this agent.
        status: of this status only.
        limit: at least 1.
        cursor: ``next`` of the page before.

    Raises:
        CursorInvalid: the cursor is no such thing.
    """
    if cursor is not None and not _ENTRY.fullmatch(cursor):
        raise CursorInvalid(f"cursor {cursor[:80]!r} was not given by a list of messages; leave it out to begin anew")
    found: dict[str, MessageRecord] = {}
    for _ in range(BUDGET // STEP):
        until = "+" if cursor is None else f"({cursor}"
        command = ("XREVRANGE", keys.of("log:messages"), until, "-", "COUNT", STEP)
        entries: list[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(*command)
        ids = [fields.get(b"message_id", b"").decode("utf-8", "replace") for _, fields in entries]
        records = await _headers(redis, keys, ids)
        for (entry, _), record in zip(entries, records, strict=True):
            cursor = entry.decode()
            if record is None or record.message_id in found or status not in {None, record.status}:
                continue
            if agent_id in {None, record.sender_id, record.receiver_id}:
                found[record.message_id] = record
                if len(found) == limit:
                    return MessagePage(tuple(found.values()), cursor)
        if len(entries) < STEP:
            return MessagePage(tuple(found.values()), None)
    return MessagePage(tuple(found.values()), cursor)


async def _headers(redis: Redis, keys: Keys, message_ids: Sequence[str]) -> list[MessageRecord | None]:
    pipe = redis.pipeline(transaction=False)
    for one in message_ids:
        pipe.execute_command("HMGET", keys.message(one), *_HEADER)
    records: list[MessageRecord | None] = []
    for one, values in zip(message_ids, await pipe.execute(), strict=True):
        raw = {name.encode(): value for name, value in zip(_HEADER, values, strict=True) if value is not None}
        records.append(_message_record(one, raw) if raw else None)
    return records


def _message_record(message_id: str, raw_fields: Mapping[bytes, bytes]) -> MessageRecord:
    raw = decoded(raw_fields)
    return MessageRecord(
        message_id=message_id,
        sender_id=raw["sender_id"],
        receiver_id=raw["receiver_id"],
        message_type=raw["message_type"],
        priority=raw["priority"],
        status=MessageStatus(raw["status"]),
        sent_at=int(raw["sent_at"]),
        expires_at=int(raw["expires_at"]),
        payload=json_of(raw.get("body")),
        reason=raw.get("reason", ""),
    )
