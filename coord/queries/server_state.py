"""The server's memory, and what operators have set."""

from __future__ import annotations

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.memory import Memory
from coord.queries.fields import decoded, hash_of


async def settings(redis: Redis, keys: Keys) -> dict[str, str]:
    """What operators have set."""
    return decoded(await hash_of(redis, keys.of("settings")))


async def memory(redis: Redis) -> Memory:
    """Return how full the server is, as it counts itself: without the buffers for replicas and append-only file."""
    info = await redis.info("memory")
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    return Memory(used=used, maximum=int(info.get("maxmemory", 0)))
