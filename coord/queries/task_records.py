"""The records of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON, assignment_of, submission_of
from coord.keys import Keys
from coord.models.tasks import AttemptRecord, Priority, TaskError, TaskRecord, TaskState
from coord.queries.fields import decoded, hash_of, int_of, json_of

#: What a list shows: everything that is small, so that a page of tasks with large payloads is no large answer.
_HEADER = (
    "state", "submission", "attempt", "failures", "releases", "run_at", "deadline", "assignment",
    "started_at", "finished_at", "cancel_at", "error", "dropped",
)  # fmt: skip
#: Bodies, of up to 1 MiB each, that are read in one round trip to learn the type of their pool's tasks.
_BODIES = 16


class _Typed(Struct):
    """The one field of a task's body, or a pool's definition, that is looked for."""

    task_type: str = ""


class _Opaque(Struct):
    """A task's body with its payload as the text that it is."""

    task_type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")


_typed = msgspec.json.Decoder(_Typed)
_opaque = msgspec.json.Decoder(_Opaque)


async def task(redis: Redis, keys: Keys, task_id: str) -> TaskRecord | None:
    """A task's record, or None."""
    raw = await hash_of(redis, keys.task(task_id))
    return _task_record(task_id, raw)


async def tasks(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """The records of many tasks in one round trip, in order."""
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.hgetall(keys.task(task_id))
    answers = await pipe.execute()
    return [_task_record(one, raw) for one, raw in zip(task_ids, answers, strict=True)]


async def task_headers(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """The records of many tasks, in order, without payload, result, progress and attempts."""
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.execute_command("HMGET", keys.task(task_id), *_HEADER)
    records: list[TaskRecord | None] = []
    pools: dict[str, str] = {}
    for task_id, values in zip(task_ids, await pipe.execute(), strict=True):
        raw = {name.encode(): value for name, value in zip(_HEADER, values, strict=True) if value is not None}
        record = _task_record(task_id, raw)
        records.append(record)
        if record is not None and record.pool:
            pools[record.pool] = task_id
    types = await _task_types(redis, keys, pools)
    return [one and msgspec.structs.replace(one, task_type=types.get(one.pool, "")) for one in records]


async def _task_types(redis: Redis, keys: Keys, pools: Mapping[str, str]) -> dict[str, str]:
    """The type of the tasks of each pool, given one of them: told by the pool's definition, else by that one's body."""
    if not pools:
        return {}
    definitions = await redis.execute_command("HMGET", keys.of("pools"), *pools)
    types = {pool: _type_in(raw) for pool, raw in zip(pools, definitions, strict=True) if raw}
    unknown = [pool for pool in pools if pool not in types]
    for at in range(0, len(unknown), _BODIES):
        some = unknown[at : at + _BODIES]
        pipe = redis.pipeline(transaction=False)
        for pool in some:
            pipe.execute_command("HGET", keys.task(pools[pool]), "body")
        types |= {pool: _type_in(raw) for pool, raw in zip(some, await pipe.execute(), strict=True)}
    return types


def _type_in(raw: bytes | None) -> str:
    try:
        return _typed.decode(raw or b"{}").task_type
    except BAD_JSON:
        return ""


def _body_of(raw: str | None) -> dict[str, Any]:
    """The body as it was submitted; a payload that cannot be decoded, such as with 1e999 in it, is its text."""
    body = json_of(raw)
    if isinstance(body, str):
        try:
            parts = _opaque.decode(body)
        except BAD_JSON:
            return {}
        return {"task_type": parts.task_type, "payload": bytes(parts.payload).decode("utf-8", "replace")}
    return body if isinstance(body, dict) else {}


def _task_record(task_id: str, raw_fields: Mapping[bytes, bytes]) -> TaskRecord | None:
    raw = decoded(raw_fields)
    if "submission" not in raw:  # none, or one that a version before the first release has left behind
        return None
    body = _body_of(raw.get("body"))
    error = json_of(raw.get("error"))
    # Not splitlines: a message may hold one of the other characters that it takes for the end of a line.
    lines = [line for line in raw.get("attempts", "").split("\n") if line]
    submitted = submission_of(raw["submission"])
    held = assignment_of(raw["assignment"]) if "assignment" in raw else None
    return TaskRecord(
        task_id=task_id,
        state=TaskState(raw["state"]),
        priority=Priority(submitted.priority),
        task_type=body.get("task_type", ""),
        payload=body.get("payload"),
        submitted_at=submitted.submitted_at,
        pool=submitted.pool,
        attempt=held.attempt if held else int(raw.get("attempt", 0)),
        failures=int(raw.get("failures", 0)),
        releases=int(raw.get("releases", 0)),
        run_at=int_of(raw.get("run_at")),
        deadline=int_of(raw.get("deadline")),
        agent_id=held.agent_id if held else None,
        term=held.term if held else None,
        lease=held.lease if held else None,
        assigned_at=held.assigned_at if held else None,
        started_at=int_of(raw.get("started_at")),
        finished_at=int_of(raw.get("finished_at")),
        cancel_requested_at=int_of(raw.get("cancel_at")),
        replayed_at=int_of(raw.get("replay_id", "").partition("-")[0]),
        progress=json_of(raw.get("progress")),
        placement=json_of(held.placement) if held else None,
        attempts=tuple(msgspec.json.decode(line, type=AttemptRecord) for line in reversed(lines)),
        result=json_of(raw.get("result")),
        error=msgspec.convert(error, TaskError) if isinstance(error, dict) else None,
        dropped="dropped" in raw,
    )
