"""Whether a namespace has a cell."""

from __future__ import annotations

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.facts import STREAM_FACTS


async def is_empty_cell(redis: Redis, keys: Keys) -> bool:
    """Return True if no worker has started in the namespace and no client has submitted anything to it.

    A worker creates the streams that it reads, with its consumer group; a client creates the one that it appends to.
    """
    return not await redis.exists(*(keys.of(stream) for stream in STREAM_FACTS))
