"""Messages: single records, pages of messages by time, and what became of a message for each recipient.

A record says that a message was delivered. Whether its receiver has read it is seen in the inbox: a receiver removes
what it has handled. A router takes out what expired, and records that.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from hashlib import sha1
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from coord.errors import CursorInvalid, MessageNotFound
from coord.keys import Keys
from coord.models.messages import Conversation, MessageRecipient, MessageRecord, MessageStatus, RequestState
from coord.models.tasks import Lane
from coord.queries.reads import chunks, decode_fields, decode_text, get_time, parse_int, parse_json, read_hash

#: Fields that a list shows: all but the payload, which may be large.
_HEADER = (
    "sender_id", "receiver_id", "message_type", "protocol", "priority", "status", "sent_at", "expires_at", "reason",
    "code", "inbox_entry", "correlation_id", "reply_to", "parent", "conversation", "hops", "reply_by", "request",
    "failed", "late", "traceparent", "recipients", "delivered", "dead",
)  # fmt: skip
#: Log entries read in one step.
STEP = 200
#: Maximum number of log entries read for one page.
BUDGET = 10_000
#: Recipients of a broadcast among which one is looked for in one step.
_RECIPIENTS = 5_000
#: Entries of inboxes looked up in one round trip; one that is unread comes with its payload.
INBOX_STEP = 50
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")
#: The code of a dead letter that expired.
_EXPIRED = "message_expired"


class MessagePage(Struct, frozen=True):
    """A page of messages, without payload."""

    messages: tuple[MessageRecord, ...]
    next: str | None  #: cursor of the next page; None: last page. A page may be short, even empty, before the last


class RecipientPage(Struct, frozen=True):
    """A page of the recipients of a message, sorted by agent."""

    recipients: tuple[MessageRecipient, ...]
    next: str | None  #: cursor of the next page; None: last page


async def get_message(redis: Redis, keys: Keys, message_id: str) -> MessageRecord | None:
    """Return a message's record, or None."""
    raw = await read_hash(redis, keys.message(message_id))
    if not raw:
        return None
    return (await _with_status(redis, keys, [_message_record(message_id, raw)], [_entry_of(raw)]))[0]


async def list_recipients(
    redis: Redis, keys: Keys, message_id: str, *, limit: int = 100, cursor: str | None = None
) -> RecipientPage | None:
    """Return what became of a message for each recipient; None if there is no such message.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        message_id: of the message.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from a list of recipients.
    """
    if cursor is not None and not (cursor.isascii() and cursor.isdecimal() and len(cursor) < 10):
        raise CursorInvalid(
            f"cursor {cursor[:80]!r} does not come from a list of recipients; leave it out to start at the beginning"
        )
    record = await get_message(redis, keys, message_id)
    if record is None:
        return None
    begin = int(cursor or 0)
    if record.recipient_count is not None:
        outcomes, total = await _broadcast_outcomes(redis, keys, message_id, begin, limit)
    else:
        copies = decode_fields(await read_hash(redis, keys.copies(message_id)))
        if not copies:
            only = MessageRecipient(agent_id=record.receiver_id, status=record.status, code=record.code)
            return RecipientPage((only,), None)
        outcomes, total = dict(sorted(copies.items())[begin : begin + limit]), len(copies)
    found = await _recipients(redis, keys, record, outcomes)
    end = begin + len(found)
    return RecipientPage(tuple(found), str(end) if found and end < total else None)


class MessageCopy(NamedTuple):
    """A message in the inbox of one recipient."""

    agent_id: str
    lane: Lane
    entry: str  #: empty: it never got there


