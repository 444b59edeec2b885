"""Queues: the pools in which tasks wait, and the backlog. There may be 100,000 pools, so they are read in pieces."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace
from redis.asyncio import Redis

from coord.codec import BAD_JSON, encode, parse_preferences, parse_submission
from coord.config import Settings
from coord.keys import Keys
from coord.models.explanations import WaitingCounts, WaitingReason
from coord.models.tasks import NamedTask, Pool, Priority, TaskState, size_class
from coord.placement.reasons import FleetIndex
from coord.placement.requirements import preferred_pool
from coord.queries.agents import scan_fleet
from coord.queries.reads import chunks, decode_fields, decode_text, parse_time
from coord.queries.settings import get_health_threshold, get_modifier_rule
from coord.queries.tasks import get_counters

_pool = msgspec.json.Decoder(Pool)

#: Pools that are read in one round trip: some milliseconds of the server's time.
CHUNK = 1_000
#: The states that have not ended, in the order of the fields of ``PriorityBacklog``.
_UNFINISHED = (TaskState.SCHEDULED, TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RUNNING)


class WaitingPool(Struct, frozen=True):
    """A pool in which tasks wait."""

    pool: str
    definition: Pool
    length: int
    head: float  #: score of its first task


class PoolChanges(Struct, frozen=True):
    """The changes of the table of waiting pools since a revision."""

    rev: int  #: the current revision of the table
    count: int  #: pools in the table
    pools: tuple[str, ...] | None  #: pools that were added or removed since; None: not known any more


class PriorityBacklog(Struct, frozen=True):
    """The unfinished tasks of one priority."""

    priority: Priority
    submitted: int  #: entries that no distributor has handled yet
    scheduled: int
    queued: int
    assigned: int
    running: int


class PoolBacklog(Struct, frozen=True):
    """A pool in which tasks wait: tasks that may go to the same agents."""

    pool: str
    definition: Pool
    length: int  #: tasks that wait
    head: str  #: id of the task that is placed next
    head_priority: Priority | None  #: None if the head left the queue during the read
    head_age: int | None  #: ms since the head was submitted
    reason: WaitingReason | None = None  #: why its tasks wait
    ejected: int = 0  #: agents that get none of them because they fail this type of task


class Backlog(Struct, frozen=True):
    """All unfinished tasks."""

    priorities: tuple[PriorityBacklog, ...]  #: highest priority first
    pools: tuple[PoolBacklog, ...]  #: first those that no agent may serve; among these and the others the next first
    unlisted: int = 0  #: number of further pools, where the list was limited
    waiting: WaitingCounts | None = None  #: the waiting tasks by reason; None: no distributor has counted them lately


async def get_backlog(redis: Redis, keys: Keys, limit: int | None = None, settings: Settings | None = None) -> Backlog:
    """Return what waits, is scheduled and is in flight, and why the pools wait.

    The parts are read one after another, so on a live cell they belong to slightly different moments.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        limit: maximum number of pools to list, first those that no agent may serve, then those that are placed next;
            None: all. With 0, no agent is read.
        settings: stand for the environment of the distributors while none is present; default: coord's own.
    """
    counters = await get_counters(redis, keys)
    pipe = redis.pipeline(transaction=False)
    for priority in Priority:
        pipe.xlen(keys.tasks_in(priority))
    pipe.hgetall(keys.of("waiting"))
    pipe.time()
    *submitted, counts, time = await pipe.execute()
    now = parse_time(time)
    priorities = tuple(
        PriorityBacklog(
            priority,
            int(waiting),
            *(counters.get(f"{state}:{priority}", 0) for state in _UNFINISHED),
        )
        for priority, waiting in zip(Priority, submitted, strict=True)
    )
    _, pools = await list_waiting_pools(redis, keys, {})
    reasons = await _reasons(redis, keys, settings or Settings(), pools if limit != 0 else [])
    pools.sort(key=lambda pool: (pool.pool in reasons and not reasons[pool.pool][0].is_parked, pool.head))
    listed = pools[:limit]
    backlogs: list[PoolBacklog] = []
    for chunk in chunks(listed, CHUNK):
        heads = await _with_heads(redis, keys, now, chunk)
        for backlog in heads:
            reason, ejected = reasons[backlog.pool]
            backlogs.append(replace(backlog, reason=reason, ejected=ejected))
    return Backlog(priorities, tuple(backlogs), len(pools) - len(listed), waiting_counts_of(counts, now))


async def get_waiting_counts(redis: Redis, keys: Keys) -> WaitingCounts | None:
    """Return the number of waiting tasks by reason; None if no distributor has counted them lately. One round trip."""
    pipe = redis.pipeline(transaction=False)
    pipe.hgetall(keys.of("waiting"))
    pipe.time()
    counts, time = await pipe.execute()
    return waiting_counts_of(counts, parse_time(time))


async def get_waiting_reasons(redis: Redis, keys: Keys, settings: Settings) -> dict[str, WaitingReason]:
    """Return why the tasks of each queue wait; reads the table of pools and the whole fleet, in pieces."""
    _, pools = await list_waiting_pools(redis, keys, {})
    return {pool: reason for pool, (reason, _) in (await _reasons(redis, keys, settings, pools)).items()}


def waiting_counts_of(raw: Mapping[bytes, bytes], now: int) -> WaitingCounts | None:
    """Return the counts that the key ``waiting`` holds; None if it is empty."""
    fields = decode_fields(raw)
    if "counted_at" not in fields:
        return None
    reasons = {reason: int(fields.get(reason, 0)) for reason in WaitingReason}  # ``scheduled`` is a field as well
    total, counted_at = int(fields["queued"]) + reasons[WaitingReason.SCHEDULED], int(fields["counted_at"])
    uncounted = total - sum(reasons.values())
    return WaitingCounts(
        total=total, reasons=reasons, uncounted=uncounted, counted_at=counted_at, age=max(0, now - counted_at)
    )


async def get_pool_changes(redis: Redis, keys: Keys, since: int) -> PoolChanges:
    """Return which pools were added to or removed from the table, or reordered, since a revision; one round trip.

    The revision is read first and the oldest change last, so a change in between is either read again or found to be
    missing. (A transaction is no alternative: Redis 7.0 refuses even its reads when it is out of memory.)
    """
    changed = keys.of("pools:changed")
    pipe = redis.pipeline(transaction=False)
    pipe.hget(keys.of("counters"), "pools_rev")
    pipe.hlen(keys.of("pools"))
    pipe.zrangebyscore(changed, f"({since}", "+inf")
    pipe.zrange(changed, -1, -1, withscores=True)
    pipe.zrange(changed, 0, 0, withscores=True)
    raw_rev, count, pools, newest, oldest = await pipe.execute(raise_on_error=False)
    for answer in (raw_rev, count):
        if isinstance(answer, Exception):
            raise answer
    rev = int(raw_rev or 0)
    if rev == since:
        return PoolChanges(rev, int(count), ())
    # Only the newest changes are kept, and a release that does not keep them raises the revision as well.
    is_complete = (
        not any(isinstance(answer, Exception) for answer in (oldest, newest, pools))
        and bool(newest)
        and float(newest[0][1]) >= rev
        and bool(oldest)
        and float(oldest[0][1]) <= since < rev
    )
    return PoolChanges(rev, int(count), tuple(pool.decode() for pool in pools) if is_complete else None)


async def scan_pools(redis: Redis, keys: Keys) -> AsyncIterator[dict[str, bytes]]:
    """Yield the whole table in pieces: pool -> its definition as it is stored.

    Rows that exist during the whole read are included. Rows that are added or removed meanwhile may be missing.
    """
    cursor, rows = 0, {}  # type: int, dict[bytes, bytes]
    while True:
        cursor, rows = await redis.hscan(keys.of("pools"), cursor, count=CHUNK)  # type: ignore[assignment]
        yield {raw.decode(): definition for raw, definition in rows.items()}
        if not cursor:
            return


async def get_pool_definitions(
    redis: Redis, keys: Keys, rows: Mapping[str, bytes], known: Mapping[str, Pool]
) -> dict[str, Pool]:
    """Return the definitions of pools in the table, without those that cannot be decoded.

    A pool that a requeue brought back has no definition in its row; it is taken from ``known``, or from the record of
    the pool's first task: its definition if an agent has refused its payload, otherwise its body.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        rows: pool -> its row in the table.
        known: definitions that the caller already has.
    """
    definitions: dict[str, Pool] = {}
    missing: list[str] = []
    for pool, raw in rows.items():
        definition = known.get(pool) or _definition(raw)
        if definition is None:
            missing.append(pool)
        else:
            definitions[pool] = definition
    for pools in chunks(missing, CHUNK):
        pipe = redis.pipeline(transaction=False)
        for pool in pools:
            pipe.zrange(keys.queue(pool), 0, 0)
        heads = await pipe.execute()
        pipe = redis.pipeline(transaction=False)
        for head in heads:
            pipe.hmget(keys.task(head[0].decode() if head else ""), "definition", "body")
        for pool, fields in zip(pools, await pipe.execute(raise_on_error=False), strict=True):
            definition = None if isinstance(fields, Exception) else pool_in_record(*fields)
            if definition is not None:
                definitions[pool] = definition
    return definitions


async def get_pool_rows(redis: Redis, keys: Keys, pools: Sequence[str]) -> dict[str, bytes]:
    """Return the stored rows of these pools, at most ``CHUNK``; pools that are not in the table are left out."""
    if not pools:
        return {}
    rows: list[bytes | None] = await redis.execute_command("HMGET", keys.of("pools"), *pools)
    return {pool: raw for pool, raw in zip(pools, rows, strict=True) if raw is not None}


async def get_pool_lengths(redis: Redis, keys: Keys, pools: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return the number of waiting tasks and the score of the first, for each of at most ``CHUNK`` pools."""
    pipe = redis.pipeline(transaction=False)
    for pool in pools:
        pipe.zcard(keys.queue(pool))
        pipe.zrange(keys.queue(pool), 0, 0, withscores=True)
    answers = await pipe.execute()
    return {
        pool: (int(length), float(head[0][1])) if length and head else (0, 0.0)
        for pool, length, head in zip(pools, answers[::2], answers[1::2], strict=True)
    }


