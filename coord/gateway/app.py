"""The ASGI app: finds the route of a request, checks and decodes the request, calls the handler, sends its answer.

The order of the checks: foreign web pages, the path and the method, the number of requests at work, access, the query,
the body. Nothing of a body is read before access is granted.

Every browser on this machine reaches its loopback address. So without security the gateway refuses a Host header that
is a foreign name (DNS rebinding: a name of the attacker that resolves to 127.0.0.1). It always refuses a request from
another origin that is not allowed.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple, Protocol
from urllib.parse import urlsplit

from msgspec import Struct
from msgspec.structs import replace

from coord import codec, logs
from coord.api_key import redacted
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.context import acting_for
from coord.errors import CoordError
from coord.gateway.access import CallerAccess, is_operator
from coord.gateway.backend import Backend
from coord.gateway.body import decode, read_body
from coord.gateway.errors import RequestError
from coord.gateway.failures import error_answer
from coord.gateway.gateway import Gateway
from coord.gateway.idempotency import IDEMPOTENCY_KEY, key_of, run_once
from coord.gateway.openapi import document
from coord.gateway.protocol import RESPOND
from coord.gateway.query import decode_query
from coord.gateway.router import Router, allowed
from coord.gateway.routes import JSON, Answer, Call, Connection, Receive, Route, Scope, Send, Stream
from coord.gateway.table import ROUTES
from coord.gateway.web import HSTS, PAGE, PLAIN

log = logs.get_logger()

_JSON = (b"content-type", JSON.encode())
#: What would end a header line early, and other control characters.
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
#: Bytes of a body, and seconds until it has arrived, of a route that needs no credential where the others do.
OPEN_BYTES, OPEN_S = 16 * 1024, 5.0
#: Close code of a WebSocket whose handler failed (RFC 6455: internal error).
FAILED = 1011


class Response(NamedTuple):
    """A response in bytes."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes | AsyncIterator[bytes]