async def get_message_copy(redis: Redis, keys: Keys, message_id: str, agent_id: str | None = None) -> MessageCopy:
    """Return where the copy of a message for an agent is, or was until it was read.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        message_id: of the message.
        agent_id: the recipient; None: the only one.

    Raises:
        MessageNotFound: there is no such message, or it is not for this agent.
    """
    raw = await read_hash(redis, keys.message(message_id))
    if not raw:
        raise MessageNotFound(f"Message '{message_id}' not found")
    record = _message_record(message_id, raw)
    lane = Lane(record.priority)
    entry = _entry_of(raw)
    if entry and agent_id in {None, record.receiver_id}:
        return MessageCopy(record.receiver_id, lane, entry)
    if agent_id is None:
        raise MessageNotFound(f"Message '{message_id}' has several recipients, or none got it; name one as agent_id")
    ended = decode_text(await redis.execute_command("HGET", keys.copies(message_id), agent_id) or b"")
    outcome = ended or await _broadcast_outcome(redis, keys, message_id, agent_id)
    if outcome is None:
        raise MessageNotFound(f"Message '{message_id}' is not for agent '{agent_id}'")
    word, _, entry = outcome.partition(" ")
    return MessageCopy(agent_id, lane, entry if word == "delivered" else "")


async def _broadcast_outcome(redis: Redis, keys: Keys, message_id: str, agent_id: str) -> str | None:
    """Return the outcome of one recipient of a broadcast, as ``_broadcast_outcomes``; None: it is none."""
    begin, total = 0, 1
    while begin < total:
        found, total = await _broadcast_outcomes(redis, keys, message_id, begin, _RECIPIENTS)
        if agent_id in found:
            return found[agent_id]
        begin += _RECIPIENTS
    return None


async def _broadcast_outcomes(
    redis: Redis, keys: Keys, message_id: str, begin: int, limit: int
) -> tuple[dict[str, str], int]:
    """Return the outcome of some recipients of a broadcast, as in ``copies:{message}``, and the number of recipients.

    The code of a copy that could not be delivered is followed by the id of its dead letter. The outcome of a recipient
    that does not have it yet is empty.
    """
    total, size = [int(value or 0) for value in await redis.hmget(keys.message(message_id), "recipients", "chunk")]
    if total == 0:
        return {}, 0
    first, last = begin // size, (begin + limit - 1) // size
    pipe = redis.pipeline(transaction=False)
    pipe.lrange(keys.of(f"recipients:{message_id}"), first, last)
    pipe.lrange(keys.of(f"outcomes:{message_id}"), first, last)
    agents, words = [[word for item in items for word in decode_text(item).split()] for items in await pipe.execute()]
    words += [""] * (len(agents) - len(words))
    skipped = begin - first * size
    found: dict[str, str] = {}
    for agent, word in list(zip(agents, words, strict=True))[skipped : skipped + limit]:
        if not word or _CURSOR.fullmatch(word):
            found[agent] = f"delivered {word}" if word else ""
        else:
            letter = sha1(f"{message_id} {agent}".encode(), usedforsecurity=False).hexdigest()
            found[agent] = f"dead {word} {letter}"
    if found:
        ended = await redis.hmget(keys.copies(message_id), *found)
        found |= {agent: decode_text(outcome) for agent, outcome in zip(found, ended, strict=True) if outcome}
    return found, total


async def _recipients(
    redis: Redis, keys: Keys, record: MessageRecord, outcomes: Mapping[str, str]
) -> list[MessageRecipient]:
    """Return what became of a message for some of its recipients, from their outcomes."""
    words = {agent: outcome.partition(" ") for agent, outcome in outcomes.items()}
    delivered = [agent for agent, (word, _, _) in words.items() if word == "delivered"]
    places = [_Copy(f"{agent}:{record.priority}", words[agent][2], record.expires_at) for agent in delivered]
    statuses = dict(zip(delivered, await _status_of(redis, keys, places), strict=True))
    found: list[MessageRecipient] = []
    for agent, (word, _, rest) in words.items():
        code, _, letter = rest.partition(" ")
        if word == "delivered":
            found.append(MessageRecipient(agent_id=agent, status=statuses[agent]))
        elif not word:
            found.append(MessageRecipient(agent_id=agent, status=MessageStatus.DELIVERING))
        elif code == _EXPIRED:
            found.append(MessageRecipient(agent_id=agent, status=MessageStatus.EXPIRED, code=code))
        else:
            found.append(MessageRecipient(agent_id=agent, status=MessageStatus.DEAD, code=code, dead_letter=letter))
    return found


