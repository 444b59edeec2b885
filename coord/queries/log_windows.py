"""What the log streams hold."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.connection import is_demoted
from coord.queries.fields import text_of


class LogWindow(Struct, frozen=True):
    """What a log stream holds: entry ids, ``0-0`` for none."""

    first: str  #: the oldest that is still there
    last: str  #: the latest that was ever appended
    length: int
    added: int  #: how many were ever appended; trimming leaves it, flushing begins it anew


async def log_window(redis: Redis, key: str) -> LogWindow:
    """What the log stream ``key`` (a full key) holds; raises what a server that was demoted answers."""
    try:
        info = await redis.xinfo_stream(key)
    except ResponseError as error:
        if is_demoted(error):  # it has not the log, which says nothing about the log
            raise
        # no such key
        return LogWindow("0-0", "0-0", 0, 0)
    first = text_of(info["first-entry"][0]) if info["first-entry"] else "0-0"
    return LogWindow(first, text_of(info["last-generated-id"]), int(info["length"]), int(info["entries-added"]))
