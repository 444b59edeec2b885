"""Messages: single records, pages of messages by time, and the recipients of a broadcast."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha1

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.messages import MessageRecipient, MessageRecord, MessageStatus, RecipientStatus
from coord.queries.reads import chunks, decode_fields, decode_text, parse_int, parse_json, read_hash

#: Fields that a list shows: all but the payload, which may be large.
_HEADER = (
    "sender_id", "receiver_id", "message_type", "priority", "status", "sent_at", "expires_at", "reason",
    "recipients", "delivered", "dead",
)  # fmt: skip
#: Log entries read in one step.
STEP = 200
#: Copies of a broadcast in inboxes that are looked for in one round trip; each may have 1 MiB.
COPIES = 50
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
        recipients=parse_int(raw.get("recipients")),
        delivered=parse_int(raw.get("delivered")),
        dead=parse_int(raw.get("dead")),
    )


class RecipientPage(Struct, frozen=True):
    """A page of the recipients of a broadcast."""

    recipients: tuple[MessageRecipient, ...]
    next: str | None  #: cursor of the next page; None: last page


async def list_recipients(
    redis: Redis, keys: Keys, message_id: str, *, limit: int = 100, cursor: str | None = None
) -> RecipientPage | None:
    """Return at most ``limit`` recipients of a broadcast, by id, and what became of it for each of them.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        message_id: of the broadcast.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Returns:
        None if there is no such message.

    Raises:
        CursorInvalid: the cursor does not come from a list of recipients.
    """
    if cursor is not None and not cursor.isdecimal():
        raise CursorInvalid(
            f"cursor {cursor[:80]!r} does not come from a list of recipients; leave it out to start at the beginning"
        )
    begin = int(cursor or 0)
    total, size, lane = await redis.hmget(keys.message(message_id), "recipients", "chunk", "priority")
    if lane is None:
        return None
    if total is None or size is None:
        return RecipientPage((), None)
    first, last = begin // int(size), (begin + limit - 1) // int(size)
    pipe = redis.pipeline(transaction=False)
    pipe.lrange(keys.of(f"recipients:{message_id}"), first, last)
    pipe.lrange(keys.of(f"outcomes:{message_id}"), first, last)
    agents, outcomes = [
        [word for item in items for word in decode_text(item).split()] for items in await pipe.execute()
    ]
    outcomes += [""] * (len(agents) - len(outcomes))
    skipped = begin - first * int(size)
    pairs = list(zip(agents, outcomes, strict=True))[skipped : skipped + limit]
    found = [await _recipients_of(redis, keys, message_id, decode_text(lane), some) for some in chunks(pairs, COPIES)]
    end = begin + len(pairs)
    is_last = not pairs or end >= int(total)
    return RecipientPage(tuple(one for some in found for one in some), None if is_last else str(end))


async def _recipients_of(
    redis: Redis, keys: Keys, message_id: str, lane: str, pairs: Sequence[tuple[str, str]]
) -> list[MessageRecipient]:
    """Return recipients from pairs of an agent and its outcome: an entry id, a code, or nothing yet."""
    pipe = redis.pipeline(transaction=False)
    for agent_id, outcome in pairs:
        if _CURSOR.fullmatch(outcome):
            pipe.execute_command("XRANGE", keys.inbox(agent_id, lane), outcome, outcome)
            pipe.exists(keys.agent(agent_id))
    answers = iter(await pipe.execute())
    found: list[MessageRecipient] = []
    for agent_id, outcome in pairs:
        if not outcome:
            found.append(MessageRecipient(agent_id, RecipientStatus.WAITING))
        elif outcome == "message_expired":
            found.append(MessageRecipient(agent_id, RecipientStatus.EXPIRED, outcome))
        elif not _CURSOR.fullmatch(outcome):
            letter = sha1(f"{message_id} {agent_id}".encode(), usedforsecurity=False).hexdigest()
            found.append(MessageRecipient(agent_id, RecipientStatus.DEAD, outcome, letter))
        else:
            is_there, has_record = next(answers), next(answers)
            status = RecipientStatus.READ if has_record else RecipientStatus.GONE
            found.append(MessageRecipient(agent_id, RecipientStatus.DELIVERED if is_there else status))
    return found
