"""Explanations: why a task waits, or why it went to its agent.

Nothing is stored for this: why a task waits is read from the agents, the queue of its pool and the log of tasks. They
are read one after another, so on a busy cell they belong to slightly different moments.
"""

from __future__ import annotations

import math
from contextlib import suppress
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.codec import parse_submission
from coord.config import Settings
from coord.keys import Keys
from coord.models.explanations import Explanation, PlacedExplanation, StartEstimate, WaitingExplanation, WaitingReason
from coord.models.ids import entry_ms
from coord.models.tasks import Pool, TaskRecord, TaskState
from coord.pipeline import pack, send_and_read
from coord.placement.reasons import PoolSurvey, describe
from coord.placement.rules import AVOIDED_S
from coord.queries.agents import scan_fleet
from coord.queries.cell import count_workers, get_write_refusal
from coord.queries.memory import get_memory
from coord.queries.queues import pool_in_record
from coord.queries.reads import decode_text, parse_time
from coord.queries.settings import get_health_threshold, get_modifier_rule
from coord.queries.tasks import get_task

#: Nearest misses of an explanation.
NEAREST = 5
#: Reads of a task that is placed or taken back meanwhile.
TRIES = 3
#: The rate of a pool is measured over this time …
RATE_MS = 60_000
#: … over the newest assignments of the cell, at most about this many, if they are more recent …
RATE_TASKS = 1_000
#: … and not at all if there are few, and the log of tasks is younger than this: the first ones start together.
RATE_LEAST_MS = 5_000
#: Entries of the log of tasks read in one round trip, and the maximum number of round trips.
_LOG_STEP, _LOG_STEPS = 200, 20
#: State of a task that does not wait -> the verb before it.
_VERBS = {
    TaskState.ASSIGNED: "is",
    TaskState.RUNNING: "is",
    TaskState.COMPLETED: "has",
    TaskState.FAILED: "has",
    TaskState.EXPIRED: "has",
    TaskState.CANCELLED: "was",
    TaskState.REFUSED: "was",
}


async def explain_task(redis: Redis, keys: Keys, settings: Settings, task_id: str) -> Explanation | None:
    """Return why a task waits, or why it went to its agent; None if there is no such task.

    With 10,000 agents this takes a fraction of a second, and reads them in pieces.

    Args:
        redis: a client of ``coord.connection``.
        keys: of the cell.
        settings: stand for the environment of the distributors while none is present.
        task_id: id of the task.
    """
    found = await _explain(redis, keys, settings, task_id)
    for _ in range(TRIES - 1):
        if found is None or not _has_moved(found):
            break
        found = await _explain(redis, keys, settings, task_id)
    return found


async def _explain(redis: Redis, keys: Keys, settings: Settings, task_id: str) -> Explanation | None:
    record = await get_task(redis, keys, task_id)
    if record is None:
        return None
    if record.state is TaskState.QUEUED:
        waiting = await _explain_queued(redis, keys, settings, record)
    elif record.state is TaskState.SCHEDULED:
        waiting = await _explain_scheduled(redis, keys, settings, record)
    else:
        return _explain_record(record)
    summary = "; ".join((f"the task waits: {waiting.text}", *waiting.obstacles))
    return Explanation(task_id=task_id, state=record.state, summary=summary, waiting=waiting)


def _has_moved(found: Explanation) -> bool:
    """Return True if the task left the queue while it was explained."""
    return found.state is TaskState.QUEUED and found.waiting is not None and found.waiting.position is None


def _explain_record(record: TaskRecord) -> Explanation:
    """Return the explanation of a task that does not wait: its record has all of it."""
    placed = _placed(record)
    what = f"the task {_VERBS[record.state]} {record.state}"
    if placed is None:
        what += ", and no agent had it then"
    else:
        what += f" {'to' if record.state is TaskState.ASSIGNED else 'on'} {placed.agent_id} at attempt {placed.attempt}"
        if placed.strategy is not None:
            what += f", chosen by {placed.strategy}"
        if placed.eligible is not None:
            what += f" among {placed.eligible:,} eligible agent{'' if placed.eligible == 1 else 's'}"
    if record.error is not None:
        what += f": {record.error.code}: {record.error.message}"
    return Explanation(task_id=record.task_id, state=record.state, summary=what, placed=placed)


def _placed(record: TaskRecord) -> PlacedExplanation | None:
    if record.agent_id is None or record.assigned_at is None:
        return None
    decision: dict[str, Any] = record.placement if isinstance(record.placement, dict) else {}
    return PlacedExplanation(
        agent_id=record.agent_id,
        assigned_at=record.assigned_at,
        term=record.term or 0,
        attempt=record.attempt,
        strategy=decision.get("strategy"),
        eligible=decision.get("eligible"),
        waiting_reason=_reason_or_none(decision.get("waiting_reason")),
        decision=record.placement,
    )


def _reason_or_none(name: Any) -> WaitingReason | None:
    """Return the reason of this name; None if this version does not know it."""
    return WaitingReason(name) if name in list(WaitingReason) else None


