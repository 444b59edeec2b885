"""Tasks by state, type and agent, a page at a time: from the sets and sorted sets that the scripts keep anyway.

There is no index of all tasks, so a page is found by walking where tasks of the wanted states are: those that an agent
holds (by agent), those that wait (by pool, next to be placed first), those with a run time (next first), and those that
have ended (last first).
"""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Collection, Sequence
from contextlib import aclosing

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.tasks import TaskRecord, TaskState
from coord.queries.agent_records import agent_ids
from coord.queries.task_records import task_headers
from coord.queries.walks import Position, members, step

#: Tasks looked at in one step.
STEP = 200
#: Tasks looked at for one page: a page of a rare kind of task is short, and its cursor goes on from there.
BUDGET = 10_000
#: Agents whose loads are asked for in one round trip.
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
    """Some tasks: their records without payload, result, progress and attempts."""

    tasks: tuple[TaskRecord, ...]
    next: str | None  #: cursor of the next page; None: there is none. A page may be short, even empty, and go on


class _Spot(Struct, frozen=True):
    """A task and the cursor that goes on after it."""

    task_id: str
    cursor: str


async def task_page(
    redis: Redis,
    keys: Keys,
    *,
    states: Collection[TaskState] = (),
    task_type: str | None = None,
    agent_id: str | None = None,
    limit: int = 100,
    cursor: str | None = None,
) -> TaskPage:
    """At most ``limit`` tasks, from ``cursor`` on.

    A task that stays in its state while one pages is listed once; one that moves may be listed twice or not at all.

    Args:
        redis: a client.
        keys: of the cell.
        states: any of these; empty: all.
        task_type: of this type only. (A refused task has none recorded.)
        agent_id: held by this agent, or ended by it.
        limit: at least 1.
        cursor: ``next`` of the page before.

    Raises:
        CursorInvalid: the cursor is no such thing.
    """
    wanted = frozenset(states) or frozenset(TaskState)
    found: list[TaskRecord] = []
    looked_at = 0
    async with aclosing(_spots(redis, keys, wanted, agent_id, cursor)) as steps:
        async for spots in steps:
            looked_at += len(spots)
            records = await task_headers(redis, keys, [spot.task_id for spot in spots])
            for spot, record in zip(spots, records, strict=True):
                if record is None or record.state not in wanted & SECTIONS[spot.cursor.partition(":")[0]]:
                    continue
                if (task_type is None or record.task_type == task_type) and agent_id in {None, record.agent_id}:
                    found.append(record)
                    if len(found) == limit:
                        return TaskPage(tuple(found), spot.cursor)
            if looked_at >= BUDGET:
                return TaskPage(tuple(found), spots[-1].cursor)
    return TaskPage(tuple(found), None)


async def _spots(
    redis: Redis, keys: Keys, wanted: Collection[TaskState], agent_id: str | None, cursor: str | None
) -> AsyncGenerator[Sequence[_Spot]]:
    """Where to look, a step at a time, after the cursor."""
    section, _, rest = (cursor or "").partition(":")
    names = list(SECTIONS)
    if cursor is not None and section not in SECTIONS:
        raise _no_cursor(cursor)
    for name in names[names.index(section) :] if section else names:
        # What waits has no agent.
        if SECTIONS[name].isdisjoint(wanted) or (agent_id is not None and name in {"queued", "scheduled", "refused"}):
            continue
        after = rest if name == section else ""
        if name == "held":
            walk = _held(redis, keys, agent_id, after)
        elif name == "queued":
            walk = _queued(redis, keys, after)
        else:
            walk = _indexed(redis, keys.of(_INDEX[name]), name, after, newest_first=name != "scheduled")
        async for spots in walk:
            yield spots


async def _held(redis: Redis, keys: Keys, agent_id: str | None, after: str) -> AsyncGenerator[Sequence[_Spot]]:
    last_agent, _, last_task = after.partition(":")
    agents = [agent_id] if agent_id is not None else await agent_ids(redis, keys)
    agents = [one for one in agents if one >= last_agent]
    for at in range(0, len(agents), AGENTS_STEP):
        some = agents[at : at + AGENTS_STEP]
        pipe = redis.pipeline(transaction=False)
        for one in some:
            pipe.scard(keys.inflight(one))
        for one, load in zip(some, await pipe.execute(), strict=True):
            if not load:
                continue
            held = [task for task in await members(redis, keys.inflight(one)) if (one, task) > (last_agent, last_task)]
            for begin in range(0, len(held), STEP):
                yield [_Spot(task, f"held:{one}:{task}") for task in held[begin : begin + STEP]]


async def _queued(redis: Redis, keys: Keys, after: str) -> AsyncGenerator[Sequence[_Spot]]:
    last_pool, _, rest = after.partition(":")
    table: list[bytes] = await redis.execute_command("HKEYS", keys.of("pools"))
    for pool in sorted(one.decode() for one in table):
        if pool >= last_pool:
            place = rest if pool == last_pool else ""
            async for spots in _indexed(redis, keys.queue(pool), f"queued:{pool}", place, newest_first=False):
                yield spots


async def _indexed(
    redis: Redis, key: str, prefix: str, after: str, *, newest_first: bool
) -> AsyncGenerator[Sequence[_Spot]]:
    place = _place(after) if after else None
    while found := await step(redis, key, place, STEP, newest_first=newest_first):
        yield [_Spot(one.member, f"{prefix}:{one.score!r}:{one.member}") for one in found]
        place = found[-1]


def _place(said: str) -> Position:
    score, _, member = said.partition(":")
    try:
        place = Position(float(score), member)
    except ValueError:
        raise _no_cursor(said) from None
    if not math.isfinite(place.score):
        raise _no_cursor(said)
    return place


def _no_cursor(said: str) -> CursorInvalid:
    return CursorInvalid(f"cursor {said[:80]!r} was not given by a list of tasks; leave it out to begin anew")
