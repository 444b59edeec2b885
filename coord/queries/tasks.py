"""Tasks: single records, and the counters. ``task_pages`` finds tasks by a query."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON, parse_assignment, parse_attempts, parse_preferences, parse_submission
from coord.keys import Keys
from coord.models.ids import entry_ms
from coord.models.tasks import Priority, Requirements, TaskError, TaskRecord, TaskState
from coord.queries.reads import chunks, decode_fields, parse_int, parse_json, read_hash

#: Fields that a list shows: the small ones, so that a page of tasks with large payloads is not a large answer.
_HEADER = (
    "state", "submission", "attempt", "failures", "releases", "run_at", "deadline", "assignment",
    "started_at", "finished_at", "cancel_at", "error", "dropped",
)  # fmt: skip
#: Bodies, of up to 1 MiB each, that are read in one round trip to learn the type of the tasks of their pool.
_BODIES = 16

_S = TaskState
#: Where tasks are -> the states that they have there, in the order in which they are listed.
SECTIONS: dict[str, frozenset[TaskState]] = {
    "held": frozenset({_S.ASSIGNED, _S.RUNNING}),
    "queued": frozenset({_S.QUEUED}),
    "scheduled": frozenset({_S.SCHEDULED}),
    "dead": frozenset({_S.FAILED}),
    "terminal": frozenset({_S.COMPLETED, _S.CANCELLED, _S.EXPIRED}),
    "refused": frozenset({_S.REFUSED}),
}
#: Section of waiting or ended tasks -> the sorted set that has them.
INDEX = {"scheduled": "alarms", "dead": "tasks:dead", "terminal": "tasks:terminal", "refused": "tasks:refused"}


class _TypedBody(Struct):
    """A task's body or a pool's definition, of which only the type is decoded."""

    task_type: str = ""


class _OpaqueBody(Struct):
    """A task's body, of which the payload is not decoded."""

    task_type: str = ""
    payload: msgspec.Raw = msgspec.Raw(b"{}")
    requirements: Requirements = Requirements()
    expected_ms: float | None = None
    traceparent: str | None = None


_typed_body = msgspec.json.Decoder(_TypedBody)
_opaque_body = msgspec.json.Decoder(_OpaqueBody)


async def get_task(redis: Redis, keys: Keys, task_id: str) -> TaskRecord | None:
    """Return a task's record, or None."""
    return _task_record(task_id, await read_hash(redis, keys.task(task_id)))


