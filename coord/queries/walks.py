"""Walking through sorted sets and sets in bounded steps, from a place that a cursor names.

What stays where it is while one walks is met exactly once; what moves meanwhile may be met twice or not at all.
"""

from __future__ import annotations

from typing import NamedTuple

from redis.asyncio import Redis

from coord.queries.fields import text_of

#: Members read from a set at a time.
SET_STEP = 1_000


class Position(NamedTuple):
    """A member of a sorted set."""

    score: float
    member: str


async def step(redis: Redis, key: str, after: Position | None, count: int, *, newest_first: bool) -> list[Position]:
    """At most ``count`` members that come after a place; empty at the end.

    Args:
        redis: a client.
        key: of the sorted set.
        after: None: from the beginning. It need not be a member any more.
        count: at least 1.
        newest_first: from the highest score down.
    """
    begin = 0 if after is None else await _begin(redis, key, after, newest_first=newest_first)
    while True:
        command = ("ZRANGE", key, begin, begin + count - 1, *(("REV",) if newest_first else ()), "WITHSCORES")
        raw: list[tuple[bytes, float]] = await redis.execute_command(*command)
        found = [Position(float(score), text_of(member)) for member, score in raw]
        fresh = [one for one in found if after is None or _is_after(one, after, newest_first=newest_first)]
        if fresh or len(found) < count:
            return fresh
        begin += count


async def _begin(redis: Redis, key: str, after: Position, *, newest_first: bool) -> int:
    """A rank at or before the first that comes after the place, and no further before than its equals in score."""
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("ZREVRANK" if newest_first else "ZRANK", key, after.member)
    pipe.execute_command("ZSCORE", key, after.member)
    beyond = ("(" + repr(after.score), "+inf") if newest_first else ("-inf", "(" + repr(after.score))
    pipe.execute_command("ZCOUNT", key, *beyond)
    rank, score, before = await pipe.execute()
    return int(rank) + 1 if rank is not None and float(score) == after.score else int(before)


def _is_after(one: Position, after: Position, *, newest_first: bool) -> bool:
    # Members of one score are in the order of their bytes, as ids are in that of their letters.
    return one < after if newest_first else one > after


async def members(redis: Redis, key: str) -> list[str]:
    """All members of a set, sorted, read in bounded steps."""
    cursor, found = 0, set[str]()
    while True:
        cursor, batch = await redis.sscan(key, cursor, count=SET_STEP)
        found.update(text_of(one) for one in batch)
        if cursor == 0:
            return sorted(found)
