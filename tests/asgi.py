"""Calls an ASGI app directly: any address of the caller, any header, and streams that the caller leaves."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, MutableMapping
from typing import Any, NamedTuple

#: An address of documentation (RFC 5737).
ADDRESS = "192.0.2.1"


class AsgiAnswer(NamedTuple):
    """What came back."""

    status: int
    headers: dict[str, str]  #: names in lower case
    data: bytes

    @property
    def body(self) -> Any:
        """The JSON."""
        return json.loads(self.data)

    @property
    def code(self) -> str:
        """The code of an error; the status of anything else."""
        return str(self.body.get("code", self.body["status"])) if self.data else ""


async def ask(
    app: Any,
    method: str,
    path: str,
    body: Any = None,
    headers: Mapping[str, str] | None = None,
    *,
    query: str = "",
    address: str = ADDRESS,
    scheme: str = "http",
) -> AsgiAnswer:
    """Send one request, or the handshake of a WebSocket (``WEBSOCKET``), and leave once it is answered.

    Args:
        app: the app.
        method: of the request.
        path: its path.
        body: sent as JSON; None: nothing is sent.
        headers: beside Host and Content-Type.
        query: without the question mark.
        address: of the caller.
        scheme: http or https.
    """
    data = b"" if body is None else json.dumps(body).encode()
    named = {"host": "localhost:9001"} | ({"content-type": "application/json"} if data else {}) | dict(headers or {})
    scope: MutableMapping[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": scheme,
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "headers": [(name.lower().encode(), value.encode()) for name, value in named.items()],
        "client": (address, 50_000),
        "server": ("127.0.0.1", 9001),
    }
    if method == "WEBSOCKET":
        scope.update(type="websocket", scheme="ws", subprotocols=[])
        scope["extensions"] = {"websocket.http.response": {}}
        del scope["method"]
    answered = asyncio.Event()
    events: list[Any] = []
    first = {"type": "websocket.connect"} if method == "WEBSOCKET" else {"type": "http.request", "body": data}
    waiting: list[Any] = [first]

    async def receive() -> Any:
        if waiting:
            return waiting.pop()
        await answered.wait()
        return {"type": "websocket.disconnect", "code": 1005} if method == "WEBSOCKET" else {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        events.append(event)
        if event["type"] in {"websocket.accept", "websocket.close"} or event["type"].endswith("response.body"):
            answered.set()

    await app(scope, receive, send)
    start = next((one for one in events if one["type"].endswith("response.start")), None)
    if start is None:
        return AsgiAnswer(101 if any(one["type"] == "websocket.accept" for one in events) else 0, {}, b"")
    found = {name.decode(): value.decode() for name, value in start["headers"]}
    return AsgiAnswer(start["status"], found, b"".join(one.get("body", b"") for one in events))