async def _explain_scheduled(redis: Redis, keys: Keys, settings: Settings, record: TaskRecord) -> WaitingExplanation:
    text = describe(WaitingReason.SCHEDULED, Pool(record.task_type), {})
    if record.attempt:
        text += f" (attempt {record.attempt} did not complete, and the next one starts then)"
    return WaitingExplanation(
        reason=WaitingReason.SCHEDULED,
        text=text,
        pool=record.pool,
        run_at=record.run_at,
        obstacles=await _obstacles(redis, keys, settings),
    )


async def _explain_queued(redis: Redis, keys: Keys, settings: Settings, record: TaskRecord) -> WaitingExplanation:
    pool = await _pool_of(redis, keys, record)
    ejects = await get_modifier_rule(redis, keys, settings, "ejection")
    threshold = await get_health_threshold(redis, keys, settings)
    surveys = PoolSurvey(pool, threshold, NEAREST, ejections=ejects(pool))
    async for agents in scan_fleet(redis, keys):
        surveys.add(agents)
    surveys.close()
    survey = surveys.found
    reason = survey.reason
    pipe = redis.pipeline(transaction=False)
    pipe.zrank(keys.queue(record.pool), record.task_id)
    pipe.zcard(keys.queue(record.pool))
    pipe.time()
    ahead, length, time = await pipe.execute()
    estimate = None
    if ahead is not None and not reason.is_parked:
        estimate = await _estimate(redis, keys, record.pool, int(ahead), parse_time(time))
    text = survey.text
    if record.avoid and (await get_modifier_rule(redis, keys, settings, "avoid_failed_agent"))(pool):
        text += (
            f"; after failed attempts it avoids {', '.join(record.avoid)} while another eligible agent is registered"
            f" (for {AVOIDED_S:g} s, once only agents that it avoids have room)"
        )
    return WaitingExplanation(
        reason=reason,
        text=text,
        pool=record.pool,
        position=None if ahead is None else int(ahead) + 1,
        ahead=None if ahead is None else int(ahead),
        length=int(length),
        agents=survey.agents,
        eligible=survey.eligible,
        rejected=survey.rejected,
        nearest=() if reason is WaitingReason.NEXT_IN_LINE else survey.nearest,
        estimate=estimate,
        obstacles=await _obstacles(redis, keys, settings),
    )


async def _pool_of(redis: Redis, keys: Keys, record: TaskRecord) -> Pool:
    fields = await redis.execute_command("HMGET", keys.task(record.task_id), "definition", "body")
    return pool_in_record(*fields) or Pool(record.task_type)


async def _obstacles(redis: Redis, keys: Keys, settings: Settings) -> tuple[str, ...]:
    """Return what keeps every task of the cell from being placed, in words; what may not be read is left out."""
    found: list[str] = []
    with suppress(ResponseError):  # a user without the permission
        if not (await count_workers(redis, keys, int(settings.presence_ttl_s * 1000)))["distributor"]:
            found.append("no distributor is running; start one: coord worker distributor")
        memory = await get_memory(redis)
        if memory.is_too_full_to_place:
            found.append(f"nothing is placed while the server's memory is {memory.share:.0%} full; see coord ps")
        if refusal := await get_write_refusal(redis):
            found.append(f"Redis refuses writes: {refusal}")
    return tuple(found)


async def _estimate(redis: Redis, keys: Keys, pool: str, ahead: int, now: int) -> StartEstimate | None:
    """Return when a task of a pool starts if the pool keeps its recent rate; None if it has none."""
    assigned, since = await _recently_assigned(redis, keys, now)
    if now - since < RATE_LEAST_MS and len(assigned) < RATE_TASKS:
        return None
    commands = [pack(("HGET", keys.task(task_id), "submission")) for task_id in assigned]
    answers = await send_and_read(redis, commands) if commands else []
    pools = [parse_submission(decode_text(raw)).pool for raw in answers if isinstance(raw, bytes)]
    count = pools.count(pool)
    if not count:
        return None
    span = max(1, now - since)
    tasks = "1 task of this pool was" if count == 1 else f"{count:,} tasks of this pool were"
    return StartEstimate(
        at=now + math.ceil((ahead + 1) * span / count),
        per_s=round(1000 * count / span, 3),
        basis=f"{tasks} assigned in the last {span / 1000:.0f} s",
    )


async def _recently_assigned(redis: Redis, keys: Keys, now: int) -> tuple[list[str], int]:
    """Return the tasks that were assigned recently, and since when (ms since 1970): by the log of tasks."""
    log, since = keys.of("log:tasks"), now - RATE_MS
    found: list[str] = []
    until = "+"
    for _ in range(_LOG_STEPS):
        entries = await redis.execute_command("XREVRANGE", log, until, since, "COUNT", _LOG_STEP)
        for entry_id, fields in entries:
            until = f"({decode_text(entry_id)}"
            if fields.get(b"type") == b"task.assigned":
                found += decode_text(fields[b"task_id"]).split(" ")
            if len(found) >= RATE_TASKS:
                return found, entry_ms(until[1:])
        if len(entries) < _LOG_STEP:
            first = await redis.execute_command("XRANGE", log, "-", "+", "COUNT", 1)
            return found, max(since, entry_ms(first[0][0])) if first else now
    return found, entry_ms(until[1:])
