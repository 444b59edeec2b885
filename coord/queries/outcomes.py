"""Outcomes of tasks: the records of all that have ended and match a query, in the order of their ends."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from redis.asyncio import Redis

from coord.config import Settings
from coord.keys import Keys
from coord.models.ids import is_id
from coord.models.query import Query
from coord.models.task_query import TaskFacts
from coord.models.tasks import TERMINAL, TaskRecord
from coord.queries.reads import Position, chunks, read_step
from coord.queries.task_search import SearchPlan, TaskMatcher, plan_search
from coord.queries.tasks import INDEX, get_tasks

#: Tasks that are examined in one step: only the fields that the query looks at are read.
STEP = 200
#: Whole records, each with a payload and a result of up to 1 MiB, that are read in one round trip.
RECORDS_STEP = 16
_INDEXES = ("dead", "terminal")


async def list_outcomes(redis: Redis, keys: Keys, query: Query) -> AsyncGenerator[TaskRecord]:
    """Yield the records of ended tasks that match a query, with their results, the first that ended first.

    A task that ends meanwhile may be left out; so may a failed one that is replayed meanwhile.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
    """
    plan = await plan_search(redis, keys, Settings(), _of_ended(query))
    matcher = TaskMatcher(redis, keys, plan.query, plan.now)
    if plan.ids is not None:
        async for record in _of_ids(redis, keys, matcher, [one for one in plan.ids if is_id(one)]):
            yield record
        return
    async with AsyncExitStack() as stack:
        sources = [
            await stack.enter_async_context(aclosing(_ended(redis, keys.of(INDEX[name]), plan)))
            for name in _INDEXES
            if name in plan.sections
        ]
        async for some in _merged(sources):
            async for record in _records(redis, keys, await _matching(matcher, some)):
                yield record


async def matching_outcomes(
    redis: Redis, keys: Keys, query: Query, task_ids: Sequence[str], now: int
) -> list[TaskRecord]:
    """Return the records of those of these tasks that have ended and match a query.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
        task_ids: a few; all records are in memory at the same time.
        now: ms since 1970 on the server's clock.
    """
    matching = await _matching(TaskMatcher(redis, keys, _of_ended(query), now), task_ids)
    return [record async for record in _records(redis, keys, matching)]


def _of_ended(query: Query) -> Query:
    return query.with_term("state", sorted(TERMINAL))


async def _of_ids(
    redis: Redis, keys: Keys, matcher: TaskMatcher, task_ids: Sequence[str]
) -> AsyncGenerator[TaskRecord]:
    """Yield the records of those of these tasks that have ended and match, the first that ended first."""
    ended = [task for some in chunks(task_ids, STEP) for task in await _matching(matcher, some)]
    async for record in _records(redis, keys, sorted(ended, key=lambda task: (task.finished_at or 0, task.task_id))):
        yield record


async def _matching(matcher: TaskMatcher, task_ids: Sequence[str]) -> list[TaskFacts]:
    return [task for task in await matcher.matching(task_ids) if task is not None]


async def _records(redis: Redis, keys: Keys, tasks: Sequence[TaskFacts]) -> AsyncGenerator[TaskRecord]:
    """Yield the whole records of these tasks, a few in memory at a time; not of one that was replayed meanwhile."""
    for some in chunks(tasks, RECORDS_STEP):
        records = await get_tasks(redis, keys, [task.task_id for task in some])
        for task, record in zip(some, records, strict=True):
            if record is not None and (record.state, record.finished_at) == (task.state, task.finished_at):
                yield record


async def _ended(redis: Redis, key: str, plan: SearchPlan) -> AsyncGenerator[list[Position]]:
    """Yield the members of an index of ended tasks, the first that ended first, within the times of the plan."""
    position = None if plan.ended_from == -math.inf else Position(plan.ended_from, "")
    while found := await read_step(redis, key, position, STEP, newest_first=False):
        position = found[-1]
        kept = [one for one in found if one.score <= plan.ended_until]
        if kept:
            yield kept
        if len(kept) < len(found):
            return


async def _merged(sources: Sequence[AsyncGenerator[list[Position]]]) -> AsyncGenerator[list[str]]:
    """Yield the members of all sources in the order of their scores, some at a time."""
    steps = [await _next(source) for source in sources]
    while any(steps):
        # Up to the end of the step that ends first, all members are known.
        limit = min(step[-1] for step in steps if step)
        ready = sorted(one for step in steps for one in step if one <= limit)
        for place, source in enumerate(sources):
            rest = [one for one in steps[place] if one > limit]
            steps[place] = rest or (await _next(source) if steps[place] else [])
        yield [one.member for one in ready]


async def _next(source: AsyncGenerator[list[Position]]) -> list[Position]:
    """Return the next step; empty at the end."""
    async for step in source:
        return step
    return []