async def get_named_tasks(
    redis: Redis, keys: Keys, wanted: Mapping[str, int]
) -> dict[str, tuple[int, list[NamedTask]]]:
    """Return the number of tasks in named queues, and the first ones of each, in their order.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        wanted: name of the queue -> maximum number of its tasks to read.
    """
    pipe = redis.pipeline(transaction=False)
    for queue, most in wanted.items():
        pipe.zcard(keys.queue(queue))
        pipe.zrange(keys.queue(queue), 0, most - 1, withscores=True)
    answers = await pipe.execute()
    pipe = redis.pipeline(transaction=False)
    for heads in answers[1::2]:
        for task_id, _ in heads:
            pipe.hmget(keys.task(task_id.decode()), "submission", "preferences", "avoid")
    records = iter(await pipe.execute(raise_on_error=False))
    found: dict[str, tuple[int, list[NamedTask]]] = {}
    for (queue, most), length, heads in zip(wanted.items(), answers[::2], answers[1::2], strict=True):
        tasks = [_named_task(task_id.decode(), score, next(records)) for task_id, score in heads]
        found[queue] = int(length) if len(tasks) == most else len(tasks), tasks
    return found


def _named_task(task_id: str, score: float, fields: Any) -> NamedTask:
    """Return a task of a named queue; one whose record cannot be read is named as well, so that dispatch removes it."""
    submission, preferences, avoid = (None, None, None) if isinstance(fields, Exception) else fields
    if not submission:
        return NamedTask(score, task_id)
    priority = Priority(parse_submission(decode_text(submission)).priority)
    return NamedTask(score, task_id, priority, parse_preferences(preferences), tuple(decode_text(avoid or b"").split()))