class Access(Protocol):
    """Decides who may do what."""

    async def authorize(self, call: Call[Any, Any], route: Route) -> None:
        """Let a request pass and set ``call.credential``, before its body is read.

        Raises:
            RequestError: the caller may not use the route, or not now; the error has its headers.
        """

    def check_body(self, call: Call[Any, Any], route: Route) -> None:
        """Let a request pass after its body is decoded: ``route.own`` may be a field of it.

        Raises:
            RequestError: the caller may not act for the agent in the body.
        """

    def guarded(self, call: Call[Any, Any], chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the chunks of a stream, which ends when its caller is not valid any more."""


class GatewayApp:
    """The ASGI app of the table of routes.

    Args:
        gateway: what all requests share.
        routes: the table.
        access: who may do what; None: everyone may do everything.
    """

    def __init__(self, gateway: Gateway, routes: Iterable[Route] = ROUTES, access: Access | None = None) -> None:
        self.gateway = gateway
        routes = tuple(routes)
        for route in routes:
            gateway.endpoints.setdefault(route.plain_path, []).append(route.method)
        gateway.document = cache(lambda: codec.encode(document(routes)))
        self._settings = gateway.settings
        self._router = Router(routes)
        self._access = access

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, or one WebSocket."""
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
            return
        call: Call[Any, Any] = Call(Connection(scope, receive, send), self.gateway)
        counted = False
        try:
            try:
                self._check_origin(call)
                route, call.params = self._find(call)
                counted = route.counted
                if counted:
                    self.gateway.active += 1
                    self._check_load()
                response = _encoded(await self._handle(call, route))
            except Exception as error:  # noqa: BLE001 (every error gets a response; defects are logged)
                response = _encoded(error_answer(call, error))
            except asyncio.CancelledError:
                response = self._cut_off(call)
            if response is not None:
                await _send(call, response)
        finally:
            if counted:
                self.gateway.active -= 1

    def _cut_off(self, call: Call[Any, Any]) -> Response | None:
        """Return the response to a request whose time is over because the gateway shuts down.

        Raises:
            CancelledError: something else has cancelled it.
        """
        task = asyncio.current_task()
        if not self.gateway.closing.is_set() or task is None:
            raise asyncio.CancelledError
        task.uncancel()
        message = "the gateway was shut down before the request was done; what it writes may have been written"
        return _encoded(error_answer(call, RequestError("overloaded", message)))

    def _check_origin(self, call: Call[Any, Any]) -> None:
        """Refuse a request from a foreign web page."""
        if call.path.startswith("/health"):
            return  # health reveals nothing
        host = call.header(b"host") or ""
        web = self.gateway.web
        if not web.is_known_name(host):
            raise RequestError(
                "cross_origin",
                f"the Host header {host[:200]!r} is not a name of this gateway; use localhost or its IP address",
            )
        origin = call.header(b"origin")
        is_open = origin is not None and web.is_open_to(origin)
        if origin is not None and not is_open and _netloc(origin) != host:
            raise RequestError("cross_origin", "requests from web pages of another origin are refused")
        # A browser sends no origin with a simple GET, such as that of an image. To follow a link is a navigation.
        is_foreign = call.header(b"sec-fetch-site") in {"cross-site", "same-site"} and not is_open
        is_visit = call.header(b"sec-fetch-mode") == "navigate" and _is_page(call.path)
        if is_foreign and not is_visit:
            raise RequestError("cross_origin", "requests from web pages of another origin are refused")

    def _find(self, call: Call[Any, Any]) -> tuple[Route, Mapping[str, str]]:
        if call.method == "OPTIONS":
            methods, params = self._router.methods(call.path)
            headers = {"Allow": allowed(methods)} | self._preflight(call, methods)

            async def options(_call: Call[Any, Any]) -> Answer:
                return Answer(None, 204, headers)

            return Route("GET", call.path, options, answer=None, role=None, limited=False), params
        return self._router.find(call.method, call.path)

    def _preflight(self, call: Call[Any, Any], methods: Iterable[str]) -> dict[str, str]:
        origin = call.header(b"origin")
        is_asked = call.header(b"access-control-request-method") is not None
        if origin is None or not is_asked or not self.gateway.web.is_open_to(origin):
            return {}
        return self.gateway.web.preflight_headers(sorted({*methods} - {"WEBSOCKET"}))

    def _check_load(self) -> None:
        if self.gateway.active > self._settings.gateway_requests:
            raise RequestError("overloaded", f"{self._settings.gateway_requests} requests are active; try again")

    async def _handle(self, call: Call[Any, Any], route: Route) -> Struct | Stream | None:
        if self._access is not None:
            await self._access.authorize(call, route)
        acting_for.set(call.caller_name if is_operator(call.credential) else "")
        if route.query is not None:
            call.query = decode_query(call.connection.scope["query_string"], route.query)
        if route.body is not None:
            # A caller without a credential may not hold memory and a place for long.
            is_open = route.role is None and self._access is not None
            limit = OPEN_BYTES if is_open else self._settings.max_entry_bytes
            seconds = min(OPEN_S, self._settings.gateway_body_s) if is_open else self._settings.gateway_body_s
            call.raw = await read_body(call, limit, seconds)
            call.body = decode(call.raw or b"{}", route.body)
            if self._access is not None:
                self._access.check_body(call, route)
        if call.method == "POST" and IDEMPOTENCY_KEY in call.headers:
            key = key_of(call.header(IDEMPOTENCY_KEY))
            if key is not None and route.role != "readonly":  # reads have no effect, and their responses are not kept
                if route.body is None:  # the same request has the same body, although it is ignored
                    call.raw = await read_body(call, self._settings.max_entry_bytes, self._settings.gateway_body_s)
                return await run_once(call, key, route.handle)
        answer = await route.handle(call)
        if self._access is not None and isinstance(answer, Stream):
            return replace(answer, chunks=self._access.guarded(call, answer.chunks))
        return answer


def _netloc(origin: str) -> str | None:
    """Return the host and port of an origin; None if it is malformed."""
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_page(path: str) -> bool:
    """Return True if people open a path in a browser."""
    return path in {"/", "/ui"} or path.startswith(("/docs", "/schema/"))


def _encoded(answer: Struct | Stream | None) -> Response | None:
    """Return the response in bytes; None if the handler has responded itself."""
    if answer is None:
        return None
    if isinstance(answer, Stream):
        return Response(answer.status, _headers(answer.headers, answer.content_type, None), answer.chunks)
    if not isinstance(answer, Answer):
        body = codec.encode(answer)
        return Response(200, [_JSON, (b"content-length", b"%d" % len(body))], body)
    body = answer.body if isinstance(answer.body, bytes) else b"" if answer.body is None else codec.encode(answer.body)
    headers = _headers(answer.headers, answer.content_type, body)
    if answer.status in {204, 304}:  # RFC 9110 forbids the length of nothing, and that of 304 is not 0
        headers = [header for header in headers if header[0] != b"content-length"]
    return Response(answer.status, headers, body)


def _headers(named: Mapping[str, str], content_type: str, body: bytes | None) -> list[tuple[bytes, bytes]]:
    headers = [
        (name.lower().encode("latin-1"), _CONTROL.sub(" ", value).encode("latin-1", "replace"))
        for name, value in named.items()
    ]
    if body != b"":
        headers.append(_JSON if content_type == JSON else (b"content-type", content_type.encode("latin-1")))
    if body is not None:
        headers.append((b"content-length", b"%d" % len(body)))
    return headers


async def _send(call: Call[Any, Any], response: Response) -> None:
    if call.method == "WEBSOCKET":
        await _refuse_websocket(call, response)
        return
    response.headers.extend(_safety_headers(call, response.headers))
    scope, _, send = call.connection
    if isinstance(response.body, bytes):
        respond = scope.get(RESPOND)
        if respond is not None and respond(response.status, response.headers, response.body):
            return
    await send({"type": "http.response.start", "status": response.status, "headers": response.headers})
    if isinstance(response.body, bytes):
        await send({"type": "http.response.body", "body": response.body})
    else:
        with suppress(CoordError):  # the log has it; the server closes the connection of an unfinished response
            await _send_stream(call, response.body)


async def _send_stream(call: Call[Any, Any], chunks: AsyncIterator[bytes]) -> None:
    """Send a stream until it ends, the caller disconnects or the gateway shuts down."""
    _, receive, send = call.connection
    sending = asyncio.current_task()
    assert sending is not None  # noqa: S101 (a coroutine runs in a task)
    is_ended = False

    def end(*_: object) -> None:
        nonlocal is_ended
        if not is_ended:
            is_ended = True
            sending.cancel()

    watching = asyncio.create_task(_disconnected(receive))
    watching.add_done_callback(end)
    call.gateway.streams.add(end)
    try:
        if call.method != "HEAD" and not call.gateway.closing.is_set():
            async for chunk in chunks:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
        was_ended, is_ended = is_ended, True
        if was_ended:
            await asyncio.sleep(0)  # the cancel arrives here
    except asyncio.CancelledError:
        if not is_ended:
            raise
        sending.uncancel()
    except Exception as error:
        # The status is sent, so only the broken end of the response can tell the caller.
        _log_broken(call, error)
        raise
    finally:
        is_ended = True
        call.gateway.streams.discard(end)
        await cancel_and_wait(watching)
        if isinstance(chunks, AsyncGenerator):
            await chunks.aclose()
    await send({"type": "http.response.body", "body": b""})


def _log_broken(call: Call[Any, Any], error: Exception) -> None:
    """Log why a stream ends too early; an outage of Redis is no defect."""
    if isinstance(error, CoordError):
        log.warning("gateway.stream_broken", method=call.method, path=redacted(call.path), error=str(error))
    else:
        log.error("gateway.defect", method=call.method, path=redacted(call.path), exc_info=error)


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _refuse_websocket(call: Call[Any, Any], response: Response) -> None:
    """Respond to the handshake of a WebSocket as to any other request, where the server can."""
    scope, _, send = call.connection
    if isinstance(response.body, bytes) and "websocket.http.response" in scope.get("extensions", {}):
        await send({"type": "websocket.http.response.start", "status": response.status, "headers": response.headers})
        await send({"type": "websocket.http.response.body", "body": response.body})
    else:
        await send({"type": "websocket.close", "code": FAILED})


async def _lifespan(receive: Receive, send: Send) -> None:
    """Confirm start and end; the server's own code does both."""
    while True:
        kind = (await receive())["type"]
        if kind in {"lifespan.startup", "lifespan.shutdown"}:
            await send({"type": f"{kind}.complete"})
        if kind == "lifespan.shutdown":
            return


def _safety_headers(call: Call[Any, Any], headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Return the headers that protect callers in browsers."""
    web = call.gateway.web
    found = PLAIN
    for name, value in headers:
        if name == b"content-type" and value.startswith(b"text/html"):
            found = PAGE
    origin = call.header(b"origin")
    if origin is not None and web.is_open_to(origin):
        found = [*found, *web.cors_headers(origin)]
    scope = call.connection.scope
    client = scope.get("client")
    if web.is_https(scope.get("scheme", "http"), str(client[0]) if client else "", call.header(b"x-forwarded-proto")):
        found = [*found, HSTS]
    return found


def make_app(backend: Backend, settings: Settings, access: Access | None = None) -> GatewayApp:
    """Return the ASGI app of a gateway.

    Args:
        backend: its client.
        settings: with security on, its callers need credentials.
        access: who may do what, in place of that.

    Raises:
        ConfigError: a setting of its security does not fit.
    """
    gateway = Gateway(backend, settings)
    if access is None and settings.gateway_security:
        access = CallerAccess(gateway)
    return GatewayApp(gateway, access=access)
