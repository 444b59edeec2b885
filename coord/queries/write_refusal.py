"""Check whether the server accepts writes: one with a full disk or memory, or another role, still answers reads."""

from __future__ import annotations

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.connection import is_temporary, server_text
from coord.queries.memory import get_memory


async def get_write_refusal(redis: Redis) -> str:
    """Return why the server refuses every write at the moment, or ''; sends three commands.

    Raises:
        RedisError: the server does not answer, or refuses permanently.
    """
    try:
        await redis.ping()  # refused with MISCONF exactly while writes are
    except redis_errors.ResponseError as error:
        if is_temporary(error):
            return server_text(error).rstrip(".")
        raise
    try:
        role = (await redis.info("replication")).get("role")
        used = await get_memory(redis)
    except redis_errors.NoPermissionError:
        return ""  # this user has no permission to ask
    if role == "slave":
        return "it is a read-only replica"
    if used.maximum and used.used >= used.maximum:
        return "its memory is full"
    return ""