async def get_tasks(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """Return the records of many tasks, in order; one round trip."""
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.hgetall(keys.task(task_id))
    answers = await pipe.execute()
    return [_task_record(task_id, raw) for task_id, raw in zip(task_ids, answers, strict=True)]


async def get_task_headers(
    redis: Redis, keys: Keys, task_ids: Sequence[str], types: Mapping[str, str] | None = None
) -> list[TaskRecord | None]:
    """Return the records of many tasks, in order, without payload, result, progress and attempts.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        task_ids: of the tasks.
        types: pool -> type of its tasks, as far as it is known; others are read.
    """
    known = types or {}
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.execute_command("HMGET", keys.task(task_id), *_HEADER)
    records: list[TaskRecord | None] = []
    pools: dict[str, str] = {}
    for task_id, values in zip(task_ids, await pipe.execute(), strict=True):
        raw = {name.encode(): value for name, value in zip(_HEADER, values, strict=True) if value is not None}
        record = _task_record(task_id, raw)
        records.append(record)
        if record is not None and record.pool and record.pool not in known:
            pools[record.pool] = task_id
    found = {**known, **await _task_types(redis, keys, pools)}
    return [record and msgspec.structs.replace(record, task_type=found.get(record.pool, "")) for record in records]


async def get_counters(redis: Redis, keys: Keys) -> dict[str, int]:
    """Return all counters; ``{state}:{priority}`` is the number of tasks of a priority in a state."""
    return {name: int(value) for name, value in decode_fields(await read_hash(redis, keys.of("counters"))).items()}


async def count_tasks(redis: Redis, keys: Keys, states: Collection[TaskState] = ()) -> int | None:
    """Return the number of tasks in these states (empty: all) whose records are kept; None if it is not known.

    The counters hold the number of unfinished tasks and the total of ended ones, so ended tasks are counted where a
    list finds them. Completed, cancelled and expired tasks share one place: some of them alone have no number.
    """
    wanted = frozenset(states) or frozenset(TaskState)
    total = 0
    by_state = count_by_state(await get_counters(redis, keys))
    for section, its_states in SECTIONS.items():
        if its_states.isdisjoint(wanted):
            continue
        if section in {"dead", "terminal", "refused"}:
            count = int(await redis.zcard(keys.of(INDEX[section])))
            if count and not its_states <= wanted:
                return None
            total += count
        else:
            total += sum(by_state[state] for state in its_states & wanted)
    return total


def count_by_state(counters: Mapping[str, int]) -> dict[TaskState, int]:
    """Return the number of tasks in each state, summed over all priorities."""
    return {state: sum(counters.get(f"{state}:{priority}", 0) for priority in Priority) for state in TaskState}


def count_submitted(counters: Mapping[str, int]) -> int:
    """Return the number of admitted tasks, summed over all priorities."""
    return sum(counters.get(f"submitted:{priority}", 0) for priority in Priority)


async def _task_types(redis: Redis, keys: Keys, pools: Mapping[str, str]) -> dict[str, str]:
    """Return the type of the tasks of each pool, from the pool's definition or else from the body of one task.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        pools: pool -> the id of one of its tasks.
    """
    if not pools:
        return {}
    definitions = await redis.execute_command("HMGET", keys.of("pools"), *pools)
    types = {pool: _type_in(raw) for pool, raw in zip(pools, definitions, strict=True) if raw}
    unknown = [pool for pool in pools if pool not in types]
    for chunk in chunks(unknown, _BODIES):
        pipe = redis.pipeline(transaction=False)
        for pool in chunk:
            pipe.execute_command("HGET", keys.task(pools[pool]), "body")
        types |= {pool: _type_in(raw) for pool, raw in zip(chunk, await pipe.execute(), strict=True)}
    return types


def _type_in(raw: bytes | None) -> str:
    try:
        return _typed_body.decode(raw or b"{}").task_type
    except BAD_JSON:
        return ""


def _parse_body(raw: str | None) -> dict[str, Any]:
    """Return the body; a payload that Python cannot decode, such as one with 1e999 in it, is its text."""
    body = parse_json(raw)
    if isinstance(body, str):
        try:
            opaque = _opaque_body.decode(body)
        except BAD_JSON:
            return {}
        payload = bytes(opaque.payload).decode("utf-8", "replace")
        return {
            "task_type": opaque.task_type,
            "payload": payload,
            "requirements": opaque.requirements,
            "expected_ms": opaque.expected_ms,
            "traceparent": opaque.traceparent,
        }
    return body if isinstance(body, dict) else {}


def _requirements(body: Mapping[str, Any]) -> Requirements | None:
    """Return the requirements in a body; None without a body, or if they are invalid."""
    try:
        return msgspec.convert(body.get("requirements", {}), Requirements) if body else None
    except msgspec.ValidationError:
        return None


def _task_record(task_id: str, raw_fields: Mapping[bytes, bytes]) -> TaskRecord | None:
    raw = decode_fields(raw_fields)
    if "submission" not in raw:  # no record, or one that a version before the first release left behind
        return None
    body = _parse_body(raw.get("body"))
    error = parse_json(raw.get("error"))
    submission = parse_submission(raw["submission"])
    assignment = parse_assignment(raw["assignment"]) if "assignment" in raw else None
    preferences = parse_preferences(raw.get("preferences"))
    replay_id = raw.get("replay_id")
    return TaskRecord(
        task_id=task_id,
        state=TaskState(raw["state"]),
        priority=Priority(submission.priority),
        task_type=body.get("task_type", ""),
        payload=body.get("payload"),
        requirements=None if "dropped" in raw else _requirements(body),
        submitted_at=submission.submitted_at,
        queued_at=parse_int(raw.get("queued_at")),
        pool=submission.pool,
        location=preferences.location,
        affinity_key=preferences.affinity_key,
        expected_ms=body.get("expected_ms"),
        traceparent=body.get("traceparent"),
        avoid=tuple(raw.get("avoid", "").split()),
        attempt=assignment.attempt if assignment else int(raw.get("attempt", 0)),
        failures=int(raw.get("failures", 0)),
        releases=int(raw.get("releases", 0)),
        run_at=parse_int(raw.get("run_at")),
        deadline=parse_int(raw.get("deadline")),
        agent_id=assignment.agent_id if assignment else None,
        term=assignment.term if assignment else None,
        lease=assignment.lease if assignment else None,
        assigned_at=assignment.assigned_at if assignment else None,
        started_at=parse_int(raw.get("started_at")),
        finished_at=parse_int(raw.get("finished_at")),
        cancel_requested_at=parse_int(raw.get("cancel_at")),
        replayed_at=entry_ms(replay_id) if replay_id else None,
        progress=parse_json(raw.get("progress")),
        placement=parse_json(assignment.placement) if assignment else None,
        attempts=tuple(reversed(parse_attempts(raw["attempts"]))) if "attempts" in raw else (),
        result=parse_json(raw.get("result")),
        error=msgspec.convert(error, TaskError) if isinstance(error, dict) else None,
        dropped="dropped" in raw,
    )
