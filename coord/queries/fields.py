"""From the fields of a hash to values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from redis.asyncio import Redis

from coord.codec import BAD_JSON, decode_json


async def hash_of(redis: Redis, key: str) -> dict[bytes, bytes]:
    """A hash as it is stored; empty for none."""
    return cast("dict[bytes, bytes]", await redis.hgetall(key))


def decoded(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    """Its names and values as text; bytes that are no UTF-8 become replacement characters."""
    return {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}


def text_of(raw: bytes | str) -> str:
    """Text, whichever of the two it came as."""
    return raw.decode("utf-8", "replace") if isinstance(raw, bytes) else raw


def json_of(raw: str | None) -> Any:
    """The value of a field of JSON; the text that it is where it cannot be decoded."""
    if raw is None:
        return None
    try:
        return decode_json(raw.encode())
    except BAD_JSON:
        return raw


def int_of(raw: str | None) -> int | None:
    """The value of a field of digits; None where there is none."""
    return None if raw is None or raw == "" else int(raw)
