"""Reads that several queries share: the extent of a log stream, decoded answers, and lists in bounded steps.

The steps read lists in chunks, sets, and sorted sets from a position that a cursor names. A member that stays in its
place during the walk is returned exactly once. A member that moves may be returned twice or not at all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeVar, cast

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.codec import BAD_JSON, decode_json
from coord.connection import is_demoted


async def read_hash(redis: Redis, key: str) -> dict[bytes, bytes]:
    """Return a hash as it is stored; empty if there is none."""
    return cast("dict[bytes, bytes]", await redis.hgetall(key))


def decode_fields(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """Return names and values as text; invalid UTF-8 in a value becomes replacement characters."""
    return {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}


def decode_text(raw: bytes | str) -> str:
    """Return text, from bytes or text; invalid UTF-8 becomes replacement characters."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


def parse_json(raw: str | None) -> Any:
    """Return the value of a JSON field; the text itself if it cannot be decoded."""
    if raw is None:
        return None
    try:
        return decode_json(raw.encode())
    except BAD_JSON:
        return raw


def parse_int(raw: str | None) -> int | None:
    """Return the value of a numeric field; None if it is missing or empty."""
    return None if raw is None or raw == "" else int(raw)


async def get_time(redis: Redis) -> int:
    """Return the time of the server, in milliseconds since 1970."""
    return parse_time(await redis.time())


def parse_time(answer: tuple[Any, Any]) -> int:
    """Return the answer of TIME as milliseconds since 1970."""
    seconds, micros = answer
    return int(seconds) * 1000 + int(micros) // 1000


T = TypeVar("T")

#: Members read from a set in one step.
SET_STEP = 1_000


class Position(NamedTuple):
    """The place of a member in a sorted set."""

    score: float
    member: str


def chunks(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the items in chunks of at most ``size``, one for each round trip."""
    for start in range(0, len(items), size):
        yield items[start : start + size]


async def read_step(
    redis: Redis, key: str, after: Position | None, count: int, *, newest_first: bool
) -> list[Position]:
    """Return at most ``count`` members that come after a position; empty at the end.

    Args:
        redis: an asyncio client that answers in bytes.
        key: full key of the sorted set.
        after: None starts at the beginning. The position need not be a member any more.
        count: at least 1.
        newest_first: order by descending score.
    """
    rank = 0 if after is None else await _first_rank(redis, key, after, newest_first=newest_first)
    while True:
        command = ("ZRANGE", key, rank, rank + count - 1, *(("REV",) if newest_first else ()), "WITHSCORES")
        raw: list[tuple[bytes, float]] = await redis.execute_command(*command)
        positions = [Position(float(score), decode_text(member)) for member, score in raw]
        unread = [
            position for position in positions if after is None or _is_after(position, after, newest_first=newest_first)
        ]
        if unread or len(positions) < count:
            return unread
        rank += count


async def read_members(redis: Redis, key: str) -> list[str]:
    """Return all members of a set, sorted; read in bounded steps."""
    cursor, members = 0, set[str]()
    while True:
        cursor, batch = await redis.sscan(key, cursor, count=SET_STEP)
        members.update(decode_text(member) for member in batch)
        if cursor == 0:
            return sorted(members)


async def _first_rank(redis: Redis, key: str, after: Position, *, newest_first: bool) -> int:
    """Return a rank at or before the first member after the position, at most its equals in score before it."""
    pipe = redis.pipeline(transaction=False)
    pipe.execute_command("ZREVRANK" if newest_first else "ZRANK", key, after.member)
    pipe.execute_command("ZSCORE", key, after.member)
    beyond = ("(" + repr(after.score), "+inf") if newest_first else ("-inf", "(" + repr(after.score))
    pipe.execute_command("ZCOUNT", key, *beyond)
    rank, score, before = await pipe.execute()
    return int(rank) + 1 if rank is not None and float(score) == after.score else int(before)


def _is_after(position: Position, after: Position, *, newest_first: bool) -> bool:
    # Members with the same score are sorted by their bytes, which for ids is the order of their characters.
    return position < after if newest_first else position > after


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
        return parse_log_window(await redis.xinfo_stream(key))
    except ResponseError as error:
        return parse_log_window(error)


def parse_log_window(answer: Any) -> LogWindow:
    """Return the extent of a log stream from the answer of XINFO STREAM, which may be an error.

    Raises:
        redis.exceptions.RedisError: the error, unless it says that there is no such stream.
    """
    if isinstance(answer, Exception):
        # A demoted server lacks the key, which proves nothing about the log.
        if not isinstance(answer, ResponseError) or is_demoted(answer):
            raise answer
        return LogWindow("0-0", "0-0", 0, 0)
    first = decode_text(answer["first-entry"][0]) if answer["first-entry"] else "0-0"
    return LogWindow(
        first, decode_text(answer["last-generated-id"]), int(answer["length"]), int(answer["entries-added"])
    )
