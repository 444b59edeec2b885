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
from collections import deque
from collections.abc import AsyncGenerator, Collection, Iterator, Sequence
from contextlib import aclosing
from typing import NamedTuple

from msgspec import Struct
from redis.asyncio import Redis

from coord.config import Settings
from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.explanations import WaitingReason
from coord.models.ids import is_id
from coord.models.query import Query
from coord.models.task_query import TASKS, TaskFacts
from coord.models.tasks import Pool, TaskRecord, TaskState, is_named, named_queue
from coord.queries.agents import list_agent_ids
from coord.queries.queues import get_pool_definitions, scan_pools
from coord.queries.reads import Position, chunks, decode_text, read_members, read_step
from coord.queries.task_search import OF_POOL, SearchPlan, TaskMatcher, plan_search
from coord.queries.tasks import INDEX, SECTIONS, get_task_headers

#: Tasks read in one step: the first ones of a walk, and later ones, when few match.
STEP, LONG_STEP = 200, 1_000
#: Maximum number of tasks examined for one page. A page of rare tasks is short, and its cursor continues from there.
#: An agent without tasks and an empty queue count as a task.
BUDGET = 10_000
#: Agents whose loads, and queues whose lengths, are read in one round trip.
PLACES_STEP = 500
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


class _Step(NamedTuple):
    """Tasks that are examined together, and the cursor that continues after them; or the empty places of a chunk."""

    locations: Sequence[_Location]
    cursor: str
    examined: int  #: tasks, or empty places


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
    found: list[TaskRecord] = []
    async with aclosing(await open_task_walk(redis, keys, query, settings=settings, cursor=cursor)) as walk:
        while True:
            locations, cursor = await walk.take(min(STEP, limit - len(found)))
            ids = [location.task_id for location in locations]
            headers = await get_task_headers(redis, keys, ids, walk.types) if ids else []
            found += [
                record
                for location, record in zip(locations, headers, strict=True)
                if record is not None and record.state in walk.states_at(location)
            ]
            if cursor is None or len(found) >= limit or walk.examined >= BUDGET:
                return TaskPage(tuple(found), cursor)


async def open_task_walk(
    redis: Redis, keys: Keys, query: Query, *, settings: Settings | None = None, cursor: str | None = None
) -> TaskWalk:
    """Return a walk through the tasks that match a query; close it with ``aclose``.

    Args: those of ``find_tasks``.
    """
    return TaskWalk(redis, keys, await plan_search(redis, keys, settings or Settings(), query), cursor)


class TaskWalk:
    """A walk through the tasks that match a query, a page at a time.

    It reads its plan, the list of queues and the definitions of pools once, however many pages it has. So ages and
    reasons are those of its beginning.
    """

    def __init__(self, redis: Redis, keys: Keys, plan: SearchPlan, cursor: str | None) -> None:
        self._plan = plan
        self._matcher = TaskMatcher(redis, keys, plan.query, plan.now, plan.reasons)
        self._steps = _steps(redis, keys, plan, cursor)
        self._matching: deque[_Location] = deque()  # of the last step, which no page has yet
        self._end = cursor  # after the last step
        self.examined = 0  #: tasks and empty places of the present page

    @property
    def types(self) -> dict[str, str]:
        """Pool -> type of its tasks, as far as it was needed."""
        return self._matcher.types

    async def aclose(self) -> None:
        """End the walk."""
        await self._steps.aclose()

    async def page(self, limit: int) -> TaskIds:
        """Return the ids of the next tasks, at most ``limit``.

        Raises:
            CursorInvalid: the cursor of the walk does not come from a list of tasks.
        """
        self.examined = 0
        locations, cursor = await self.take(limit)
        return TaskIds(tuple(location.task_id for location in locations), cursor)

    async def take(self, limit: int) -> tuple[list[_Location], str | None]:
        """Return the next tasks of the present page, at most ``limit``, and the cursor after them; None at the end."""
        taken: list[_Location] = []
        while True:
            while self._matching:
                taken.append(self._matching.popleft())
                if len(taken) >= limit:
                    return taken, taken[-1].cursor
            if self.examined >= BUDGET:
                return taken, self._end
            step = await anext(self._steps, None)
            if step is None:
                return taken, None
            self.examined += step.examined
            self._end = step.cursor
            tasks = await self._matcher.matching([location.task_id for location in step.locations])
            self._matching.extend(
                location
                for location, task in zip(step.locations, tasks, strict=True)
                if task is not None and task.state in self.states_at(location)
            )

    def states_at(self, location: _Location) -> frozenset[TaskState]:
        """Return the states in which a task at this place is listed."""
        section = location.cursor.partition(":")[0]
        return self._plan.states if section == "ids" else self._plan.states & SECTIONS[section]


