"""Tasks: single records, pages of tasks, and the counters.

There is no index of all tasks. A page is found in the sets and sorted sets that the scripts keep for other reasons:
tasks that an agent holds (by agent), waiting tasks (by pool, next to be placed first), tasks with a run time (next
first), and ended tasks (last first).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import Any

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON, parse_assignment, parse_preferences, parse_submission
from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.ids import entry_ms
from coord.models.tasks import AttemptRecord, Priority, Requirements, TaskError, TaskRecord, TaskState
from coord.queries.agents import list_agent_ids
from coord.queries.reads import (
    Position,
    chunks,
    decode_fields,
    parse_int,
    parse_json,
    read_hash,
    read_members,
    read_step,
)

#: Fields that a list shows: the small ones, so that a page of tasks with large payloads is not a large answer.
_HEADER = (
    "state", "submission", "attempt", "failures", "releases", "run_at", "deadline", "assignment",
    "started_at", "finished_at", "cancel_at", "error", "dropped",
)  # fmt: skip
#: Bodies, of up to 1 MiB each, that are read in one round trip to learn the type of the tasks of their pool.
_BODIES = 16
#: Tasks read in one step.
STEP = 200
#: Maximum number of tasks read for one page. A page of rare tasks is short, and its cursor continues from there.
BUDGET = 10_000
#: Agents whose loads are read in one round trip.
AGENTS_STEP = 500

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
_INDEX = {"scheduled": "alarms", "dead": "tasks:dead", "terminal": "tasks:terminal", "refused": "tasks:refused"}


class TaskPage(Struct, frozen=True):
    """A page of tasks: their records without payload, result, progress and attempts."""

    tasks: tuple[TaskRecord, ...]
    next: str | None  #: cursor of the next page; None: last page. A page may be short, even empty, before the last


class _Location(Struct, frozen=True):
    """A task, and the cursor that continues after it."""

    task_id: str
    cursor: str


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


async def get_task_headers(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """Return the records of many tasks, in order, without payload, result, progress and attempts."""
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
    return [record and msgspec.structs.replace(record, task_type=types.get(record.pool, "")) for record in records]


async def list_tasks(
    redis: Redis,
    keys: Keys,
    *,
    states: Collection[TaskState] = (),
    task_type: str | None = None,
    agent_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> TaskPage:
    """Return at most ``limit`` tasks, starting at ``cursor``.

    A task that stays in its state between the pages is listed once. A task that moves may be listed twice or not at
    all.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        states: only tasks in one of these states; empty: all.
        task_type: only tasks of this type. (A refused task has no recorded type.)
        agent_id: only tasks that this agent holds, or ended.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from a list of tasks.
    """
    wanted = frozenset(states) or frozenset(TaskState)
    found: list[TaskRecord] = []
    examined = 0
    async with aclosing(_locations(redis, keys, wanted, agent_id, cursor)) as steps:
        async for locations in steps:
            examined += len(locations)
            records = await get_task_headers(redis, keys, [location.task_id for location in locations])
            for location, record in zip(locations, records, strict=True):
                if record is None or record.state not in wanted & SECTIONS[location.cursor.partition(":")[0]]:
                    continue
                if (task_type is None or record.task_type == task_type) and agent_id in {None, record.agent_id}:
                    found.append(record)
                    if len(found) == limit:
                        return TaskPage(tuple(found), location.cursor)
            if examined >= BUDGET:
                return TaskPage(tuple(found), locations[-1].cursor)
    return TaskPage(tuple(found), None)


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
            count = int(await redis.zcard(keys.of(_INDEX[section])))
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


async def _locations(
    redis: Redis, keys: Keys, wanted: Collection[TaskState], agent_id: str | None, cursor: str | None
) -> AsyncGenerator[Sequence[_Location]]:
    """Yield the tasks after the cursor, one step at a time."""
    section, _, rest = (cursor or "").partition(":")
    names = list(SECTIONS)
    if cursor is not None and section not in SECTIONS:
        raise _cursor_invalid(cursor)
    for name in names[names.index(section) :] if section else names:
        # A waiting task has no agent.
        if SECTIONS[name].isdisjoint(wanted) or (agent_id is not None and name in {"queued", "scheduled", "refused"}):
            continue
        after = rest if name == section else ""
        if name == "held":
            steps = _held(redis, keys, agent_id, after)
        elif name == "queued":
            steps = _queued(redis, keys, after)
        else:
            steps = _indexed(redis, keys.of(_INDEX[name]), name, after, newest_first=name != "scheduled")
        async for locations in steps:
            yield locations


async def _held(redis: Redis, keys: Keys, agent_id: str | None, after: str) -> AsyncGenerator[Sequence[_Location]]:
    last_agent, _, last_task = after.partition(":")
    agents = [agent_id] if agent_id is not None else await list_agent_ids(redis, keys)
    agents = [agent for agent in agents if agent >= last_agent]
    for chunk in chunks(agents, AGENTS_STEP):
        pipe = redis.pipeline(transaction=False)
        for agent in chunk:
            pipe.scard(keys.inflight(agent))
        for agent, load in zip(chunk, await pipe.execute(), strict=True):
            if not load:
                continue
            members = await read_members(redis, keys.inflight(agent))
            held = [task for task in members if (agent, task) > (last_agent, last_task)]
            for tasks in chunks(held, STEP):
                yield [_Location(task, f"held:{agent}:{task}") for task in tasks]


async def _queued(redis: Redis, keys: Keys, after: str) -> AsyncGenerator[Sequence[_Location]]:
    last_pool, _, rest = after.partition(":")
    table: list[bytes] = await redis.execute_command("HKEYS", keys.of("pools"))
    for pool in sorted(raw.decode() for raw in table):
        if pool >= last_pool:
            position = rest if pool == last_pool else ""
            async for locations in _indexed(redis, keys.queue(pool), f"queued:{pool}", position, newest_first=False):
                yield locations


async def _indexed(
    redis: Redis, key: str, prefix: str, after: str, *, newest_first: bool
) -> AsyncGenerator[Sequence[_Location]]:
    position = _parse_position(after) if after else None
    while found := await read_step(redis, key, position, STEP, newest_first=newest_first):
        yield [_Location(task_id, f"{prefix}:{score!r}:{task_id}") for score, task_id in found]
        position = found[-1]


def _parse_position(text: str) -> Position:
    score, _, member = text.partition(":")
    try:
        position = Position(float(score), member)
    except ValueError:
        raise _cursor_invalid(text) from None
    if not math.isfinite(position.score):
        raise _cursor_invalid(text)
    return position


def _cursor_invalid(cursor: str) -> CursorInvalid:
    return CursorInvalid(
        f"cursor {cursor[:80]!r} does not come from a list of tasks; leave it out to start at the beginning"
    )


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
    # Not splitlines: a message may hold one of the other characters that it takes for the end of a line.
    lines = [line for line in raw.get("attempts", "").split("\n") if line]
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
        attempts=tuple(msgspec.json.decode(line, type=AttemptRecord) for line in reversed(lines)),
        result=parse_json(raw.get("result")),
        error=msgspec.convert(error, TaskError) if isinstance(error, dict) else None,
        dropped="dropped" in raw,
    )
