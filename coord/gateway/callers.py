"""Who calls: finds the caller of a credential, which is an API key, a JWT or the token of an agent.

A caller that was found is valid for ``FRESH_S`` without another look, so a revoked credential is refused in all
gateways within that time. Refused credentials are counted for each address. An address with too many of them gets no
credential checked for the rest of a minute, except those that were valid from there lately: so it learns nothing, and
others behind the same address go on.
"""

from __future__ import annotations

import time
from hmac import compare_digest
from ipaddress import IPv6Address, ip_address
from typing import TypeVar

from msgspec import Struct

from coord import logs
from coord.agent_token import MAX_LENGTH as LONGEST_TOKEN
from coord.agent_token import digest_of_token
from coord.api_key import id_of_key
from coord.config import Settings
from coord.errors import CoordError
from coord.gateway.credential_store import CredentialStore
from coord.gateway.errors import RequestError
from coord.gateway.jwts import MAX_LENGTH as LONGEST_JWT
from coord.gateway.jwts import Claims, Jwts
from coord.gateway.rate_limits import RateLimits
from coord.models.api_keys import CallerRole

log = logs.get_logger()

T = TypeVar("T")

#: Seconds for which a caller that was found is not looked for again.
FRESH_S = 1.0
#: Seconds for which a credential that was valid from an address is still checked for it.
KNOWN_S = 3_600.0
#: Callers, and pairs of address and credential, that are remembered.
REMEMBERED = 10_000
#: Seconds between two records of the last use of an API key.
USED_S = 60.0

#: Compared with where there is no key, so that the answer takes as long.
_NO_DIGEST = "0" * 64


class Caller(Struct, frozen=True):
    """Who calls, and what it may do."""

    subject: str  #: ``key:`` and its id, ``agent:`` and its id, ``user:`` and the subject of a JWT
    role: CallerRole
    agent_id: str | None = None  #: the only agent that it may act for
    name: str = ""
    key_id: str | None = None  #: the API key that it has, or for which its JWT was issued
    expires_at: int | None = None  #: ms since 1970
    token_digest: str = ""  #: SHA-256 of its credential, if that is the token of the agent; the workers check it too

    @property
    def has_token(self) -> bool:
        """Whether its credential is the token of the agent."""
        return self.token_digest != ""


