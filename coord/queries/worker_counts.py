"""How many workers there are: what a health check asks every few seconds."""

from __future__ import annotations

from redis.asyncio import Redis

from coord.keys import CONSUMES, Keys


async def workers_present(redis: Redis, keys: Keys, ttl_ms: int) -> dict[str, int]:
    """Kind of worker -> how many have said within ``ttl_ms`` that they are there; read in one round trip."""
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    for kind in CONSUMES:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1, withscores=True)
    (seconds, micros), *found = await pipe.execute()
    since = int(seconds) * 1000 + int(micros) // 1000 - ttl_ms
    return {kind: sum(at > since for _, at in names) for kind, names in zip(CONSUMES, found, strict=True)}
