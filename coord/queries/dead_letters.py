"""Dead letters: failed tasks, undelivered messages, and entries that could not be handled."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.dead_letters import DeadEntry, DeadLetter
from coord.models.ids import entry_ms
from coord.queries.messages import get_message
from coord.queries.reads import decode_fields, decode_text, parse_json
from coord.queries.tasks import get_tasks


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
    letters: list[DeadLetter] = []
    for message_id, died_at in await _newest(redis, keys.of("messages:dead"), limit):
        record = await get_message(redis, keys, message_id)
        if record is not None:
            what = f"{record.sender_id} to {record.receiver_id}"
            letters.append(
                DeadLetter(
                    kind="message", id=message_id, died_at=died_at, what=what, code=record.code, reason=record.reason
                )
            )
    return letters


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
