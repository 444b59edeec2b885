"""The presence of a process that is a client of a cell, such as a gateway; operators see it like a worker's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from coord.client.connection import ClientConnection


async def record_presence(
    connection: ClientConnection, kind: str, name: str, fields: Mapping[str, str | int | float], ttl_s: float
) -> None:
    """Record that a process is alive.

    Args:
        connection: of its client.
        kind: of the process.
        name: of the process, unique in its kind.
        fields: of its record, as ``coord.keys`` lists them, without ``progress_at``.
        ttl_s: seconds that the record lasts.
    """
    redis, keys = connection.redis, connection.keys
    seconds, micros = await redis.time()
    now = seconds * 1000 + micros // 1000
    index = keys.of(f"workers:{kind}")
    pipe = redis.pipeline(transaction=False)
    record: dict[Any, Any] = {"progress_at": now, **fields}
    pipe.hset(keys.worker(kind, name), mapping=record)
    pipe.pexpire(keys.worker(kind, name), int(ttl_s * 1000))
    pipe.zadd(index, {name: now})
    pipe.zremrangebyscore(index, "-inf", int(now - ttl_s * 1000))
    await pipe.execute()


async def end_presence(connection: ClientConnection, kind: str, name: str) -> None:
    """Record that a process leaves; its record expires."""
    await connection.redis.zrem(connection.keys.of(f"workers:{kind}"), name)
