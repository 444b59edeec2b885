"""Outcomes of tasks: the records of all that have ended and match a query, in the order of their ends."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.query import Query
from coord.models.task_query import TASKS, TaskFacts
from coord.models.tasks import TERMINAL, Pool, TaskRecord
from coord.queries.queues import pool_in_record
from coord.queries.reads import Position, get_time, read_step
from coord.queries.task_pages import ended_between
from coord.queries.tasks import INDEX, get_tasks

#: Records, with their results, that are read in one step.
STEP = 100
_INDEXES = ("dead", "terminal")


async def list_outcomes(redis: Redis, keys: Keys, query: Query) -> AsyncGenerator[TaskRecord]:
    """Yield the records of ended tasks that match a query, with their results, the first that ended first.

    A task that ends meanwhile may be left out; so may a failed one that is replayed meanwhile.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
    """
    now = await get_time(redis)
    begin, end = ended_between(query, now)
    async with AsyncExitStack() as stack:
        sources = [
            await stack.enter_async_context(aclosing(_ended(redis, keys.of(INDEX[name]), begin, end)))
            for name in _INDEXES
        ]
        async for some in _merged(sources):
            for record in await matching_outcomes(redis, keys, query, some, now):
                yield record


async def matching_outcomes(
    redis: Redis, keys: Keys, query: Query, task_ids: Sequence[str], now: int
) -> list[TaskRecord]:
    """Return the records of those of these tasks that have ended and match a query.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        query: of the grammar ``TASKS``.
        task_ids: some hundreds at most.
        now: ms since 1970 on the server's clock.
    """
    ended = [
        record for record in await get_tasks(redis, keys, task_ids) if record is not None and record.state in TERMINAL
    ]
    definitions = await _definitions(redis, keys, ended)
    return [
        record
        for record, definition in zip(ended, definitions, strict=True)
        if TASKS.matches(query, _facts(record, definition), now)
    ]


async def _definitions(redis: Redis, keys: Keys, records: Sequence[TaskRecord]) -> list[Pool]:
    """Return the pools of tasks, with their requirements."""
    pipe = redis.pipeline(transaction=False)
    for record in records:
        pipe.hmget(keys.task(record.task_id), "definition", "body")
    found = await pipe.execute() if records else []
    return [pool_in_record(*fields) or Pool(record.task_type) for record, fields in zip(records, found, strict=True)]


def _facts(record: TaskRecord, definition: Pool) -> TaskFacts:
    return TaskFacts(
        task_id=record.task_id,
        state=record.state,
        priority=record.priority,
        pool=record.pool,
        submitted_at=record.submitted_at,
        definition=definition,
        agent_id=record.agent_id,
        error=None if record.error is None else record.error.code,
        finished_at=record.finished_at,
        attempts=record.attempt,
    )


async def _ended(redis: Redis, key: str, begin: float, end: float) -> AsyncGenerator[list[Position]]:
    """Yield the members of an index of ended tasks, the first that ended first, within two times."""
    position = None if begin == -math.inf else Position(begin, "")
    while found := await read_step(redis, key, position, STEP, newest_first=False):
        position = found[-1]
        kept = [one for one in found if one.score <= end]
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
