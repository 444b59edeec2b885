"""A span of the server for each HTTP request, where tracing is on; its ``traceparent`` replaces that of the request."""

from __future__ import annotations

from coord import spans
from coord.api_key import redacted
from coord.errors import CoordError
from coord.gateway.app import GatewayApp
from coord.gateway.protocol import RESPOND
from coord.gateway.router import Router
from coord.gateway.routes import PREFIX, Event, Receive, Scope, Send
from coord.gateway.table import ROUTES
from coord.models.tracing import is_traceparent

_HEADER = b"traceparent"


class TracedApp:
    """The ASGI app around that of the gateway.

    Args:
        app: the gateway's.
    """

    def __init__(self, app: GatewayApp) -> None:
        self._app = app
        self._router = Router(ROUTES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request within a span; its name is the method and the path of the route."""
        recorder = spans.recorder
        if recorder is None or scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = dict(scope["headers"])
        parent = headers.get(_HEADER, b"").decode("latin-1")
        method, path = scope["method"], scope["path"]
        attributes: spans.Attributes = {"http.request.method": method, "url.path": redacted(path)}
        name, attributes = self._named(method, path, attributes)
        with recorder.span(name, parent if is_traceparent(parent) else None, "server", attributes) as span:
            if span.traceparent is not None:
                headers[_HEADER] = span.traceparent.encode()

            async def sent(event: Event) -> None:
                if event["type"] == "http.response.start":
                    _describe(span, event["status"])
                await send(event)

            inner = {**scope, "headers": list(headers.items())}
            respond = scope.get(RESPOND)
            if respond is not None:

                def responded(status: int, head: list[tuple[bytes, bytes]], body: bytes) -> bool:
                    if not respond(status, head, body):
                        return False  # it is sent as events
                    _describe(span, status)
                    return True

                inner[RESPOND] = responded
            await self._app(inner, receive, sent)

    def _named(self, method: str, path: str, attributes: spans.Attributes) -> tuple[str, spans.Attributes]:
        """Return the name of a request, of which there are few, and its attributes."""
        plain = path.removeprefix(PREFIX) if path.startswith(f"{PREFIX}/") else path
        try:
            route, _ = self._router.find(method, plain.rstrip("/") or "/")
        except CoordError:
            return method, attributes
        return f"{method} {route.path}", attributes | {"http.route": route.path}


def _describe(span: spans.Span, status: int) -> None:
    """Give a span the status of the response."""
    span.describe(None, **{"http.response.status_code": status})
    if status >= 500:
        span.fail(str(status))
