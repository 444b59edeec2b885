"""What the gateway keeps in Redis about its callers: counts of requests, tickets, used refresh tokens, last uses.

These are its only writes beside facts. Each key has a TTL, but for the last use of an API key.
"""

from __future__ import annotations

import time
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from coord import queries
from coord.agent_token import digest_of_token
from coord.gateway.backend import Backend
from coord.keys import encode_facet
from coord.models.api_keys import ApiKey

#: TTL of a count: longer than the two windows in which it is read.
COUNT_TTL_MS = 180_000
#: Seconds for which the difference to the server's clock is used.
CLOCK_S = 30.0

T = TypeVar("T", bound=Struct)


class CredentialStore:
    """Reads and writes them, through the connection of the gateway's client.

    Each method raises ``ServerUnavailable`` and the like if Redis does not answer.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._ahead_ms = 0.0  # of the server's clock
        self._read_at = -CLOCK_S

    async def now_ms(self) -> float:
        """Return the time of the server, ms since 1970; its clock is read twice a minute."""
        if time.monotonic() - self._read_at > CLOCK_S:
            async with self._backend.reading() as (redis, _):
                server = await queries.get_time(redis)
            self._ahead_ms = server - time.time() * 1000
            self._read_at = time.monotonic()
        return time.time() * 1000 + self._ahead_ms

    async def api_key(self, key_id: str) -> tuple[ApiKey, str] | None:
        """Return an API key and its digest; None if it does not exist."""
        async with self._backend.reading() as (redis, keys):
            return await queries.get_api_key(redis, keys, key_id)

    async def agent_of_token(self, digest: str) -> str | None:
        """Return the agent that has a token; None if none has."""
        now = int(await self.now_ms())
        async with self._backend.reading() as (redis, keys):
            return await queries.find_agent_of_token(redis, keys, digest, now)

    async def used(self, key_id: str, at_ms: int) -> None:
        """Record when an API key was used. A key that was revoked meanwhile stays revoked."""
        async with self._backend.reading() as (redis, keys):
            await redis.zadd(keys.of("api_keys"), {key_id: at_ms}, xx=True, gt=True)

    async def count(self, caller: str, window: int, by: int) -> tuple[int, int]:
        """Add to the count of a caller in a window; return it, and the count in the window before."""
        async with self._backend.reading() as (redis, keys):
            prefix = keys.of(f"gateway:requests:{encode_facet(caller)}:")
            pipe = redis.pipeline(transaction=False)
            pipe.set(f"{prefix}{window}", 0, px=COUNT_TTL_MS, nx=True)
            pipe.incrby(f"{prefix}{window}", by)
            pipe.get(f"{prefix}{window - 1}")
            _, used, before = await pipe.execute()
        return int(used), int(before or 0)

    async def put_ticket(self, ticket: str, holder: Struct, ttl_s: float) -> None:
        """Store whom a ticket stands for."""
        async with self._backend.reading() as (redis, keys):
            await redis.set(_ticket(keys, ticket), msgspec.json.encode(holder), px=int(ttl_s * 1000))

    async def take_ticket(self, ticket: str, kind: type[T]) -> T | None:
        """Return whom a ticket stands for, and remove it; None if there is no such ticket, or not any more."""
        async with self._backend.reading() as (redis, keys):
            found: Any = await redis.getdel(_ticket(keys, ticket))
        return None if found is None else msgspec.json.decode(found, type=kind)

    async def use_once(self, token_id: str, ttl_s: float) -> bool:
        """Return True if a refresh token is used for the first time."""
        async with self._backend.reading() as (redis, keys):
            key = keys.of(f"gateway:refreshed:{encode_facet(token_id)}")
            return bool(await redis.set(key, 1, px=max(1, int(ttl_s * 1000)), nx=True))


def _ticket(keys: Any, ticket: str) -> str:
    return str(keys.of(f"gateway:ticket:{digest_of_token(ticket)}"))
