"""Keys of the HTTP API. The keys themselves are stored nowhere, only their digests."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.api_keys import ApiKey, CallerRole
from coord.queries.reads import chunks

#: Keys in one round trip.
STEP = 500


async def get_api_key(redis: Redis, keys: Keys, key_id: str) -> tuple[ApiKey, str] | None:
    """Return the record of an API key and its digest; None if it does not exist. Its last use is not read."""
    record: Any = await redis.hgetall(keys.api_key(key_id))
    return (_api_key(key_id, record, 0), record[b"digest"].decode()) if _is_whole(record) else None


async def list_api_keys(redis: Redis, keys: Keys) -> list[ApiKey]:
    """Return all API keys, the oldest first; also expired ones, which are there until they are revoked."""
    members: Any = await redis.zrange(keys.of("api_keys"), 0, -1, withscores=True)
    used = {member.decode(): score for member, score in members}
    found: list[ApiKey] = []
    for ids in chunks(list(used), STEP):
        pipe = redis.pipeline(transaction=False)
        for key_id in ids:
            pipe.hgetall(keys.api_key(key_id))
        for key_id, record in zip(ids, await pipe.execute(), strict=True):
            if _is_whole(record):
                found.append(_api_key(key_id, record, used[key_id]))
    return sorted(found, key=lambda key: (key.created_at, key.key_id))


def _is_whole(record: dict[bytes, bytes]) -> bool:
    return b"digest" in record and record.get(b"role", b"").decode("utf-8", "replace") in set(CallerRole)


def _api_key(key_id: str, record: dict[bytes, bytes], used_at: float) -> ApiKey:
    text = {name.decode(): value.decode("utf-8", "replace") for name, value in record.items()}
    return ApiKey(
        key_id,
        CallerRole(text["role"]),
        text.get("agent_id"),
        text.get("name", ""),
        int(text.get("created_at", 0)),
        text.get("created_by", ""),
        int(text["expires_at"]) if "expires_at" in text else None,
        int(used_at) or None,
    )
