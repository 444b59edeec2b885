"""Pages of tasks that match a query.

There is no index of all tasks. A page is found in the sets and sorted sets that the scripts keep for other reasons:
tasks that an agent holds (by agent), waiting tasks (by pool, next to be placed first), tasks with a run time (next
first), and ended tasks (last first). A query narrows these places: by state, agent, pool and reason, and by time where
the index is ordered by it. The records in them are read a step at a time, only the fields that the query looks at; the
records that match are read as a list shows them.

A task that stays in its place during the walk is listed once. A task that moves may be listed twice or not at all.
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Collection, Mapping, Sequence
from contextlib import aclosing
from typing import NamedTuple

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON, parse_submission
from coord.config import Settings
from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.explanations import WaitingReason
from coord.models.ids import is_id
from coord.models.query import Kind, Query, moment_ms
from coord.models.task_query import TASKS, TaskFacts
from coord.models.tasks import Pool, TaskRecord, TaskState, is_named, named_queue
from coord.queries.agents import list_agent_ids
from coord.queries.queues import get_pool_definitions, get_waiting_reasons, pool_in_record, scan_pools
from coord.queries.reads import Position, chunks, decode_text, get_time, read_members, read_step
from coord.queries.tasks import INDEX, SECTIONS, get_task_headers

#: Tasks read in one step: the first ones of a walk, and later ones, when few match.
STEP, LONG_STEP = 200, 1_000
#: Maximum number of tasks examined for one page. A page of rare tasks is short, and its cursor continues from there.
BUDGET = 10_000
#: Agents whose loads are read in one round trip.
AGENTS_STEP = 500
#: Bodies, of up to 1 MiB each, that are read in one round trip to learn the definition of their pool.
_BODIES = 16

_S = TaskState
_WAITING = frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED})
#: Fields of a query -> the fields of a record that they need, besides the state and the submission.
_NEEDS: dict[str, tuple[str, ...]] = {
    "agent": ("assignment",),
    "attempts": ("assignment", "attempt"),
    "error": ("error",),
    "ended": ("finished_at",),
    "since": ("finished_at",),
}
#: Fields of a query that the pool of a task decides.
_OF_POOL = frozenset({"", "type", "capability", "service", "tag", "label"})
#: A member that is after every id in the order of a sorted set.
_LAST = "\U0010ffff"


class TaskPage(Struct, frozen=True):
    """A page of tasks: their records without payload, result, progress and attempts."""

    tasks: tuple[TaskRecord, ...]
    next: str | None  #: cursor of the next page; None: last page. A page may be short, even empty, before the last


class TaskIds(Struct, frozen=True):
    """A page of tasks: only their ids."""

    ids: tuple[str, ...]
    next: str | None  #: as of ``TaskPage``


class _Location(NamedTuple):
    """A task, and the cursor that continues after it."""

    task_id: str
    cursor: str


class _Code(Struct):
    code: str = ""


class _Plan(Struct, frozen=True):
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


_code = msgspec.json.Decoder(_Code)


async def find_tasks(
    redis: Redis,
    keys: Keys,
    query: Query,
    *,
    settings: Settings | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> TaskPage:
    """Return at most ``limit`` tasks that match a query, starting at ``cursor``.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
        settings: stand for the environment of the distributors, for the field ``reason``; default: the defaults.
        limit: at least 1.
        cursor: ``next`` of the previous page of this query.

    Raises:
        CursorInvalid: the cursor does not come from a list of tasks.
    """
    walk = _Walk(redis, keys, await _plan(redis, keys, settings or Settings(), query))
    found: list[TaskRecord] = []
    async with aclosing(walk.steps(cursor)) as steps:
        async for matching, end in steps:
            for some in chunks(matching, STEP):
                ids = [location.task_id for location in some]
                for location, record in zip(some, await get_task_headers(redis, keys, ids, walk.types), strict=True):
                    if record is None or record.state not in walk.states_at(location):
                        continue
                    found.append(record)
                    if len(found) == limit:
                        return TaskPage(tuple(found), location.cursor)
            if walk.examined >= BUDGET:
                return TaskPage(tuple(found), end)
    return TaskPage(tuple(found), None)


async def find_task_ids(
    redis: Redis,
    keys: Keys,
    query: Query,
    *,
    settings: Settings | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> TaskIds:
    """Return the ids of at most ``limit`` tasks that match a query; the arguments are those of ``find_tasks``."""
    walk = _Walk(redis, keys, await _plan(redis, keys, settings or Settings(), query))
    found: list[str] = []
    async with aclosing(walk.steps(cursor)) as steps:
        async for matching, end in steps:
            for location in matching:
                found.append(location.task_id)
                if len(found) == limit:
                    return TaskIds(tuple(found), location.cursor)
            if walk.examined >= BUDGET:
                return TaskIds(tuple(found), end)
    return TaskIds(tuple(found), None)


async def _plan(redis: Redis, keys: Keys, settings: Settings, query: Query) -> _Plan:
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
    begin, end = ended_between(query, now)
    ids = query.names("id")
    return _Plan(
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


def ended_between(query: Query, now: int) -> tuple[float, float]:
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


class _Walk:
    """Walks through the places of a plan, reads what its query looks at, and decides."""

    def __init__(self, redis: Redis, keys: Keys, plan: _Plan) -> None:
        self._redis = redis
        self._keys = keys
        self._plan = plan
        used = {term.field for term in plan.query.terms}
        extra = dict.fromkeys(field for name, needs in _NEEDS.items() if name in used for field in needs)
        self._fields = ("state", "submission", *extra)
        self._looks_at_pools = not used.isdisjoint(_OF_POOL)
        self._definitions: dict[str, Pool] = {}
        self.types: dict[str, str] = {}  #: pool -> type of its tasks, as far as it was needed
        self.examined = 0  #: tasks so far

    async def steps(self, cursor: str | None) -> AsyncGenerator[tuple[list[_Location], str]]:
        """Yield the tasks that match, one step at a time, and the cursor after the step."""
        async with aclosing(_locations(self._redis, self._keys, self._plan, cursor)) as steps:
            async for locations in steps:
                self.examined += len(locations)
                yield await self._matching(locations), locations[-1].cursor

    def states_at(self, location: _Location) -> frozenset[TaskState]:
        """Return the states in which a task at this place is listed."""
        section = location.cursor.partition(":")[0]
        return self._plan.states if section == "ids" else self._plan.states & SECTIONS[section]

    async def _matching(self, locations: Sequence[_Location]) -> list[_Location]:
        """Return the tasks of a step that match."""
        facts = await self._facts(locations)
        plan = self._plan
        if self._looks_at_pools:
            await self._define({task.pool: task.task_id for task in facts if task is not None and task.pool})
        found = []
        for location, task in zip(locations, facts, strict=True):
            if task is None or task.state not in self.states_at(location):
                continue
            whole = task._replace(definition=self._definitions.get(task.pool, task.definition))
            if TASKS.matches(plan.query, whole, plan.now):
                found.append(location)
        return found

    async def _facts(self, locations: Sequence[_Location]) -> list[TaskFacts | None]:
        pipe = self._redis.pipeline(transaction=False)
        for location in locations:
            pipe.execute_command("HMGET", self._keys.task(location.task_id), *self._fields)
        return [
            self._task_facts(location.task_id, dict(zip(self._fields, row, strict=True)))
            for location, row in zip(locations, await pipe.execute(), strict=True)
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
            reason = self._plan.reasons.get(submission.pool)
        assignment = decode_text(raw.get("assignment") or b"").split(" ", 6)
        finished = raw.get("finished_at")
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


async def _locations(redis: Redis, keys: Keys, plan: _Plan, cursor: str | None) -> AsyncGenerator[Sequence[_Location]]:
    """Yield the tasks after the cursor, one step at a time."""
    section, _, rest = (cursor or "").partition(":")
    order = list(SECTIONS) if plan.ids is None else ["ids"]
    if cursor is not None and section not in order:
        raise _cursor_invalid(cursor)
    if plan.ids is not None:
        ids = [task_id for task_id in plan.ids if task_id > rest and is_id(task_id)]
        for some in chunks(ids, STEP):
            yield [_Location(task_id, f"ids:{task_id}") for task_id in some]
        return
    for name in plan.sections:
        if cursor is not None and order.index(name) < order.index(section):
            continue
        async for locations in _section(redis, keys, plan, name, rest if name == section else ""):
            yield locations


def _section(redis: Redis, keys: Keys, plan: _Plan, name: str, after: str) -> AsyncGenerator[Sequence[_Location]]:
    """Return the steps through one place where tasks are."""
    if name == "held":
        return _held(redis, keys, plan.agents, after)
    if name == "queued":
        return _queued(redis, keys, plan, after)
    if name == "scheduled":
        return _indexed(redis, keys.of(INDEX[name]), name, after, newest_first=False)
    return _ended(redis, keys, plan, name, after)


async def _held(
    redis: Redis, keys: Keys, only: Collection[str] | None, after: str
) -> AsyncGenerator[Sequence[_Location]]:
    last_agent, _, last_task = after.partition(":")
    agents = sorted(only) if only is not None else await list_agent_ids(redis, keys)
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


async def _queued(redis: Redis, keys: Keys, plan: _Plan, after: str) -> AsyncGenerator[Sequence[_Location]]:
    last_pool, _, rest = after.partition(":")
    for pool in await _queues(redis, keys, plan):
        if pool >= last_pool:
            position = rest if pool == last_pool else ""
            async for locations in _indexed(redis, keys.queue(pool), f"queued:{pool}", position, newest_first=False):
                yield locations


async def _queues(redis: Redis, keys: Keys, plan: _Plan) -> list[str]:
    """Return the queues in which tasks of the query can wait, sorted."""
    query = plan.query
    pools = query.names("pool")
    if pools is not None:
        return sorted({queue for pool in pools for queue in ((pool,) if is_named(pool) else (pool, named_queue(pool)))})
    used = {term.field for term in query.terms}
    if "reason" in used:
        wanted = query.allowed("reason", WaitingReason)
        return sorted(queue for queue, reason in plan.reasons.items() if reason in wanted)
    if used.isdisjoint(_OF_POOL - {""}):
        table: list[bytes] = await redis.execute_command("HKEYS", keys.of("pools"))
        return sorted(raw.decode() for raw in table)
    only = Query(tuple(term for term in query.terms if term.field in _OF_POOL - {""}))
    found = []
    async for rows in scan_pools(redis, keys):
        definitions = await get_pool_definitions(redis, keys, rows, {})
        for pool in rows:
            definition = definitions.get(pool)
            if definition is None or TASKS.matches(only, _any_task_of(pool, definition), plan.now):
                found.append(pool)
    return sorted(set(found))


def _any_task_of(pool: str, definition: Pool) -> TaskFacts:
    return TaskFacts("", TaskState.QUEUED, "", pool, 0, definition)


async def _ended(
    redis: Redis, keys: Keys, plan: _Plan, section: str, after: str
) -> AsyncGenerator[Sequence[_Location]]:
    """Yield ended tasks, the last first, within the times of the plan."""
    if not after and plan.ended_until < math.inf:
        after = f"{plan.ended_until!r}:{_LAST}"
    async for locations in _indexed(redis, keys.of(INDEX[section]), section, after, newest_first=True):
        kept = [one for one in locations if float(one.cursor.split(":", 2)[1]) >= plan.ended_from]
        if kept:
            yield kept
        if len(kept) < len(locations):
            return


async def _indexed(
    redis: Redis, key: str, prefix: str, after: str, *, newest_first: bool
) -> AsyncGenerator[Sequence[_Location]]:
    position = _parse_position(after) if after else None
    count = STEP
    while found := await read_step(redis, key, position, count, newest_first=newest_first):
        yield [_Location(task_id, f"{prefix}:{score!r}:{task_id}") for score, task_id in found]
        position = found[-1]
        count = min(count * 2, max(STEP, LONG_STEP))


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
