"""Dead letters: failed tasks, messages that could not be delivered, entries that could not be handled."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.dead import DeadEntry, DeadLetter
from coord.queries.fields import decoded, json_of, text_of
from coord.queries.message_records import message
from coord.queries.task_records import tasks


async def dead_tasks(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """The tasks that failed last, newest first."""
    found = await _newest(redis, keys.of("tasks:dead"), limit)
    records = await tasks(redis, keys, [one for one, _ in found])
    return [
        DeadLetter(
            kind="task",
            id=record.task_id,
            died_at=at,
            what=record.task_type,
            code=record.error.code if record.error else "",
            reason=record.error.message if record.error else "",
        )
        for (_, at), record in zip(found, records, strict=True)
        if record is not None
    ]


async def dead_messages(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """The messages that could not be delivered last, newest first."""
    letters: list[DeadLetter] = []
    for message_id, at in await _newest(redis, keys.of("messages:dead"), limit):
        record = await message(redis, keys, message_id)
        if record is not None:
            what = f"{record.sender_id} to {record.receiver_id}"
            letters.append(
                DeadLetter(kind="message", id=message_id, died_at=at, what=what, code="", reason=record.reason)
            )
    return letters


async def dead_entries(redis: Redis, keys: Keys, limit: int) -> list[DeadLetter]:
    """The entries that were buried last, newest first."""
    key = keys.of("dead:in")
    found: Sequence[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(
        "XREVRANGE", key, "+", "-", "COUNT", limit
    )
    return [
        DeadLetter(
            kind="entry",
            id=one.entry_id,
            died_at=one.buried_at,
            what=f"{one.stream} {one.type}".strip(),
            code=one.code,
            reason=one.reason,
        )
        for one in (_entry(entry_id, fields) for entry_id, fields in found)
    ]


async def dead_entry(redis: Redis, keys: Keys, entry_id: str) -> DeadEntry | None:
    """A buried entry, or None."""
    found: Sequence[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command(
        "XRANGE", keys.of("dead:in"), entry_id, entry_id
    )
    return _entry(*found[0]) if found else None


async def count_dead(redis: Redis, keys: Keys) -> dict[str, int]:
    """How many dead letters of each kind there are."""
    pipe = redis.pipeline(transaction=False)
    pipe.zcard(keys.of("tasks:dead"))
    pipe.zcard(keys.of("messages:dead"))
    pipe.xlen(keys.of("dead:in"))
    failed, undelivered, buried = await pipe.execute()
    return {"task": int(failed), "message": int(undelivered), "entry": int(buried)}


async def _newest(redis: Redis, key: str, limit: int) -> list[tuple[str, int]]:
    command = ("ZREVRANGE", key, 0, limit - 1, "WITHSCORES")
    found: Sequence[tuple[bytes, float]] = await redis.execute_command(*command)
    return [(text_of(member), int(score)) for member, score in found]


def _entry(entry_id: bytes, raw: dict[bytes, bytes]) -> DeadEntry:
    fields = decoded(raw)
    text = text_of(entry_id)
    return DeadEntry(
        entry_id=text,
        buried_at=int(text.partition("-")[0]),
        stream=fields.get("stream", ""),
        id=fields.get("id", ""),
        type=fields.get("type", ""),
        caller=fields.get("caller", ""),
        code=fields.get("code", ""),
        reason=fields.get("reason", ""),
        data=json_of(fields.get("data")),
        is_whole=fields.get("whole", "0") == "1",
    )
