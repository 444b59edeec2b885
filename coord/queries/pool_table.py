"""The pools in which tasks wait."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec import Struct
from redis.asyncio import Redis

from coord.codec import BAD_JSON
from coord.keys import Keys
from coord.models.tasks import Pool

_pool = msgspec.json.Decoder(Pool)


class WaitingPool(Struct, frozen=True):
    """A pool in which tasks wait."""

    pool: str
    definition: Pool
    length: int
    head: float  #: score of its first task


async def waiting_pools(redis: Redis, keys: Keys, known: Mapping[str, Pool]) -> tuple[int, list[WaitingPool]]:
    """The table of pools in which tasks wait, with its revision as of before it was read.

    A pool that a requeue brought back has no definition in the table; it is in ``known``, or told by the body of its
    first task.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.hget(keys.of("counters"), "pools_rev")
    pipe.hgetall(keys.of("pools"))
    rev, table = await pipe.execute()
    pipe = redis.pipeline(transaction=False)
    for pool in table:
        pipe.zcard(keys.queue(pool.decode()))
        pipe.zrange(keys.queue(pool.decode()), 0, 0, withscores=True)
    answers = await pipe.execute()
    found: list[WaitingPool] = []
    for (raw, raw_definition), length, head in zip(table.items(), answers[::2], answers[1::2], strict=True):
        pool = raw.decode()
        if not head:
            continue
        definition = known.get(pool) or _definition(raw_definition)
        if definition is None:
            body: bytes | None = await redis.execute_command("HGET", keys.task(head[0][0].decode()), "body")
            definition = _definition(body)
        if definition is not None:
            found.append(WaitingPool(pool, definition, int(length), float(head[0][1])))
    return int(rev or 0), found


def _definition(raw: bytes | None) -> Pool | None:
    if not raw:
        return None
    try:
        return _pool.decode(raw)
    except BAD_JSON:
        return None