async def list_waiting_pools(redis: Redis, keys: Keys, known: Mapping[str, Pool]) -> tuple[int, list[WaitingPool]]:
    """Return all pools in which tasks wait, and the revision of the table from before it was read.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        known: definitions that the caller already has.
    """
    rev: bytes | None = await redis.execute_command("HGET", keys.of("counters"), "pools_rev")
    waiting: dict[str, WaitingPool] = {}
    async for rows in scan_pools(redis, keys):
        definitions = await get_pool_definitions(redis, keys, rows, known)
        for pools in chunks(list(definitions), CHUNK):
            for pool, (length, head) in (await get_pool_lengths(redis, keys, pools)).items():
                if length:
                    waiting[pool] = WaitingPool(pool, definitions[pool], length, head)
    return int(rev or 0), list(waiting.values())


async def _reasons(
    redis: Redis, keys: Keys, settings: Settings, pools: Sequence[WaitingPool]
) -> dict[str, tuple[WaitingReason, int]]:
    """Return why the tasks of each of these pools wait, and how many agents are ejected for them.

    Reads the whole fleet, in pieces.
    """
    if not pools:
        return {}
    fleet = FleetIndex(await get_health_threshold(redis, keys, settings))
    ejects = await get_modifier_rule(redis, keys, settings, "ejection")
    async for agents in scan_fleet(redis, keys):
        fleet.add(agents)
    known: dict[tuple[object, ...], tuple[WaitingReason, int]] = {}
    reasons: dict[str, tuple[WaitingReason, int]] = {}
    for chunk in chunks(pools, CHUNK):
        for pool in chunk:
            definition = preferred_pool(pool.definition) or pool.definition  # the type counts if no capability does
            is_judged = fleet.has_ejected(definition.task_type) and ejects(definition)
            key = (
                encode(definition.requirements),
                definition.refused_by,
                definition.unhandled_by,
                definition is pool.definition,
                definition.task_type if is_judged else "",
            )
            if key not in known:
                ejected = fleet.count_ejected(pool.definition) if is_judged else 0
                known[key] = fleet.reason_of(pool.definition, ejections=is_judged), ejected
            reasons[pool.pool] = known[key]
        await asyncio.sleep(0)  # other work of this process goes on between two chunks
    return reasons


