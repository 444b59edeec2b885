"""The server's memory, and what operators have set."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis

from coord.keys import Keys
from coord.queries.fields import decoded, hash_of


class Memory(Struct, frozen=True):
    """How full the server is; bytes, 0 for no maximum."""

    used: int
    maximum: int

    @property
    def is_nearly_full(self) -> bool:
        """Above 85 % of its maximum: submissions are refused, so that reports have room."""
        return bool(self.maximum) and self.used > 0.85 * self.maximum


async def settings(redis: Redis, keys: Keys) -> dict[str, str]:
    """What operators have set."""
    return decoded(await hash_of(redis, keys.of("settings")))


async def memory(redis: Redis) -> Memory:
    """How full the server is."""
    info = await redis.info("memory")
    return Memory(used=int(info.get("used_memory", 0)), maximum=int(info.get("maxmemory", 0)))