class Callers:
    """Finds callers.

    Args:
        settings: limits and keys of JWTs.
        store: of the credentials.

    Raises:
        ConfigError: a key of JWTs does not fit.
    """

    def __init__(self, settings: Settings, store: CredentialStore) -> None:
        self.jwts = Jwts(settings)
        self.store = store
        self.limits = RateLimits(store, store.now_ms)
        self._refused_rate = settings.gateway_refused_rate
        self._found: dict[str, tuple[Caller, float]] = {}  # digest of the credential -> its caller, until when
        self._known: dict[str, float] = {}  # address and digest -> until when
        self._used: dict[str, float] = {}  # API key -> when its last use was recorded

    async def find(self, credential: str, address: str) -> Caller:
        """Return the caller of a credential.

        Args:
            credential: as it was sent.
            address: that it came from.

        Raises:
            RequestError: it is not valid, or its address has sent too many that are not.
        """
        digest = digest_of_token(credential)
        found = self._found.get(digest)
        if found is not None and found[1] > time.monotonic():
            return found[0]
        pair = f"{address} {digest}"
        if self._known.get(pair, 0.0) < time.monotonic():
            await self._check_address(address)
        try:
            caller = await self._look_up(credential, digest)
        except RequestError as error:
            if error.name == "credential_invalid":
                await self.count_refusal(address, str(error))
            raise
        _remember(self._found, digest, (caller, time.monotonic() + FRESH_S))
        _remember(self._known, pair, time.monotonic() + KNOWN_S)
        await self._record_use(caller)
        return caller

    async def find_key(self, key: str, address: str) -> Caller:
        """Return the caller of an API key; no other credential is accepted.

        Raises:
            RequestError: as ``find``.
        """
        if id_of_key(key) is None:
            await self._check_address(address)
            await self.count_refusal(address, "it is no API key")
            raise refused("that is no API key")
        return await self.find(key, address)

    async def claims(self, token: str, address: str, *, is_refresh: bool = False) -> Claims:
        """Return the claims of a JWT whose API key, if it was issued for one, is still valid.

        Raises:
            RequestError: as ``find``.
        """
        await self._check_address(address)
        try:
            claims = self.jwts.verify(token, is_refresh=is_refresh)
            await self._check_key_of(claims)
        except RequestError as error:
            if error.name == "credential_invalid":
                await self.count_refusal(address, str(error))
            raise
        return claims

    async def is_valid(self, caller: Caller) -> bool:
        """Return True if a caller is still valid; for requests that stay open."""
        if caller.expires_at is not None and await self.store.now_ms() >= caller.expires_at:
            return False
        if caller.has_token:
            return await self.store.agent_of_token(caller.token_digest) == caller.agent_id
        return caller.key_id is None or await self.store.api_key(caller.key_id) is not None

    async def count_refusal(self, address: str, why: str) -> None:
        """Count a refused credential.

        Raises:
            RequestError: the address has sent too many.
        """
        wait_s = await self.limits.take(_refusals(address), self._refused_rate)
        log.info("credential.refused", address=address, why=why)
        if wait_s:
            raise too_many(wait_s, "too many credentials from this address were refused")

    async def _check_address(self, address: str) -> None:
        wait_s = await self.limits.refused_for(_refusals(address))
        if wait_s:
            raise too_many(wait_s, "too many credentials from this address were refused")

    async def _look_up(self, credential: str, digest: str) -> Caller:
        key_id = id_of_key(credential)
        if key_id is not None:
            return await self._of_key(key_id, digest)
        if credential.count(".") == 2 and len(credential) <= LONGEST_JWT and credential.startswith("eyJ"):
            claims = self.jwts.verify(credential)
            await self._check_key_of(claims)
            return caller_of(claims)
        agent_id = await self.store.agent_of_token(digest) if len(credential) <= LONGEST_TOKEN else None
        if agent_id is None:
            raise refused("the credential is not valid, or not any more")
        return Caller(f"agent:{agent_id}", CallerRole.AGENT, agent_id, token_digest=digest)

    async def _of_key(self, key_id: str, digest: str) -> Caller:
        found = await self.store.api_key(key_id)
        is_right = compare_digest(found[1] if found else _NO_DIGEST, digest)
        if found is None or not is_right:
            raise refused("the API key is not valid, or not any more")
        key, _ = found
        if key.expires_at is not None and await self.store.now_ms() >= key.expires_at:
            raise refused("the API key has expired")
        return Caller(f"key:{key_id}", key.role, key.agent_id, key.name, key_id, key.expires_at)

    async def _check_key_of(self, claims: Claims) -> None:
        if claims.key_id is None:
            return
        found = await self.store.api_key(claims.key_id)
        if found is None:
            raise refused("the API key that the JWT was issued for is not valid any more")

    async def _record_use(self, caller: Caller) -> None:
        """Record the use of an API key, once a minute at most. A failure does not fail the request."""
        if caller.key_id is None or time.monotonic() - self._used.get(caller.key_id, -USED_S) < USED_S:
            return
        _remember(self._used, caller.key_id, time.monotonic())
        try:
            await self.store.used(caller.key_id, int(await self.store.now_ms()))
        except CoordError as error:
            log.warning("credential.use_not_recorded", key_id=caller.key_id, error=str(error))


def caller_of(claims: Claims) -> Caller:
    """Return the caller of a JWT. One that was issued for an API key shares the limits of that key."""
    subject = f"user:{claims.subject}" if claims.key_id is None else f"key:{claims.key_id}"
    return Caller(subject, claims.role, claims.agent_id, claims.subject, claims.key_id, claims.expires_at)


def network_of(address: str) -> str:
    """Return what is counted as one address: of IPv6 the network of 64 bits, of which a caller has all addresses."""
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return address[:64]
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return f"{IPv6Address(int(found) >> 64 << 64)}/64" if isinstance(found, IPv6Address) else str(found)


def refused(message: str) -> RequestError:
    """Return the error for a credential that is not valid."""
    return RequestError("credential_invalid", message, headers={"WWW-Authenticate": 'Bearer error="invalid_token"'})


def too_many(wait_s: float, why: str) -> RequestError:
    """Return the error for a caller that has to wait."""
    after = max(1, int(wait_s) + (wait_s % 1 > 0))
    return RequestError("rate_limited", f"{why}; try again in {after} s", headers={"Retry-After": str(after)})


def _refusals(address: str) -> str:
    return f"refused:{network_of(address)}"


def _remember(memory: dict[str, T], name: str, value: T) -> None:
    memory.pop(name, None)
    memory[name] = value
    if len(memory) > REMEMBERED:
        del memory[next(iter(memory))]