async def _steps(redis: Redis, keys: Keys, plan: SearchPlan, cursor: str | None) -> AsyncGenerator[_Step]:
    """Yield the tasks after the cursor, one step at a time."""
    section, _, rest = (cursor or "").partition(":")
    order = list(SECTIONS) if plan.ids is None else ["ids"]
    if cursor is not None and section not in order:
        raise _cursor_invalid(cursor)
    if plan.ids is not None:
        ids = [task_id for task_id in plan.ids if task_id > rest and is_id(task_id)]
        for some in chunks(ids, STEP):
            yield _step([_Location(task_id, f"ids:{task_id}") for task_id in some])
        return
    for name in plan.sections:
        if cursor is not None and order.index(name) < order.index(section):
            continue
        async for step in _section(redis, keys, plan, name, rest if name == section else ""):
            yield step


def _step(locations: Sequence[_Location]) -> _Step:
    return _Step(locations, locations[-1].cursor, len(locations))


def _section(redis: Redis, keys: Keys, plan: SearchPlan, name: str, after: str) -> AsyncGenerator[_Step]:
    """Return the steps through one place where tasks are."""
    if name == "held":
        return _held(redis, keys, plan.agents, after)
    if name == "queued":
        return _queued(redis, keys, plan, after)
    if name == "scheduled":
        return _indexed(redis, keys.of(INDEX[name]), name, after, newest_first=False)
    return _ended(redis, keys, plan, name, after)


async def _held(redis: Redis, keys: Keys, only: Collection[str] | None, after: str) -> AsyncGenerator[_Step]:
    last_agent, _, last_task = after.partition(":")
    agents = sorted(only) if only is not None else await list_agent_ids(redis, keys)
    agents = [agent for agent in agents if agent >= last_agent]
    for begin in range(0, len(agents), PLACES_STEP):
        chunk = agents[begin : begin + PLACES_STEP]
        pipe = redis.pipeline(transaction=False)
        for agent in chunk:
            pipe.scard(keys.inflight(agent))
        loads = list(zip(chunk, map(int, await pipe.execute()), strict=True))
        for group in _groups(loads):
            held = [
                _Location(task, f"held:{agent}:{task}")
                for agent, members in (await _members(redis, keys, group)).items()
                for task in members
                if (agent, task) > (last_agent, last_task)
            ]
            for locations in chunks(held, LONG_STEP if len(group) > 1 else STEP):
                yield _step(locations)
        if following := agents[begin + PLACES_STEP :][:1]:
            yield _Step((), f"held:{following[0]}:", _count_empty(loads))


async def _members(redis: Redis, keys: Keys, agents: Sequence[str]) -> dict[str, list[str]]:
    """Return the tasks that each of these agents holds, sorted."""
    if len(agents) == 1:
        return {agents[0]: await read_members(redis, keys.inflight(agents[0]))}
    pipe = redis.pipeline(transaction=False)
    for agent in agents:
        pipe.smembers(keys.inflight(agent))
    return {
        agent: sorted(map(decode_text, members)) for agent, members in zip(agents, await pipe.execute(), strict=True)
    }