async def _with_heads(redis: Redis, keys: Keys, now: int, pools: Sequence[WaitingPool]) -> list[PoolBacklog]:
    pipe = redis.pipeline(transaction=False)
    for pool in pools:
        pipe.zrange(keys.queue(pool.pool), 0, 0)
    heads = [decode_text(head[0]) if head else "" for head in await pipe.execute()]
    pipe = redis.pipeline(transaction=False)
    for head in heads:
        pipe.hget(keys.task(head), "submission")
    backlogs: list[PoolBacklog] = []
    for pool, head, raw in zip(pools, heads, await pipe.execute(), strict=True):
        submission = parse_submission(decode_text(raw)) if raw else None
        priority = Priority(submission.priority) if submission else None
        age = max(0, now - submission.submitted_at) if submission else None
        backlogs.append(PoolBacklog(pool.pool, pool.definition, pool.length, head, priority, age))
    return backlogs


def pool_in_record(definition: bytes | None, body: bytes | None) -> Pool | None:
    """Return the pool of a task from these fields of its record, or None if they cannot be decoded."""
    if definition:
        return _definition(definition)
    found = _definition(body)
    if found is None:
        return None
    size = None if found.expected_ms is None else size_class(found.expected_ms)
    return replace(found, refused_by=(), unhandled_by=(), expected_ms=size)  # a client's body does not decide the first


def _definition(raw: bytes | None) -> Pool | None:
    if not raw:
        return None
    try:
        return _pool.decode(raw)
    except BAD_JSON:
        return None
