"""The types of the table of routes: a row, a request on its way to a handler, and the answers that a handler returns.

A handler is ``async def name(call) -> Struct``. It gets one ``Call``, makes one call of the SDK and returns the body of
a 200 response; or an ``Answer`` with another status or headers; or a ``Stream``. It raises a ``CoordError`` for
everything else. A handler that returns None has responded itself through ``call.connection``, as that of a WebSocket
does.

``coord.gateway.table`` has the rows. ``coord.gateway.app`` finds the row of a request and calls its handler.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, MutableMapping
from typing import Any, Generic, Literal, NamedTuple, TypeAlias, TypeVar

from msgspec import Struct
from msgspec.structs import replace

from coord.agent_token import MAX_LENGTH
from coord.api_key import id_of_key
from coord.gateway.backend import Backend
from coord.gateway.callers import Caller
from coord.gateway.draining import WAIT_S
from coord.gateway.gateway import Gateway
from coord.gateway.socket_protocol import SocketProtocol
from coord.gateway.transports import abort, limit_unread
from coord.models.tracing import is_traceparent

#: Every path is served without a prefix and under this one.
PREFIX = "/v1"

JSON = "application/json"

#: The kind of a variable part of a path.
_KIND = re.compile(r":\w+(?=\})")

#: The least role that may use a route; None: everyone, also without a credential.
Role: TypeAlias = Literal["readonly", "client", "agent", "operator", "admin"]
Method: TypeAlias = Literal["GET", "POST", "PUT", "DELETE", "WEBSOCKET"]

Scope: TypeAlias = MutableMapping[str, Any]
Event: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Event]]
Send: TypeAlias = Callable[[Event], Awaitable[None]]

B = TypeVar("B")
Q = TypeVar("Q")


class Connection(NamedTuple):
    """The ASGI connection of a request, for handlers that respond themselves."""

    scope: Scope
    receive: Receive
    send: Send

    def limit_unread(self, size: int) -> None:
        """Limit the bytes that the system keeps for a caller that does not read."""
        if self._transport is not None:
            limit_unread(self._transport, size)

    def abort(self) -> None:
        """Close the connection at once; what the caller has not read is dropped."""
        if self._transport is not None:
            abort(self._transport)

    def allow_large_frames(self) -> None:
        """Let the caller of a WebSocket send frames as large as the body of a request."""
        protocol = getattr(self.receive, "__self__", None)
        if isinstance(protocol, SocketProtocol):
            protocol.allow_large_frames()

    @property
    def _transport(self) -> Any:
        """The transport; ASGI itself gives no access to it. None with another server, as in tests."""
        return getattr(getattr(self.receive, "__self__", None), "transport", None)


class Answer(Struct, frozen=True):
    """A response that is not a plain 200."""

    body: Struct | bytes | None = None  #: a Struct is sent as JSON, bytes as they are
    status: int = 200
    headers: Mapping[str, str] = {}
    content_type: str = JSON
    is_final: bool = True  #: False: a repetition of the request may get a better response


class Stream(Struct, frozen=True):
    """A response that is sent piece by piece. It ends with its iterator, the connection or the gateway."""

    chunks: AsyncIterator[bytes]
    content_type: str
    status: int = 200
    headers: Mapping[str, str] = {}


class Call(Generic[B, Q]):
    """One request on its way to its handler.

    Attributes:
        connection: the ASGI connection.
        method: of the request, in upper case; ``WEBSOCKET`` for the handshake of one.
        path: of the request, without the prefix.
        prefix: ``/v1`` or empty.
        headers: names in lower case -> values, as bytes; ``header`` returns text.
        params: the variable parts of the path.
        gateway: what all requests share, such as the client.
        body: the decoded body; None if the route has none.
        raw: the body as it came.
        query: the decoded query; None if the route has none.
        credential: who calls, as the check of access found it; None without such a check.
    """

    __slots__ = (
        "body",
        "connection",
        "credential",
        "gateway",
        "headers",
        "method",
        "params",
        "path",
        "prefix",
        "query",
        "raw",
    )

    body: B
    query: Q
    params: Mapping[str, str]

    def __init__(self, connection: Connection, gateway: Gateway) -> None:
        scope = connection.scope
        self.connection = connection
        self.gateway = gateway
        self.method: str = scope["method"] if scope["type"] == "http" else "WEBSOCKET"
        path: str = scope["path"]
        self.prefix = PREFIX if path == PREFIX or path.startswith(f"{PREFIX}/") else ""
        if self.prefix:
            path = path[len(PREFIX) :]
        self.path = path.rstrip("/") or "/"
        self.headers: dict[bytes, bytes] = dict(scope["headers"])
        self.params = {}
        self.raw = b""
        self.credential: Caller | None = None

    def header(self, name: bytes) -> str | None:
        """Return the value of a header, whose name is in lower case; None without it."""
        value = self.headers.get(name)
        return None if value is None else value.decode("latin-1")

    def inner(self, body: Any, params: Mapping[str, str]) -> Call[Any, None]:
        """Return a call of the same caller with another body and other parameters: a frame of a WebSocket."""
        call: Call[Any, None] = Call(self.connection, self.gateway)
        call.body, call.params, call.credential = body, params, self.credential
        call.headers.pop(b"idempotency-key", None)  # of the handshake, not of each frame
        return call

    @property
    def backend(self) -> Backend:
        """The gateway's client."""
        return self.gateway.backend

    @property
    def remote(self) -> str:
        """The address of the caller: behind a trusted proxy, as that says; else the address that is connected."""
        client = self.connection.scope.get("client")
        return self.gateway.web.address_of(str(client[0]) if client else "", self.header(b"x-forwarded-for"))

    @property
    def caller_name(self) -> str:
        """Who calls, for logs: the address, and the credential without its secret."""
        return " ".join(
            part for part in ("http", self.credential.subject if self.credential else "", self.remote) if part
        )

    @property
    def bearer_token(self) -> str:
        """The token of an agent, to send beside its facts; empty without one.

        It is in the header ``X-Agent-Token``, or in ``Authorization: Bearer`` if that is no other credential: an API
        key or a JWT goes no further than the gateway.
        """
        token = self.header(b"x-agent-token")
        if token is None and (self.credential is None or self.credential.has_token):
            scheme, _, token = (self.header(b"authorization") or "").strip().partition(" ")
            token = "" if scheme.lower() != "bearer" or id_of_key(token.strip()) else token
        return (token or "").strip()[:MAX_LENGTH]

    @property
    def subject(self) -> str:
        """Who calls, by the credential; empty if security is off."""
        return "" if self.credential is None else self.credential.subject

    @property
    def traceparent(self) -> str | None:
        """The place of the request in a distributed trace; None for none, and for a malformed one, as W3C requires."""
        found = self.header(b"traceparent")
        return found if is_traceparent(found) else None

    @property
    def wait_s(self) -> float:
        """Seconds to wait for the answer of a worker: 0 with ``Prefer: respond-async``, few while it shuts down."""
        preferences = self.headers.get(b"prefer")
        if preferences is not None:
            is_async = "respond-async" in (one.strip() for one in preferences.decode("latin-1").lower().split(","))
            if is_async:
                return 0
        wait_s = self.gateway.settings.gateway_wait_s
        return min(wait_s, WAIT_S) if self.gateway.closing.is_set() else wait_s


