"""Dead letters: failed tasks, undelivered messages, and entries that could not be handled."""

from __future__ import annotations

import re
from collections.abc import Sequence

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.dead_letters import DeadEntry, DeadLetter
from coord.models.ids import entry_ms
from coord.models.messages import MessageRecord
from coord.queries.messages import STEP, get_message_headers
from coord.queries.reads import chunks, decode_fields, decode_text, parse_json
from coord.queries.tasks import get_tasks

#: ms since 1970 and the id of the last message of a page.
_CURSOR = re.compile(r"([0-9]{1,15})-(.{1,256})")


class DeadMessage(Struct, frozen=True):
    """A message that could not be delivered, or that expired; without its payload."""

    died_at: int  #: ms since 1970 on the server's clock
    record: MessageRecord


class DeadMessagePage(Struct, frozen=True):
    """A page of dead messages, the latest first."""

    messages: tuple[DeadMessage, ...]
    total: int  #: all dead messages of the cell
    next: str | None  #: cursor of the next page; None: last page


async def list_dead_tasks(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """Return at most ``limit`` failed tasks, newest first."""
    newest = await _newest(redis, keys.of("tasks:dead"), limit)
    records = await get_tasks(redis, keys, [task_id for task_id, _ in newest])
    return [
        DeadLetter(
            kind="task",
            id=record.task_id,
            died_at=died_at,
            what=record.task_type,
            code=record.error.code if record.error else "",
            reason=record.error.message if record.error else "",
        )
        for (_, died_at), record in zip(newest, records, strict=True)
        if record is not None
    ]


async def list_dead_messages(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """Return at most ``limit`` undelivered messages, newest first."""
    page = await get_dead_message_page(redis, keys, limit=limit)
    return [
        DeadLetter(
            kind="message",
            id=one.record.message_id,
            died_at=one.died_at,
            what=f"{one.record.sender_id} to {one.record.receiver_id}",
            code=one.record.code,
            reason=one.record.reason,
        )
        for one in page.messages
    ]


async def get_dead_message_page(
    redis: Redis, keys: Keys, *, limit: int = 100, cursor: str | None = None
) -> DeadMessagePage:
    """Return a page of undelivered messages, the latest first.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from a list of dead messages.
    """
    key = keys.of("messages:dead")
    after = None if cursor is None else _position(cursor)
    found: list[tuple[int, bytes]] = []
    offset = 0
    while True:  # messages that died in the same ms are in one order, and those before the cursor are skipped
        begin = "+inf" if after is None else after[0]
        listed: Sequence[tuple[bytes, float]] = await redis.zrange(  # type: ignore[assignment]
            key, begin, "-inf", byscore=True, desc=True, offset=offset, num=limit + 1, withscores=True
        )
        offset += len(listed)
        found += [(int(score), member) for member, score in listed if after is None or (int(score), member) < after]
        if len(found) > limit or len(listed) <= limit:
            break
    shown = found[:limit]
    records: list[MessageRecord | None] = []
    for chunk in chunks([member.decode() for _, member in shown], STEP):
        records += await get_message_headers(redis, keys, chunk)
    return DeadMessagePage(
        messages=tuple(
            DeadMessage(died_at, record)
            for (died_at, _), record in zip(shown, records, strict=True)
            if record is not None
        ),
        total=int(await redis.zcard(key)),
        next=f"{shown[-1][0]}-{shown[-1][1].decode()}" if len(found) > limit else None,
    )


async def list_dead_entries(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """Return at most ``limit`` entries of ``dead:in``, newest first."""
    key = keys.of("dead:in")
    newest: Sequence[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(
        "XREVRANGE", key, "+", "-", "COUNT", limit
    )
    return [
        DeadLetter(
            kind="entry",
            id=entry.entry_id,
            died_at=entry.buried_at,
            what=f"{entry.stream} {entry.type}".strip(),
            code=entry.code,
            reason=entry.reason,
        )
        for entry in (_dead_entry(entry_id, fields) for entry_id, fields in newest)
    ]


async def get_dead_entry(redis: Redis, keys: Keys, entry_id: str) -> DeadEntry | None:
    """Return an entry of ``dead:in``, or None."""
    answer: Sequence[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(
        "XRANGE", keys.of("dead:in"), entry_id, entry_id
    )
    return _dead_entry(*answer[0]) if answer else None


async def count_dead_letters(redis: Redis, keys: Keys) -> dict[str, int]:
    """Return the number of dead letters of each kind."""
    pipe = redis.pipeline(transaction=False)
    pipe.zcard(keys.of("tasks:dead"))
    pipe.zcard(keys.of("messages:dead"))
    pipe.xlen(keys.of("dead:in"))
    tasks, messages, entries = await pipe.execute()
    return {"task": int(tasks), "message": int(messages), "entry": int(entries)}


def _position(cursor: str) -> tuple[int, bytes]:
    """Return the time and the id in a cursor."""
    found = _CURSOR.fullmatch(cursor)
    if found is None:
        raise CursorInvalid(
            f"cursor {cursor[:80]!r} does not come from a list of dead messages; leave it out to start at the latest"
        )
    return int(found[1]), found[2].encode()


async def _newest(redis: Redis, key: str, limit: int) -> list[tuple[str, int]]:
    command = ("ZREVRANGE", key, 0, limit - 1, "WITHSCORES")
    answer: Sequence[tuple[bytes, float]] = await redis.execute_command(*command)
    return [(decode_text(member), int(score)) for member, score in answer]


def _dead_entry(raw_id: bytes, raw_fields: dict[bytes, bytes]) -> DeadEntry:
    fields = decode_fields(raw_fields)
    entry_id = decode_text(raw_id)
    return DeadEntry(
        entry_id=entry_id,
        buried_at=entry_ms(entry_id),
        stream=fields.get("stream", ""),
        id=fields.get("id", ""),
        type=fields.get("type", ""),
        caller=fields.get("caller", ""),
        code=fields.get("code", ""),
        reason=fields.get("reason", ""),
        data=parse_json(fields.get("data")),
        is_whole=fields.get("whole", "0") == "1",
    )
