"""A real HTTP client for tests: one request, from a thread, so that the test's own loop goes on."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from email.message import Message
from typing import Any, NamedTuple


class HttpAnswer(NamedTuple):
    """What came back; status 0: nothing did."""

    status: int
    headers: Mapping[str, str]  #: names in lower case
    body: Any


class HttpCaller:
    """Calls one gateway on this machine."""

    def __init__(self, port: int) -> None:
        self.port = port

    async def get(self, path: str, **headers: str) -> HttpAnswer:
        """GET; underscores in the names of headers are hyphens."""
        return await asyncio.to_thread(self._call, "GET", path, None, headers)

    async def text(self, path: str, **headers: str) -> HttpAnswer:
        """GET what is not JSON: its body is text."""
        return await asyncio.to_thread(self._call, "GET", path, None, headers, bytes.decode)

    async def post(self, path: str, body: Any = None, **headers: str) -> HttpAnswer:
        """POST this as JSON, or nothing."""
        data = None if body is None else json.dumps(body).encode()
        return await asyncio.to_thread(self._call, "POST", path, data, {"Content-Type": "application/json"} | headers)

    async def put(self, path: str, body: Any = None, **headers: str) -> HttpAnswer:
        """PUT this as JSON, or nothing."""
        data = None if body is None else json.dumps(body).encode()
        return await asyncio.to_thread(self._call, "PUT", path, data, {"Content-Type": "application/json"} | headers)

    async def delete(self, path: str, **headers: str) -> HttpAnswer:
        """DELETE."""
        return await asyncio.to_thread(self._call, "DELETE", path, None, headers)

    async def is_up(self) -> bool:
        """Whether the process answers."""
        return (await self.get("/health/live")).status == 200

    async def is_ready(self) -> bool:
        """Whether it has found Redis."""
        return (await self.get("/health/ready")).status == 200

    async def is_healthy(self) -> bool:
        """Whether Redis and all workers are there."""
        return (await self.get("/health")).status == 200

    def _call(
        self,
        method: str,
        path: str,
        data: bytes | None,
        headers: Mapping[str, str],
        read: Callable[[bytes], Any] = json.loads,
    ) -> HttpAnswer:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        url = f"http://127.0.0.1:{self.port}{path}"
        request = urllib.request.Request(url, data=data, headers=named, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310 -- the same
                return HttpAnswer(answer.status, _lower(answer.headers), read(answer.read()))
        except urllib.error.HTTPError as error:
            with error:
                return HttpAnswer(error.code, _lower(error.headers), json.loads(error.read()))
        except OSError:
            return HttpAnswer(0, {}, None)


def _lower(headers: Message) -> dict[str, str]:
    return {name.lower(): str(value) for name, value in headers.items()}