async def _queued(redis: Redis, keys: Keys, plan: SearchPlan, after: str) -> AsyncGenerator[_Step]:
    last_pool, _, position = after.partition(":")
    queues = [queue for queue in await _queues(redis, keys, plan) if queue >= last_pool]
    if position and queues and queues[0] == last_pool:
        async for step in _in_queue(redis, keys, last_pool, position):
            yield step
        queues = queues[1:]
    for begin in range(0, len(queues), PLACES_STEP):
        chunk = queues[begin : begin + PLACES_STEP]
        pipe = redis.pipeline(transaction=False)
        for queue in chunk:
            pipe.zcard(keys.queue(queue))
        lengths = list(zip(chunk, map(int, await pipe.execute()), strict=True))
        for group in _groups(lengths):
            if len(group) == 1:
                async for step in _in_queue(redis, keys, group[0], ""):
                    yield step
            elif locations := await _in_queues(redis, keys, group):
                yield _step(locations)
        if following := queues[begin + PLACES_STEP :][:1]:
            yield _Step((), f"queued:{following[0]}:", _count_empty(lengths))


def _in_queue(redis: Redis, keys: Keys, queue: str, after: str) -> AsyncGenerator[_Step]:
    return _indexed(redis, keys.queue(queue), f"queued:{queue}", after, newest_first=False)


async def _in_queues(redis: Redis, keys: Keys, queues: Sequence[str]) -> list[_Location]:
    """Return the tasks of several short queues, which are read in one round trip."""
    pipe = redis.pipeline(transaction=False)
    for queue in queues:
        pipe.zrange(keys.queue(queue), 0, LONG_STEP - 1, withscores=True)
    return [
        _Location(decode_text(member), f"queued:{queue}:{float(score)!r}:{decode_text(member)}")
        for queue, members in zip(queues, await pipe.execute(), strict=True)
        for member, score in members
    ]


def _groups(places: Sequence[tuple[str, int]]) -> Iterator[list[str]]:
    """Group places, in their order, so that the tasks of a group are one step; a place with many tasks is alone.

    Args:
        places: each with its number of tasks; empty ones are left out.
    """
    group: list[str] = []
    total, most = 0, STEP
    for place, size in places:
        if not size:
            continue
        if group and total + size > most:
            yield group
            group, total = [], 0
            most = min(most * 2, max(STEP, LONG_STEP))
        group.append(place)
        total += size
    if group:
        yield group


def _count_empty(places: Sequence[tuple[str, int]]) -> int:
    return sum(not size for _, size in places)


async def _queues(redis: Redis, keys: Keys, plan: SearchPlan) -> list[str]:
    """Return the queues in which tasks of the query can wait, sorted."""
    query = plan.query
    pools = query.names("pool")
    if pools is not None:
        return sorted({queue for pool in pools for queue in ((pool,) if is_named(pool) else (pool, named_queue(pool)))})
    used = {term.field for term in query.terms}
    if "reason" in used:
        wanted = query.allowed("reason", WaitingReason)
        return sorted(queue for queue, reason in plan.reasons.items() if reason in wanted)
    if used.isdisjoint(OF_POOL - {""}):
        table: list[bytes] = await redis.execute_command("HKEYS", keys.of("pools"))
        return sorted(raw.decode() for raw in table)
    only = Query(tuple(term for term in query.terms if term.field in OF_POOL - {""}))
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


async def _ended(redis: Redis, keys: Keys, plan: SearchPlan, section: str, after: str) -> AsyncGenerator[_Step]:
    """Yield ended tasks, the last first, within the times of the plan."""
    if not after and plan.ended_until < math.inf:
        after = f"{plan.ended_until!r}:{_LAST}"
    async for step in _indexed(redis, keys.of(INDEX[section]), section, after, newest_first=True):
        kept = [one for one in step.locations if float(one.cursor.split(":", 2)[1]) >= plan.ended_from]
        if kept:
            yield _step(kept)
        if len(kept) < len(step.locations):
            return


async def _indexed(redis: Redis, key: str, prefix: str, after: str, *, newest_first: bool) -> AsyncGenerator[_Step]:
    position = _parse_position(after) if after else None
    count = STEP
    while found := await read_step(redis, key, position, count, newest_first=newest_first):
        yield _step([_Location(task_id, f"{prefix}:{score!r}:{task_id}") for score, task_id in found])
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