async def list_messages(
    redis: Redis,
    keys: Keys,
    *,
    agent_id: str | None = None,
    conversation_id: str | None = None,
    status: MessageStatus | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> MessagePage:
    """Return at most ``limit`` messages, newest first, starting at ``cursor``.

    Listed are the messages whose records are still kept, and that are in the history of the agent (its newest 1,000);
    without an agent in the index of the conversation; without both in the message log.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        agent_id: only messages that this agent sent or received.
        conversation_id: only messages of this conversation, and the message with this id.
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
        if agent_id is None and conversation_id is not None:
            listed = await _step_of_conversation(redis, keys, conversation_id, cursor)
        else:
            source = keys.of("log:messages") if agent_id is None else keys.history(agent_id)
            listed = await _step_of_stream(redis, source, cursor)
        records = await get_message_headers(redis, keys, [one.message_id for one in listed])
        for one, record in zip(listed, records, strict=True):
            cursor = one.cursor
            if record is None or record.message_id in found or status not in {None, record.status}:
                continue
            if conversation_id not in {None, record.correlation_id, record.message_id, record.conversation}:
                continue
            found[record.message_id] = record
            if len(found) == limit:
                return MessagePage(tuple(found.values()), cursor)
        if len(listed) < STEP:
            return MessagePage(tuple(found.values()), None)
    return MessagePage(tuple(found.values()), cursor)


class _Listed(NamedTuple):
    """A message in an index, and the cursor that continues after it."""

    message_id: str
    cursor: str


async def _step_of_stream(redis: Redis, stream: str, cursor: str | None) -> list[_Listed]:
    """Return the next messages of a history or a log, the newest first."""
    until = "+" if cursor is None else f"({cursor}"
    entries = await redis.execute_command("XREVRANGE", stream, until, "-", "COUNT", STEP)
    return [_Listed(decode_text(fields.get(b"message_id", b"")), entry_id.decode()) for entry_id, fields in entries]


#: The cursor after the message that gives a conversation its name.
_AFTER_FIRST = "0-0"


async def _step_of_conversation(redis: Redis, keys: Keys, conversation_id: str, cursor: str | None) -> list[_Listed]:
    """Return the next messages of a conversation, the newest first, and at last the message with its id.

    A cursor is the number of a message in the conversation, and 0.
    """
    if cursor == _AFTER_FIRST:
        return []
    key, until = keys.conversation(conversation_id), "+inf" if cursor is None else f"({cursor.partition('-')[0]}"
    pipe = redis.pipeline(transaction=False)
    pipe.zrange(key, until, "-inf", byscore=True, desc=True, offset=0, num=STEP, withscores=True)
    pipe.zrange(key, 0, 0)
    numbered, first = await pipe.execute()
    listed = [_Listed(decode_text(member), f"{int(score)}-0") for member, score in numbered]
    if len(listed) < STEP and first != [conversation_id.encode()]:
        listed.append(_Listed(conversation_id, _AFTER_FIRST))  # it is not part of it as long as no message answers it
    return listed


async def get_conversation(redis: Redis, keys: Keys, conversation_id: str) -> Conversation | None:
    """Return a conversation, or None.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        conversation_id: its id, or that of one of its messages.
    """
    ids: list[bytes] = await redis.execute_command("ZRANGE", keys.conversation(conversation_id), 0, -1)
    if not ids:
        (record,) = await get_message_headers(redis, keys, [conversation_id])
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
        found += [record for record in await get_message_headers(redis, keys, chunk) if record is not None]
    return Conversation(conversation_id, tuple(found), len(ids))


async def get_message_headers(redis: Redis, keys: Keys, message_ids: Sequence[str]) -> list[MessageRecord | None]:
    """Return the records of messages without their payloads; None for one that is not kept."""
    pipe = redis.pipeline(transaction=False)
    for message_id in message_ids:
        pipe.execute_command("HMGET", keys.message(message_id), *_HEADER)
    records: list[MessageRecord] = []
    entries: list[str] = []
    for message_id, values in zip(message_ids, await pipe.execute(), strict=True):
        raw = {name.encode(): value for name, value in zip(_HEADER, values, strict=True) if value is not None}
        if raw:
            records.append(_message_record(message_id, raw))
            entries.append(_entry_of(raw))
    found = {record.message_id: record for record in await _with_status(redis, keys, records, entries)}
    return [found.get(message_id) for message_id in message_ids]


async def _with_status(
    redis: Redis, keys: Keys, records: Sequence[MessageRecord], entries: Sequence[str]
) -> list[MessageRecord]:
    """Return the records with the status that the inboxes of the receivers show.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        records: as they are stored.
        entries: of each message in the inbox of its receiver; empty: it has several receivers, or none got it.
    """
    copies = [
        _Copy(f"{record.receiver_id}:{record.priority}", entry, record.expires_at)
        if entry and record.status is MessageStatus.DELIVERED
        else None
        for record, entry in zip(records, entries, strict=True)
    ]
    statuses = iter(await _status_of(redis, keys, [copy for copy in copies if copy is not None]))
    return [
        record if copy is None else replace(record, status=next(statuses))
        for record, copy in zip(records, copies, strict=True)
    ]


class _Copy(NamedTuple):
    """A message that was put into an inbox."""

    inbox: str  #: agent and lane
    entry: str
    expires_at: int


async def _status_of(redis: Redis, keys: Keys, copies: Sequence[_Copy]) -> list[MessageStatus]:
    """Return the status of each copy; delivered, if this user may not read the inbox."""
    found: list[MessageStatus] = []
    for some in chunks(copies, INBOX_STEP):
        pipe = redis.pipeline(transaction=False)
        for copy in some:
            pipe.execute_command("XRANGE", keys.of(f"inbox:{copy.inbox}"), copy.entry, copy.entry)
        answers = await pipe.execute(raise_on_error=False)
        now: int | None = None
        for copy, answer in zip(some, answers, strict=True):
            if isinstance(answer, Exception):
                if not isinstance(answer, NoPermissionError):
                    raise answer
                found.append(MessageStatus.DELIVERED)
            elif not answer:
                found.append(MessageStatus.READ)
            else:
                now = await get_time(redis) if now is None else now
                found.append(MessageStatus.EXPIRED if now >= copy.expires_at else MessageStatus.DELIVERED)
    return found


def _entry_of(raw: Mapping[bytes, bytes]) -> str:
    return decode_text(raw.get(b"inbox_entry", b""))


def _message_record(message_id: str, raw_fields: Mapping[bytes, bytes]) -> MessageRecord:
    raw = decode_fields(raw_fields)
    code = raw.get("code", "")
    return MessageRecord(
        message_id=message_id,
        sender_id=raw["sender_id"],
        receiver_id=raw["receiver_id"],
        message_type=raw["message_type"],
        priority=raw["priority"],
        status=MessageStatus.EXPIRED if code == _EXPIRED else MessageStatus(raw["status"]),
        sent_at=int(raw["sent_at"]),
        expires_at=int(raw["expires_at"]),
        payload=parse_json(raw.get("body")),
        reason=raw.get("reason", ""),
        parent=raw.get("parent"),
        conversation=raw.get("conversation"),
        hops=int(raw.get("hops", 0)),
        reply_by=parse_int(raw.get("reply_by")),
        request=RequestState(raw["request"]) if "request" in raw else None,
        failed=raw.get("failed") == "1",
        late=raw.get("late") == "1",
        traceparent=raw.get("traceparent"),
        protocol=raw.get("protocol", "direct"),
        code=code,
        correlation_id=raw.get("correlation_id") or None,
        reply_to=raw.get("reply_to") or None,
        recipient_count=parse_int(raw.get("recipients")),
        delivered=parse_int(raw.get("delivered")),
        dead=parse_int(raw.get("dead")),
    )
