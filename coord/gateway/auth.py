"""Handlers of ``/auth``: log in with an API key, refresh, validate; make and revoke API keys; tickets for streams.

There are no passwords beside API keys. A login exchanges an API key for a JWT that is valid for some minutes, and a
refresh token that gets the next one. Both end with the key. The predecessor's callers send the key as the password, and
its name or its id as the user name.
"""

from __future__ import annotations

import secrets
from typing import Annotated, Any

from msgspec import Meta, Struct

from coord.gateway.callers import Caller, Callers, caller_of, refused
from coord.gateway.errors import Problem, RequestError
from coord.gateway.jwts import Claims
from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import iso
from coord.gateway.schemas import now as now_text
from coord.models.api_keys import CallerRole

#: Seconds for which a ticket is valid.
TICKET_S = 30
#: A response with a secret is not kept by anyone.
NO_STORE = {"Cache-Control": "no-store"}
#: Roles of the predecessor.
ROLES = {"user": CallerRole.CLIENT, "viewer": CallerRole.READONLY}

Secret = Annotated[str, Meta(min_length=1, max_length=4_096)]
Word = Annotated[str, Meta(max_length=128)]


class LogIn(Struct, frozen=True):
    """An API key; or, as the predecessor's callers send it, as a password."""

    api_key: Secret | None = None
    username: Word | None = None  #: name or id of the key
    password: Secret | None = None


class Refresh(Struct, frozen=True):
    """A refresh token, which is valid once."""

    refresh_token: Secret


class ValidateToken(Struct, frozen=True):
    """A JWT."""

    token: Secret


class ValidateKey(Struct, frozen=True):
    """An API key."""

    api_key: Secret | None = None


class KeyQuery(Struct, frozen=True):
    """The API key as the predecessor's callers send it; a body keeps it out of logs of proxies."""

    api_key: Secret | None = None


class GenerateKey(Struct, frozen=True):
    """Whom a new API key is for."""

    role: str | None = None  #: default: client
    agent_id: Word | None = None  #: with the role agent
    name: Word | None = None
    lifetime: Annotated[float, Meta(ge=1, le=315_360_000)] | None = None  #: seconds


class GenerateQuery(Struct, frozen=True):
    """The same for callers of the predecessor."""

    user_id: Word | None = None  #: used as the name


class LoggedIn(Struct, frozen=True, kw_only=True):
    """A JWT and the token that gets the next one."""

    status: str = "success"
    user_id: str
    username: str
    role: CallerRole
    access_token: str
    refresh_token: str
    token_type: str = "Bearer"  # noqa: S105 (the name of the scheme)
    expires_at: str


class TokenValid(Struct, frozen=True, kw_only=True):
    """Whom a valid credential stands for."""

    status: str = "success"
    valid: bool = True
    user_id: str
    username: str
    role: CallerRole
    agent_id: str | None = None
    expires_at: str | None = None


class KeyGenerated(Struct, frozen=True, kw_only=True):
    """A new API key, shown once."""

    status: str = "success"
    api_key: str
    key_id: str
    role: CallerRole
    agent_id: str | None = None
    name: str = ""
    created_at: str
    expires_at: str | None = None


class KeyRevoked(Struct, frozen=True, kw_only=True):
    """A key that is not valid any more."""

    status: str = "success"
    message: str
    key_id: str
    revoked_at: str


class TicketMade(Struct, frozen=True, kw_only=True):
    """A ticket for one stream."""

    status: str = "success"
    ticket: str
    expires_in: int = TICKET_S


async def log_in(call: Call[LogIn, None]) -> Answer:
    """Exchange an API key for a JWT and a refresh token."""
    body = call.body
    key = body.api_key or body.password
    if key is None:
        message = "send api_key, or username and password"
        raise RequestError("body_invalid", message, [Problem(["body", "api_key"], message, "missing")])
    callers = _callers(call)
    caller = await callers.find_key(key, call.remote)
    if body.username is not None and body.username not in {caller.name, caller.key_id}:
        await callers.count_refusal(call.remote, "another user name")
        raise refused("the API key is not valid, or not any more")
    return _logged_in(callers, _claims_of(caller))


