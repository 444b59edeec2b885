"""What waits: by priority, and by pool."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import submission_of
from coord.keys import Keys
from coord.models.tasks import Pool, Priority, TaskState
from coord.queries.fields import text_of
from coord.queries.pool_table import CHUNK, WaitingPool, waiting_pools
from coord.queries.totals import counters

#: The states that have not ended, in the order of the fields of ``PriorityBacklog``.
_LIVING = (TaskState.SCHEDULED, TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RUNNING)


class PriorityBacklog(Struct, frozen=True):
    """The tasks of one priority that have not ended."""

    priority: Priority
    submitted: int  #: entries that no distributor has handled yet
    scheduled: int
    queued: int
    assigned: int
    running: int


class PoolBacklog(Struct, frozen=True):
    """A pool in which tasks wait: they are interchangeable."""

    pool: str
    definition: Pool
    length: int  #: tasks that wait
    head: str  #: the task that is placed next
    head_priority: Priority | None  #: None when the head has gone on meanwhile
    head_age: int | None  #: ms since the head was submitted


class Backlog(Struct, frozen=True):
    """Everything that has not ended."""

    priorities: tuple[PriorityBacklog, ...]  #: most pressing first
    pools: tuple[PoolBacklog, ...]  #: whose head is placed next first
    unlisted: int = 0  #: pools that wait besides, where only some were asked for


async def backlog(redis: Redis, keys: Keys, most: int | None = None) -> Backlog:
    """What waits, is scheduled and is in flight; the parts are read one after another while the cell works.

    Args:
        redis: a client.
        keys: of the cell.
        most: Maximum number of pools to list, those with the first heads; None: all.
    """
    counted = await counters(redis, keys)
    pipe = redis.pipeline(transaction=False)
    for priority in Priority:
        pipe.xlen(keys.tasks_in(priority))
    pipe.time()
    *submitted, (seconds, micros) = await pipe.execute()
    now = int(seconds) * 1000 + int(micros) // 1000
    priorities = tuple(
        PriorityBacklog(
            priority,
            int(waits),
            *(counted.get(f"{state}:{priority}", 0) for state in _LIVING),
        )
        for priority, waits in zip(Priority, submitted, strict=True)
    )
    _, pools = await waiting_pools(redis, keys, {})
    pools.sort(key=lambda one: one.head)
    listed = pools[:most]
    found: list[PoolBacklog] = []
    for at in range(0, len(listed), CHUNK):
        found += await _with_heads(redis, keys, now, listed[at : at + CHUNK])
    return Backlog(priorities, tuple(found), len(pools) - len(listed))


async def _with_heads(redis: Redis, keys: Keys, now: int, pools: list[WaitingPool]) -> list[PoolBacklog]:
    pipe = redis.pipeline(transaction=False)
    for one in pools:
        pipe.zrange(keys.queue(one.pool), 0, 0)
    heads = [text_of(head[0]) if head else "" for head in await pipe.execute()]
    pipe = redis.pipeline(transaction=False)
    for head in heads:
        pipe.hget(keys.task(head), "submission")
    found: list[PoolBacklog] = []
    for one, head, raw in zip(pools, heads, await pipe.execute(), strict=True):
        submitted = submission_of(text_of(raw)) if raw else None
        known = Priority(submitted.priority) if submitted else None
        age = max(0, now - submitted.submitted_at) if submitted else None
        found.append(PoolBacklog(one.pool, one.definition, one.length, head, known, age))
    return found