Handler: TypeAlias = Callable[[Call[Any, Any]], Awaitable["Struct | Answer | Stream | None"]]


class Route:
    """A row of the table: everything that is the same for all requests of a method and path.

    Args:
        method: of the request; ``WEBSOCKET`` for the handshake of one.
        path: without the prefix. Parts in braces are variable: ``{name}`` is any segment, ``{name:id}`` a valid id,
            ``{name:path}`` the rest of the path.
        handle: the handler; the first line of its docstring is the summary of the route.
        body: the Struct of the body; None: the body is not read. An empty body is decoded as ``{}``.
        query: the Struct of the query; None: the query is ignored.
        answer: the Struct of a successful response; None: it is not JSON, or there is none.
        role: the least role that may call it; None: everyone.
        own: the variable of the path, or the field of the body as ``body.sender_id``, that an agent's credential may
            only name itself in.
        errors: the codes of the errors that are this route's own.
        example: a body; without a body, a query.
        limited: whether the general limit of the rate of requests counts its calls.
        counted: whether ``gateway_requests`` counts its calls; not those that stay open.
    """

    __slots__ = (
        "answer",
        "body",
        "counted",
        "errors",
        "example",
        "handle",
        "limited",
        "method",
        "own",
        "path",
        "query",
        "role",
    )

    def __init__(
        self,
        method: Method,
        path: str,
        handle: Handler,
        *,
        answer: type[Struct] | None,
        role: Role | None,
        body: type[Struct] | None = None,
        query: type[Struct] | None = None,
        own: str | None = None,
        errors: tuple[str, ...] = (),
        example: Mapping[str, Any] | None = None,
        limited: bool = True,
        counted: bool = True,
    ) -> None:
        self.method = method
        self.path = path
        self.handle = handle
        self.body = body
        self.query = query
        self.answer = answer
        self.role = role
        self.own = own
        self.errors = errors
        self.example = example
        self.limited = limited
        self.counted = counted

    @property
    def plain_path(self) -> str:
        """The path as OpenAPI writes it: variable parts without their kinds."""
        return _KIND.sub("", self.path)

    def __repr__(self) -> str:
        """Return the method and the path."""
        return f"Route({self.method} {self.path})"


def written(call: Call[Any, Any], body: Struct, *, answered: bool, path: str) -> Struct | Answer:
    """Return the response to a write: 200 if its worker has answered, else 202 with the path of the record in Location.

    A caller that does not wait gets 202 also if the worker was quick.

    Args:
        call: the request.
        body: of the response; it has the fields ``status`` and ``message``.
        answered: whether the worker has answered.
        path: of the record, without the prefix.
    """
    if answered and call.wait_s > 0:
        return body
    accepted = replace(body, status="accepted", message="Accepted; no worker has answered yet")
    return Answer(accepted, 202, {"Location": call.prefix + path})
