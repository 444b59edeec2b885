"""Reading in bounded steps: lists in chunks, sets, and sorted sets from a position that a cursor names.

A member that stays in its place during the walk is returned exactly once. A member that moves may be returned twice or
not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

from redis.asyncio import Redis

from coord.queries.fields import decode_text

T = TypeVar("T")

#: Members read from a set in one step.
SET_STEP = 1_000


class Position(NamedTuple):
    """The place of a member in a sorted set."""

    score: float
    member: str


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in chunks of at most ``size``, one for each round trip."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def read_step(
    redis: Redis, key: str, after: Position | None, count: int, *, newest_first: bool
) -> list[Position]:
    """Return at most ``count`` members that come after a position; empty at the end.

    Args:
        redis: an asyncio client that answers in bytes.
        key: full key of the sorted set.
        after: None starts at the beginning. The position need not be a member any more.
        count: at least 1.
        newest_first: order by descending score.
    """
    rank = 0 if after is None else await _first_rank(redis, key, after, newest_first=newest_first)
    while True:
        command = ("ZRANGE", key, rank, rank + count - 1, *(("REV",) if newest_first else ()), "WITHSCORES")
        raw: list[tuple[bytes, float]] = await redis.execute_command(*command)
        positions = [Position(float(score), decode_text(member)) for member, score in raw]
        unread = [
            position for position in positions if after is None or _is_after(position, after, newest_first=newest_first)
        ]
        if unread or len(positions) < count:
            return unread
        rank += count


async def read_members(redis: Redis, key: str) -> list[str]:
    """Return all members of a set, sorted; read in bounded steps."""
    cursor, members = 0, set[str]()
    while True:
        cursor, batch = await redis.sscan(key, cursor, count=SET_STEP)
        members.update(decode_text(member) for member in batch)
        if cursor == 0:
            return sorted(members)


async def _first_rank(redis: Redis, key: str, after: Position, *, newest_first: bool) -> int:
    """Return a rank at or before the first member after the position, at most its equals in score before it."""
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("ZREVRANK" if newest_first else "ZRANK", key, after.member)
    pipe.execute_command("ZSCORE", key, after.member)
    beyond = ("(" + repr(after.score), "+inf") if newest_first else ("-inf", "(" + repr(after.score))
    pipe.execute_command("ZCOUNT", key, *beyond)
    rank, score, before = await pipe.execute()
    return int(rank) + 1 if rank is not None and float(score) == after.score else int(before)


def _is_after(position: Position, after: Position, *, newest_first: bool) -> bool:
    # Members with the same score are sorted by their bytes, which for ids is the order of their characters.
    return position < after if newest_first else position > after
