"""Who may do what: checks each request against the row of its route, before its body is read and after.

A credential comes in the header ``X-API-Key`` or ``Authorization: Bearer``. Where a browser can set no header
(``EventSource``, WebSocket), a ticket comes in the query: valid once and for 30 s, from POST /auth/ticket.

A caller may use a route if its role is the role of the row or a later one. A caller with the role ``agent`` may name
only itself where the row has ``own``; a caller with an earlier role may name no agent there.
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any
from urllib.parse import parse_qs

from coord import logs
from coord.errors import CoordError
from coord.gateway.callers import Caller, network_of, refused, too_many
from coord.gateway.errors import RequestError
from coord.gateway.gateway import Gateway
from coord.gateway.routes import Call, Connection, Event, Role, Route
from coord.models.api_keys import CallerRole

log = logs.get_logger()

#: Longest credential that is looked at.
MAX_LENGTH = 4_096
#: Seconds between two checks of the caller of a stream.
RECHECK_S = 5.0
#: Close code of a WebSocket whose caller is not valid any more (RFC 6455: policy violation).
REVOKED = 1008


class CallerAccess:
    """Checks the callers of one gateway.

    Args:
        gateway: what its requests share.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._settings = gateway.settings

    async def authorize(self, call: Call[Any, Any], route: Route) -> None:
        """Let a request pass and set ``call.credential``, before its body is read.

        Raises:
            RequestError: 401, 403 or 429; the error has its headers.
        """
        address = call.remote
        if route.role is None:
            if route.limited:
                await self._limit(f"address:{network_of(address)}", self._settings.gateway_open_rate)
            return
        caller = await self._caller(call, address)
        call.credential = caller
        check_role(caller, route.role, f"{call.method} {route.path}")
        if route.own is not None and not route.own.startswith("body."):
            check_own(caller, route.own, call.params[route.own])
        if route.limited:
            await self._limit(caller.subject, self._settings.gateway_rate)
        if call.method == "WEBSOCKET":
            call.connection = self._guarded_connection(call.connection, caller)

    def check_body(self, call: Call[Any, Any], route: Route) -> None:
        """Let a request pass after its body is decoded.

        Raises:
            RequestError: the caller may not act for the agent in the body.
        """
        if route.own is None or not route.own.startswith("body."):
            return
        value: Any = call
        for name in route.own.split("."):
            value = getattr(value, name)
        check_own(call.credential, route.own.removeprefix("body."), value if isinstance(value, str) else None)

    async def guarded(self, call: Call[Any, Any], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Pass the chunks of a stream on, as long as its caller is valid."""
        checked = time.monotonic()
        try:
            async for chunk in chunks:
                if call.credential is not None and time.monotonic() - checked > RECHECK_S:
                    if not await self._is_valid(call.credential):
                        return
                    checked = time.monotonic()
                yield chunk
        finally:
            if isinstance(chunks, AsyncGenerator):
                await chunks.aclose()

    async def _caller(self, call: Call[Any, Any], address: str) -> Caller:
        credential = _credential_of(call)
        if credential is not None:
            return await self._gateway.callers.find(credential, address)
        ticket = _ticket_of(call)
        if ticket is not None:
            caller = await self._gateway.callers.store.take_ticket(ticket, Caller)
            if caller is None or not await self._gateway.callers.is_valid(caller):
                await self._gateway.callers.count_refusal(address, "an invalid ticket")
                raise refused("the ticket is not valid, or was used; POST /auth/ticket makes one")
            return caller
        await self._limit(f"address:{network_of(address)}", self._settings.gateway_open_rate)
        raise RequestError(
            "credential_missing",
            "send a credential in the header Authorization: Bearer or X-API-Key; `coord keys create` makes one",
            headers={"WWW-Authenticate": "Bearer"},
        )

    async def _limit(self, who: str, limit: int) -> None:
        await check_rate(self._gateway, who, limit)

    async def _is_valid(self, caller: Caller) -> bool:
        try:
            return await self._gateway.callers.is_valid(caller)
        except CoordError:
            return True  # it is not known; without Redis there is nothing to send either

    def _guarded_connection(self, connection: Connection, caller: Caller) -> Connection:
        """Return a connection that is closed when the caller is not valid any more."""
        checked = time.monotonic()
        is_closed = False

        async def send(event: Event) -> None:
            nonlocal checked, is_closed
            if is_closed:
                return
            if event["type"] == "websocket.send" and time.monotonic() - checked > RECHECK_S:
                if not await self._is_valid(caller):
                    is_closed = True
                    reason = "the credential is not valid any more"
                    await connection.send({"type": "websocket.close", "code": REVOKED, "reason": reason})
                    return
                checked = time.monotonic()
            await connection.send(event)

        return connection._replace(send=send)


async def authorize_frame(call: Call[Any, Any], what: str, agent_id: str | None, *, limited: bool) -> None:
    """Let a frame of a WebSocket pass that acts for an agent, as ``CallerAccess`` does with a request.

    Args:
        call: the handshake.
        what: the frame asks for, for the message.
        agent_id: the agent that it names; None: none.
        limited: the general limit of the rate of requests counts it.

    Raises:
        RequestError: 401, 403 or 429.
    """
    caller = call.credential
    if caller is None:
        return
    await check_still_valid(call)
    check_role(caller, "agent", what)
    if agent_id is not None:
        check_own(caller, "agent_id", agent_id)
    if limited:
        await check_rate(call.gateway, caller.subject, call.gateway.settings.gateway_rate)


async def check_still_valid(call: Call[Any, Any]) -> None:
    """Raise ``RequestError`` if the credential of a request that waited has been revoked, or is over, meanwhile."""
    if call.credential is not None and not await call.gateway.callers.is_valid(call.credential):
        raise refused("the credential is not valid any more")


async def count_frame(call: Call[Any, Any]) -> None:
    """Count a frame of a WebSocket as a request; raise ``RequestError`` if its caller sent too many."""
    if call.credential is not None:
        await check_rate(call.gateway, call.credential.subject, call.gateway.settings.gateway_rate)


def is_operator(caller: Caller | None) -> bool:
    """Return True if the requests of a caller are those of an operator, for the audit; None: security is off."""
    return caller is None or caller.role.rank >= CallerRole.OPERATOR.rank


def check_role(caller: Caller, role: Role, what: str) -> None:
    """Check that a caller has a role or a later one; raise ``RequestError`` if not."""
    if caller.role.rank < CallerRole(role).rank:
        raise RequestError("role_insufficient", f"{what} needs the role {role}, and you have {caller.role}")


async def check_rate(gateway: Gateway, who: str, limit: int) -> None:
    """Count a request; raise ``RequestError`` if there were more than the limit (0: none) in a minute."""
    wait_s = await gateway.callers.limits.take(who, limit) if limit else 0.0
    if wait_s:
        raise too_many(wait_s, f"more than {limit} requests in a minute")


def check_own(caller: Caller | None, name: str, agent_id: str | None) -> None:
    """Check that a caller may act for an agent.

    Args:
        caller: who calls; None: security is off.
        name: of the field or variable that names the agent, for the message.
        agent_id: the agent; None: none is named.

    Raises:
        RequestError: it may not.
    """
    if caller is None or caller.role.rank > CallerRole.AGENT.rank:
        return
    if caller.role is CallerRole.AGENT and agent_id != caller.agent_id:
        raise RequestError(
            "agent_forbidden", f"{name}: your credential is for agent '{caller.agent_id}' only, so name that one"
        )
    if caller.role is not CallerRole.AGENT and agent_id is not None:
        raise RequestError(
            "agent_forbidden", f"{name}: with the role {caller.role} you cannot act for an agent, so leave it out"
        )


def _credential_of(call: Call[Any, Any]) -> str | None:
    """Return the credential in the headers; None without one.

    Raises:
        RequestError: it is too long.
    """
    found = call.header(b"x-api-key")
    if found is None:
        scheme, _, found = (call.header(b"authorization") or "").strip().partition(" ")
        if scheme.lower() != "bearer":
            return None
    found = found.strip()
    if len(found) > MAX_LENGTH:
        raise refused(f"the credential is longer than {MAX_LENGTH} characters")
    return found or None


def _ticket_of(call: Call[Any, Any]) -> str | None:
    """Return the ticket in the query of a stream; None without one."""
    if call.method not in {"GET", "WEBSOCKET"}:
        return None
    query = call.connection.scope.get("query_string", b"")
    if b"ticket=" not in query:
        return None
    return (parse_qs(query.decode("latin-1")).get("ticket") or [""])[0][:MAX_LENGTH] or None
