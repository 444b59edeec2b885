"""Decoding of raw answers from Redis: hash fields, text, JSON and numbers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis

from coord.codec import BAD_JSON, decode_json


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
