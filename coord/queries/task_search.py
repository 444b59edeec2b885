"""Where the tasks of a query can be, and which tasks of these places match it.

A plan narrows the places by state, agent and reason, and by time. Of a record in them only the fields that the query
looks at are read, so that a search among large payloads and results is not a large answer.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON, parse_submission
from coord.config import Settings
from coord.keys import Keys
from coord.models.explanations import WaitingReason
from coord.models.query import Kind, Query, moment_ms
from coord.models.task_query import TASKS, TaskFacts
from coord.models.tasks import Pool, TaskState
from coord.queries.queues import get_waiting_reasons, pool_in_record
from coord.queries.reads import chunks, decode_text, get_time
from coord.queries.tasks import SECTIONS

#: Bodies, of up to 1 MiB each, that are read in one round trip to learn the definition of their pool.
_BODIES = 16
#: Tasks whose records are read in one round trip.
_RECORDS = 500
#: Definitions of pools that a search keeps.
_KNOWN_POOLS = 10_000
#: Fields of a query that the pool of a task decides.
OF_POOL = frozenset({"", "type", "capability", "service", "tag", "label"})

_S = TaskState
_WAITING = frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED})
#: Fields of a query -> the fields of a record that they need, besides those of every task.
_NEEDS: dict[str, tuple[str, ...]] = {
    "agent": ("assignment",),
    "attempts": ("assignment", "attempt"),
    "error": ("error",),
}


class SearchPlan(Struct, frozen=True):
    """Where the tasks of a query can be."""

    query: Query
    now: int  #: ms since 1970
    states: frozenset[TaskState]
    sections: tuple[str, ...]
    ids: tuple[str, ...] | None  #: only these
    agents: frozenset[str] | None  #: only tasks that these agents hold, or ended
    ended_from: float  #: ms; ended tasks before this one do not match
    ended_until: float
    reasons: Mapping[str, WaitingReason]  #: queue -> why its tasks wait; empty if the query does not look at it


class _Code(Struct):
    code: str = ""


_code = msgspec.json.Decoder(_Code)


async def plan_search(redis: Redis, keys: Keys, settings: Settings, query: Query) -> SearchPlan:
    """Return where the tasks of a query can be.

    For the field ``reason`` it reads the table of pools and the whole fleet.
    """
    now = await get_time(redis)
    states = query.allowed("state", TaskState)
    used = {term.field for term in query.terms}
    required = {term.field for term in query.terms if not term.is_negated}
    sections = [name for name, of_section in SECTIONS.items() if not of_section.isdisjoint(states)]
    if "agent" in required:  # a waiting task has no agent
        sections = [name for name in sections if name in {"held", "dead", "terminal"}]
    if required & {"error", "ended"}:
        sections = [name for name in sections if name in {"dead", "terminal", "refused"}]
    if "reason" in required:
        sections = [name for name in sections if name in {"queued", "scheduled"}]
    wanted = query.allowed("reason", WaitingReason)
    if "reason" in required and WaitingReason.SCHEDULED not in wanted:
        sections = [name for name in sections if name != "scheduled"]
    looks_at_reasons = "reason" in used and "queued" in sections
    begin, end = _ended_between(query, now)
    ids = query.names("id")
    return SearchPlan(
        query=query,
        now=now,
        states=frozenset(map(TaskState, states)),
        sections=tuple(sections),
        ids=None if ids is None else tuple(sorted(ids)),
        agents=query.names("agent"),
        ended_from=begin,
        ended_until=end,
        reasons=await get_waiting_reasons(redis, keys, settings) if looks_at_reasons else {},
    )


async def get_task_reasons(
    redis: Redis, keys: Keys, settings: Settings, task_ids: Sequence[str]
) -> dict[str, WaitingReason | None]:
    """Return why each of these tasks waits, or None if it does not; a task without a record is left out.

    If one of them is queued, it reads the table of pools and the whole fleet.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stand for the environment of the distributors while none is present.
        task_ids: ids of the tasks.
    """
    matcher = TaskMatcher(redis, keys, Query(), 0)
    found = [task for some in chunks(task_ids, _RECORDS) for task in await matcher.matching(some) if task is not None]
    is_queued = any(task.state is _S.QUEUED for task in found)
    of_pool = await get_waiting_reasons(redis, keys, settings) if is_queued else {}
    return {task.task_id: of_pool.get(task.pool) if task.state is _S.QUEUED else task.reason for task in found}


def _ended_between(query: Query, now: int) -> tuple[float, float]:
    """Return the times, in ms, between which an ended task that matches has ended."""
    begin, end = -math.inf, math.inf
    for term in query.terms:
        if term.is_negated or len(term.values) != 1 or term.field not in {"since", "ended", "age"}:
            continue
        (value,) = term.values
        if TASKS.fields[term.field].kind is Kind.MOMENT:
            begin = max(begin, moment_ms(value, now))
        elif value.operator.startswith("<"):  # a task ends after it was submitted
            begin = max(begin, now - value.amount * 1000)
        elif term.field == "ended":
            end = min(end, now - value.amount * 1000)
    return begin, end


class TaskMatcher:
    """Reads the tasks of some places, and decides which of them match a query.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
        now: ms since 1970 on the server's clock.
        reasons: queue -> why its tasks wait; needed for the field ``reason``.
    """

    def __init__(
        self, redis: Redis, keys: Keys, query: Query, now: int, reasons: Mapping[str, WaitingReason] | None = None
    ) -> None:
        self._redis = redis
        self._keys = keys
        self._query = query
        self._now = now
        self._reasons = reasons or {}
        used = {term.field for term in query.terms}
        extra = dict.fromkeys(field for name, needs in _NEEDS.items() if name in used for field in needs)
        self._fields = ("state", "submission", "finished_at", *extra)
        self._looks_at_pools = not used.isdisjoint(OF_POOL)
        self._definitions: dict[str, Pool] = {}
        self.types: dict[str, str] = {}  #: pool -> type of its tasks, as far as it was needed

    async def matching(self, task_ids: Sequence[str]) -> list[TaskFacts | None]:
        """Return what the query looks at of each of these tasks, in order; None of a task that does not match."""
        facts = await self._facts(task_ids)
        if self._looks_at_pools:
            await self._define({task.pool: task.task_id for task in facts if task is not None and task.pool})
        found: list[TaskFacts | None] = []
        for task in facts:
            if task is not None:
                whole = task._replace(definition=self._definitions.get(task.pool, task.definition))
                found.append(whole if TASKS.matches(self._query, whole, self._now) else None)
            else:
                found.append(None)
        return found

    async def _facts(self, task_ids: Sequence[str]) -> list[TaskFacts | None]:
        pipe = self._redis.pipeline(transaction=False)
        for task_id in task_ids:
            pipe.execute_command("HMGET", self._keys.task(task_id), *self._fields)
        return [
            self._task_facts(task_id, dict(zip(self._fields, row, strict=True)))
            for task_id, row in zip(task_ids, await pipe.execute(), strict=True)
        ]

    def _task_facts(self, task_id: str, raw: Mapping[str, bytes | None]) -> TaskFacts | None:
        state_text, submission_text = raw["state"], raw["submission"]
        if state_text is None or submission_text is None:
            return None  # no record, or one that a version before the first release left behind
        state = TaskState(decode_text(state_text))
        submission = parse_submission(decode_text(submission_text))
        reason = None
        if state is TaskState.SCHEDULED:
            reason = WaitingReason.SCHEDULED
        elif state is TaskState.QUEUED:
            reason = self._reasons.get(submission.pool)
        assignment = decode_text(raw.get("assignment") or b"").split(" ", 6)
        finished = raw["finished_at"]
        return TaskFacts(
            task_id=task_id,
            state=state,
            priority=submission.priority,
            pool=submission.pool,
            submitted_at=submission.submitted_at,
            agent_id=assignment[1] if len(assignment) > 1 and state not in _WAITING else None,
            reason=reason,
            error=_error_code(raw.get("error")),
            finished_at=int(finished) if finished else None,
            attempts=int(assignment[5]) if len(assignment) > 1 else int(raw.get("attempt") or 0),
        )

    async def _define(self, pools: Mapping[str, str]) -> None:
        """Learn the definitions of pools from the table, or else from the record of one of their tasks."""
        if len(self._definitions) >= _KNOWN_POOLS:
            self._definitions.clear()
            self.types.clear()
        unknown = [pool for pool in pools if pool not in self._definitions]
        if not unknown:
            return
        rows = await self._redis.execute_command("HMGET", self._keys.of("pools"), *unknown)
        found = {pool: pool_in_record(row, None) for pool, row in zip(unknown, rows, strict=True) if row}
        for some in chunks([pool for pool in unknown if found.get(pool) is None], _BODIES):
            pipe = self._redis.pipeline(transaction=False)
            for pool in some:
                pipe.hmget(self._keys.task(pools[pool]), "definition", "body")
            for pool, fields in zip(some, await pipe.execute(), strict=True):
                found[pool] = pool_in_record(*fields)
        self._definitions.update((pool, found.get(pool) or Pool("")) for pool in unknown)
        self.types.update((pool, self._definitions[pool].task_type) for pool in unknown)


def _error_code(raw: bytes | None) -> str | None:
    try:
        return _code.decode(raw).code if raw else None
    except BAD_JSON:
        return None
