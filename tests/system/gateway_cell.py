"""A cell at work with a gateway, in a thread of their own, for all tests of one file."""

from __future__ import annotations

import asyncio
import http.client
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from msgspec.structs import replace

from coord.config import Settings
from coord.gateway.server import serve
from tests.http import HttpAnswer
from tests.ports import unused_port
from tests.system.live_cell import LiveCell, live_cell

#: A machine with much else to do is slow.
START_S = 60.0
JSON = {"Content-Type": "application/json"}


class Gateway:
    """Calls the gateway of a cell.

    Attributes:
        cell: the cell.
        port: of the gateway.
    """

    def __init__(self, cell: LiveCell, port: int) -> None:
        self.cell = cell
        self.port = port
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def call(self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None) -> HttpAnswer:
        """Send a request; a body that is bytes is sent as it is, anything else but None as JSON."""
        data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
        self._connection.request(method, path, data, ({} if data is None else JSON) | dict(headers or {}))
        answer = self._connection.getresponse()
        raw = answer.read()
        is_json = (answer.getheader("content-type") or "").startswith("application/json")
        found = json.loads(raw) if is_json and raw else raw.decode()
        return HttpAnswer(answer.status, {name.lower(): value for name, value in answer.getheaders()}, found)

    def success(self, method: str, path: str, body: Any = None) -> Any:
        """Send a request; return the body of its response, which is 200."""
        answer = self.call(method, path, body)
        assert answer.status == 200, answer.body
        return answer.body

    def is_healthy(self) -> bool:
        """Return True if the gateway has found Redis and a worker of each kind."""
        try:
            return self.call("GET", "/health").status == 200
        except OSError:
            self._connection.close()
            return False

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


@contextmanager
def gateway_of(cell: LiveCell, port: int | None = None, **more: Any) -> Iterator[Gateway]:
    """A gateway of a cell, in the thread of the cell.

    Args:
        cell: the cell.
        port: of the gateway; None: an unused one.
        more: settings of this gateway only.
    """
    port = port or unused_port()
    settings = replace(cell.settings, redis_url=cell.url, gateway_port=port, **more)
    requested = asyncio.Event()
    serving = asyncio.run_coroutine_threadsafe(serve(settings, requested, asyncio.Event()), cell.loop)
    gateway = Gateway(cell, port)
    try:
        deadline = time.monotonic() + START_S
        while not gateway.is_healthy():
            assert not serving.done(), serving.exception()
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield gateway
    finally:
        gateway.close()
        cell.loop.call_soon_threadsafe(requested.set)
        serving.result(START_S)


@contextmanager
def gateway_cell(url: str, namespace: str, **more: Any) -> Iterator[Gateway]:
    """A cell with one worker of each kind, one agent of the SDK, and a gateway."""
    settings = Settings(namespace=namespace, gateway_wait_s=20, gateway_redis_s=20, **more)
    with live_cell(url, settings) as cell, gateway_of(cell) as gateway:
        yield gateway
