"""Logs: the extent of a log stream."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.connection import is_demoted
from coord.queries.fields import decode_text


class LogWindow(Struct, frozen=True):
    """The extent of a log stream; entry ids are ``0-0`` for an empty one."""

    first: str  #: id of the oldest entry that is still there
    last: str  #: id of the newest entry that was ever appended
    length: int
    added: int  #: entries ever appended; trimming does not change it, flushing resets it


async def get_log_window(redis: Redis, key: str) -> LogWindow:
    """Return the extent of a log stream.

    Args:
        redis: an asyncio client that answers in bytes.
        key: full key of the stream.

    Raises:
        redis.exceptions.RedisError: the server does not answer, or was demoted.
    """
    try:
        info = await redis.xinfo_stream(key)
    except ResponseError as error:
        if is_demoted(error):  # a demoted server lacks the key, which proves nothing about the log
            raise
        # no such key
        return LogWindow("0-0", "0-0", 0, 0)
    first = decode_text(info["first-entry"][0]) if info["first-entry"] else "0-0"
    return LogWindow(first, decode_text(info["last-generated-id"]), int(info["length"]), int(info["entries-added"]))