async def refresh(call: Call[Refresh, None]) -> Answer:
    """Exchange a refresh token, which is valid once, for a new JWT and a new refresh token."""
    callers = _callers(call)
    claims = await callers.claims(call.body.refresh_token, call.remote, is_refresh=True)
    left_s = (claims.expires_at - await callers.store.now_ms()) / 1000 + 60
    if not claims.token_id or not await callers.store.use_once(claims.token_id, left_s):
        await callers.count_refusal(call.remote, "a refresh token that was used before")
        raise refused("the refresh token was used before; log in again")
    key_end = await _end_of_key(callers, claims)
    return _logged_in(callers, Claims(claims.subject, claims.role, claims.agent_id, claims.key_id, "", key_end))


async def validate(call: Call[ValidateToken, None]) -> Answer:
    """Return whom a JWT stands for; 401 if it is not valid."""
    claims = await _callers(call).claims(call.body.token, call.remote)
    return _valid(caller_of(claims))


async def validate_key(call: Call[ValidateKey, KeyQuery]) -> Answer:
    """Return whom an API key stands for; 401 if it is not valid."""
    key = call.body.api_key or call.query.api_key
    if key is None:
        raise RequestError(
            "body_invalid", "field required", [Problem(["body", "api_key"], "field required", "missing")]
        )
    return _valid(await _callers(call).find_key(key, call.remote))


async def generate_key(call: Call[GenerateKey, GenerateQuery]) -> Answer:
    """Make an API key; the response is the only place that shows it."""
    _callers(call)
    body = call.body
    wanted = (body.role or CallerRole.CLIENT).lower()
    role = ROLES.get(wanted, wanted)
    if role not in set(CallerRole):
        message = f"{wanted[:60]!r} is not one of {', '.join(CallerRole)}"
        raise RequestError("body_invalid", f"role: {message}", [Problem(["body", "role"], message, "value_error")])
    name = body.name or call.query.user_id or ""
    key, record = await call.backend.create_key(str(role), body.agent_id, name, body.lifetime)
    made = KeyGenerated(
        api_key=key,
        key_id=record.key_id,
        role=record.role,
        agent_id=record.agent_id,
        name=record.name,
        created_at=iso(record.created_at),
        expires_at=None if record.expires_at is None else iso(record.expires_at),
    )
    return Answer(made, headers=NO_STORE)


async def revoke_key(call: Call[None, None]) -> KeyRevoked:
    """Revoke an API key, by its id or the key itself, and all JWTs that were issued for it."""
    _callers(call)
    key_id = await call.backend.revoke_key(call.params["api_key"])
    return KeyRevoked(message="API key revoked", key_id=key_id, revoked_at=now_text())


async def make_ticket(call: Call[None, None]) -> Answer:
    """Make a ticket for one stream: ``?ticket=`` where a browser can set no header."""
    callers = _callers(call)
    ticket = secrets.token_urlsafe(32)
    assert call.credential is not None  # noqa: S101 (the row has a role)
    await callers.store.put_ticket(ticket, call.credential, TICKET_S)
    return Answer(TicketMade(ticket=ticket), headers=NO_STORE)


def _callers(call: Call[Any, Any]) -> Callers:
    if not call.gateway.settings.gateway_security:
        raise RequestError("security_off", "this gateway needs no credentials: COORD_GATEWAY_SECURITY is off")
    return call.gateway.callers


def _claims_of(caller: Caller) -> Claims:
    name = caller.name or caller.subject
    return Claims(name, caller.role, caller.agent_id, caller.key_id, "", caller.expires_at or 0)


async def _end_of_key(callers: Callers, claims: Claims) -> int:
    found = None if claims.key_id is None else await callers.store.api_key(claims.key_id)
    return 0 if found is None else found[0].expires_at or 0


def _logged_in(callers: Callers, claims: Claims) -> Answer:
    access, next_one = callers.jwts.issue(claims), callers.jwts.issue(claims, is_refresh=True)
    body = LoggedIn(
        user_id=claims.key_id or claims.subject,
        username=claims.subject,
        role=claims.role,
        access_token=access.token,
        refresh_token=next_one.token,
        expires_at=iso(access.expires_at),
    )
    return Answer(body, headers=NO_STORE)


def _valid(caller: Caller) -> Answer:
    body = TokenValid(
        user_id=caller.key_id or caller.subject,
        username=caller.name or caller.subject,
        role=caller.role,
        agent_id=caller.agent_id,
        expires_at=None if caller.expires_at is None else iso(caller.expires_at),
    )
    return Answer(body, headers=NO_STORE)
