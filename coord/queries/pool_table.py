"""The pools in which tasks wait. There may be 100,000 of them, so all reading is done in pieces."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from itertools import islice

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON
from coord.keys import Keys
from coord.models.tasks import Pool

_pool = msgspec.json.Decoder(Pool)

#: Pools that are read in one round trip: some milliseconds of the server's time.
CHUNK = 1_000


class WaitingPool(Struct, frozen=True):
    """A pool in which tasks wait."""

    pool: str
    definition: Pool
    length: int
    head: float  #: score of its first task


class PoolChanges(Struct, frozen=True):
    """What has changed in the table of waiting pools since a revision."""

    rev: int  #: the table's revision now
    count: int  #: pools in the table
    pools: tuple[str, ...] | None  #: those that have begun or ended since; None: that is not known


async def pool_changes(redis: Redis, keys: Keys, since: int) -> PoolChanges:
    """Return which pools have begun or ended since a revision of the table, in one round trip.

    It may name pools that have changed after the revision that it returns: that is read before they are. (A full server
    refuses a transaction, even one that only reads.)
    """
    changed = keys.of("pools:changed")
    pipe = redis.pipeline(transaction=False)
    pipe.hget(keys.of("counters"), "pools_rev")
    pipe.hlen(keys.of("pools"))
    pipe.zrangebyscore(changed, f"({since}", "+inf")
    pipe.zrange(changed, -1, -1, withscores=True)
    pipe.zrange(changed, 0, 0, withscores=True)  # last: what was trimmed until now shows
    raw_rev, count, pools, newest, oldest = await pipe.execute(raise_on_error=False)
    for answer in (raw_rev, count):
        if isinstance(answer, Exception):
            raise answer
    rev = int(raw_rev or 0)
    if rev == since:
        return PoolChanges(rev, int(count), ())
    # Only the newest are kept, and a release that does not keep them raises the revision all the same.
    is_complete = (
        not any(isinstance(answer, Exception) for answer in (oldest, newest, pools))
        and bool(newest)
        and float(newest[0][1]) >= rev
        and float(oldest[0][1]) <= since < rev
    )
    return PoolChanges(rev, int(count), tuple(one.decode() for one in pools) if is_complete else None)


async def scan_pools(redis: Redis, keys: Keys) -> AsyncIterator[dict[str, bytes]]:
    """Yield the whole table in pieces: pool -> its definition as it is stored.

    What begins or ends meanwhile may be in it or not; what was there all the time is.
    """
    cursor, rows = 0, {}  # type: int, dict[bytes, bytes]
    while True:
        cursor, rows = await redis.hscan(keys.of("pools"), cursor, count=CHUNK)  # type: ignore[assignment]
        yield {raw.decode(): definition for raw, definition in rows.items()}
        if not cursor:
            return


async def pool_definitions(
    redis: Redis, keys: Keys, rows: Mapping[str, bytes], known: Mapping[str, Pool]
) -> dict[str, Pool]:
    """Return the definitions of pools in the table, without those that cannot be read.

    A pool that a requeue brought back has no definition in its row; it is in ``known``, or in the body of its first
    task.
    """
    found: dict[str, Pool] = {}
    missing: list[str] = []
    for pool, raw in rows.items():
        definition = known.get(pool) or _definition(raw)
        if definition is None:
            missing.append(pool)
        else:
            found[pool] = definition
    for pools in _chunks(missing):
        pipe = redis.pipeline(transaction=False)
        for pool in pools:
            pipe.zrange(keys.queue(pool), 0, 0)
        heads = await pipe.execute()
        pipe = redis.pipeline(transaction=False)
        for head in heads:
            pipe.hget(keys.task(head[0].decode() if head else ""), "body")
        for pool, body in zip(pools, await pipe.execute(raise_on_error=False), strict=True):
            definition = None if isinstance(body, Exception) else _definition(body)
            if definition is not None:
                found[pool] = definition
    return found


async def pool_rows(redis: Redis, keys: Keys, pools: Sequence[str]) -> dict[str, bytes]:
    """Return the rows of those of these pools (``CHUNK`` at most) that are in the table, as they are stored."""
    if not pools:
        return {}
    rows: list[bytes | None] = await redis.execute_command("HMGET", keys.of("pools"), *pools)
    return {pool: raw for pool, raw in zip(pools, rows, strict=True) if raw is not None}


async def pool_lengths(redis: Redis, keys: Keys, pools: Sequence[str]) -> dict[str, tuple[int, float]]:
    """Return the number of tasks that wait in each of these pools (``CHUNK`` at most), and the score of the first."""
    pipe = redis.pipeline(transaction=False)
    for pool in pools:
        pipe.zcard(keys.queue(pool))
        pipe.zrange(keys.queue(pool), 0, 0, withscores=True)
    answers = await pipe.execute()
    return {
        pool: (int(length), float(head[0][1])) if length and head else (0, 0.0)
        for pool, length, head in zip(pools, answers[::2], answers[1::2], strict=True)
    }


async def waiting_pools(redis: Redis, keys: Keys, known: Mapping[str, Pool]) -> tuple[int, list[WaitingPool]]:
    """Return the whole table of pools in which tasks wait, with its revision as of before it was read."""
    rev: bytes | None = await redis.execute_command("HGET", keys.of("counters"), "pools_rev")
    found: dict[str, WaitingPool] = {}
    async for rows in scan_pools(redis, keys):
        definitions = await pool_definitions(redis, keys, rows, known)
        for pools in _chunks(definitions):
            for pool, (length, head) in (await pool_lengths(redis, keys, pools)).items():
                if length:
                    found[pool] = WaitingPool(pool, definitions[pool], length, head)
    return int(rev or 0), list(found.values())


def _chunks(pools: Iterable[str]) -> Iterable[list[str]]:
    rest = iter(pools)
    return iter(lambda: list(islice(rest, CHUNK)), [])


def _definition(raw: bytes | None) -> Pool | None:
    if not raw:
        return None
    try:
        return _pool.decode(raw)
    except BAD_JSON:
        return None
