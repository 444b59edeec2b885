"""The records of tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from coord.codec import assignment_of
from coord.keys import Keys
from coord.models.tasks import AttemptRecord, Priority, TaskError, TaskRecord, TaskState
from coord.queries.fields import decoded, hash_of, int_of, json_of


async def task(redis: Redis, keys: Keys, task_id: str) -> TaskRecord | None:
    """A task's record, or None."""
    raw = await hash_of(redis, keys.task(task_id))
    return _task_record(task_id, raw) if raw else None


async def tasks(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """The records of many tasks in one round trip, in order."""
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.hgetall(keys.task(task_id))
    answers = await pipe.execute()
    return [_task_record(one, raw) if raw else None for one, raw in zip(task_ids, answers, strict=True)]


def _task_record(task_id: str, raw_fields: Mapping[bytes, bytes]) -> TaskRecord:
    raw = decoded(raw_fields)
    body = json_of(raw.get("body")) or {}
    error = json_of(raw.get("error"))
    # Not splitlines: a message may hold one of the other characters that it takes for the end of a line.
    lines = [line for line in raw.get("attempts", "").split("\n") if line]
    held = assignment_of(raw["assignment"]) if "assignment" in raw else None
    return TaskRecord(
        task_id=task_id,
        state=TaskState(raw["state"]),
        priority=Priority(raw["priority"]),
        task_type=body.get("task_type", ""),
        payload=body.get("payload"),
        submitted_at=int(raw.get("submitted_at", 0)),
        pool=raw.get("pool", ""),
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
    )
