"""Whether the server takes writes: one with a full disk, a full memory or another role still answers reads."""

from __future__ import annotations

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.queries.server_state import memory
from coord.refusals import answer_of, is_for_now


async def write_refusal(redis: Redis) -> str:
    """Return why the server refuses every write at the moment, or ''; costs two commands.

    Raises:
        RedisError: the server does not answer, or refuses for good.
    """
    try:
        await redis.ping()  # refused with MISCONF exactly while writes are
    except redis_errors.ResponseError as error:
        if is_for_now(error):
            return answer_of(error).rstrip(".")
        raise
    try:
        role = (await redis.info("replication")).get("role")
        used = await memory(redis)
    except redis_errors.NoPermissionError:
        return ""  # this user cannot know
    if role == "slave":
        return "it is a read-only replica"
    if used.maximum and used.used >= used.maximum:
        return "its memory is full"
    return ""
