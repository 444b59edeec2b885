"""HTTP of one connection: bounds of heads in size and time, idle connections, and what happens at shutdown."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from coord.config import Settings
from coord.gateway.app import make_app
from coord.gateway.backend import Backend
from coord.gateway.protocol import HEAD_BYTES, HEAD_S, HEADERS, IDLE_S, Protocol
from tests.waiting import wait_until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


class Host:
    """Connections of a gateway that never finds Redis."""

    def __init__(self, settings: Settings) -> None:
        self.state = ServerState()
        self.connections: list[Protocol] = []
        self._config = uvicorn.Config(
            make_app(Backend(settings), settings), lifespan="off", access_log=False, ws="none"
        )

    def protocol(self) -> Protocol:
        """Return the protocol of a new connection."""
        made = Protocol(config=self._config, server_state=self.state, app_state={})
        self.connections.append(made)
        return made


class Link:
    """The other end of one connection."""

    def __init__(self, protocol: Protocol, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.protocol = protocol
        self._reader = reader
        self._writer = writer

    async def send(self, data: bytes) -> None:
        """Send these bytes; the gateway may have closed the connection."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except ConnectionError:
            pass

    async def answer(self) -> tuple[bytes, dict[bytes, bytes], Any]:
        """Return the status line, the headers and the body of the next response."""
        head = await asyncio.wait_for(self._reader.readuntil(b"\r\n\r\n"), 20)
        status, _, lines = head.partition(b"\r\n")
        headers = dict(line.split(b": ", 1) for line in lines.splitlines() if line)
        body = await self._reader.readexactly(int(headers[b"content-length"]))
        return status + b"\r\n", headers, json.loads(body)

    async def is_closed(self) -> bool:
        """Return True once the gateway has closed the connection, with nothing more to read."""
        return await asyncio.wait_for(self._reader.read(), 20) == b""

    def close(self) -> None:
        """Close it."""
        self._writer.close()


@pytest.fixture
async def link(settings: Settings) -> AsyncIterator[Link]:
    """A connection."""
    host = Host(settings)
    server = await asyncio.get_running_loop().create_server(host.protocol, "127.0.0.1", 0)
    reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
    await wait_until(lambda: bool(host.state.connections), "the connection is accepted")
    opened = Link(host.connections[0], reader, writer)
    yield opened
    opened.close()
    server.close()
    await wait_until(lambda: not host.state.connections, "the connection is closed")


def later(seconds: float) -> float:
    """Return a time on the clock of the loop."""
    return asyncio.get_running_loop().time() + seconds


@pytest.mark.parametrize(
    "head",
    [
        b"GET / HTTP/1.1\r\nX: " + b"x" * HEAD_BYTES + b"\r\n\r\n",
        b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * HEAD_BYTES,
        b"GET /" + b"x" * HEAD_BYTES + b" HTTP/1.1\r\n\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * (HEADERS + 1) + b"\r\n",
        b"GET / HTTP/1.1\r\n" + b"X: x\r\n" * HEAD_BYTES,
    ],
    ids=["a header", "a header without end", "a path", "many headers", "headers without end"],
)
async def test_a_large_head_is_refused(link: Link, head: bytes) -> None:
    """With the body of every error; the connection ends."""
    await link.send(head)
    status, headers, body = await link.answer()
    assert (status, body["code"], body["status"]) == (TOO_LARGE, "head_too_large", "error")
    assert headers[b"connection"] == b"close"


async def test_a_head_in_small_pieces_has_the_same_limit(link: Link) -> None:
    """Also one that began after a request was answered."""
    await link.send(LIVE)
    assert (await link.answer())[0].startswith(b"HTTP/1.1 200")
    await link.send(b"GET / HTTP/1.1\r\n")
    for _ in range(HEAD_BYTES // 1_000 + 1):
        await link.send(b"X: " + b"x" * 1_000 + b"\r\n")
    assert (await link.answer())[0] == TOO_LARGE


async def test_a_head_up_to_the_limit_is_served(link: Link) -> None:
    """The limit refuses nothing that fits."""
    await link.send(LIVE[:-2] + b"X: " + b"x" * (HEAD_BYTES - 1_000) + b"\r\n\r\n")
    assert (await link.answer())[0].startswith(b"HTTP/1.1 200")


async def test_trailers_have_the_same_limit(link: Link) -> None:
    """After a body, they are no way to fill the memory."""
    head = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    await link.send(head + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n")
    await wait_until(lambda: bool(link.protocol.cycle), "the request has begun")
    for _ in range(2 * HEAD_BYTES // 1_000):
        await link.send(b"X: " + b"x" * 1_000 + b"\r\n")
    assert (await link.answer())[0] == TOO_LARGE


async def test_a_slow_head_is_refused(link: Link) -> None:
    """At its limit of time, and not before."""
    await link.send(LIVE[:20])
    await wait_until(lambda: link.protocol._in_head, "the head has begun")
    link.protocol.sweep(later(HEAD_S / 2))
    assert not link.protocol.transport.is_closing()
    link.protocol.sweep(later(HEAD_S + 1))
    status, _, body = await link.answer()
    assert (status, body["code"]) == (b"HTTP/1.1 408 Request Timeout\r\n", "head_timeout")


async def test_an_idle_connection_is_closed(link: Link) -> None:
    """After its last response, and not while it is served."""
    await link.send(LIVE)
    await link.answer()
    link.protocol.sweep(later(IDLE_S / 2))
    assert not link.protocol.transport.is_closing()
    link.protocol.sweep(later(IDLE_S + 1))
    assert await link.is_closed()


async def test_at_shutdown_a_request_on_its_way_is_the_last(link: Link) -> None:
    """A connection that is open is not closed under it; its response says that the connection ends."""
    await link.send(LIVE)
    assert b"connection" not in (await link.answer())[1]
    link.protocol.shutdown()
    await link.send(LIVE)
    status, headers, _ = await link.answer()
    assert (status, headers[b"connection"]) == (b"HTTP/1.1 200 OK\r\n", b"close")
    assert await link.is_closed()


async def test_requests_that_came_together_are_all_answered(link: Link) -> None:
    """In order, and at shutdown the last one closes the connection."""
    link.protocol.shutdown()
    await link.send(LIVE.replace(b"live", b"nope") + LIVE)
    statuses = [(await link.answer())[0].split()[1] for _ in range(2)]
    assert statuses == [b"404", b"200"]
    assert await link.is_closed()


async def test_a_response_to_head_has_no_body(link: Link) -> None:
    """And the connection stays in step."""
    await link.send(LIVE.replace(b"GET", b"HEAD"))
    head = await asyncio.wait_for(link._reader.readuntil(b"\r\n\r\n"), 20)
    assert head.startswith(b"HTTP/1.1 200")
    await link.send(LIVE)
    assert (await link.answer())[2]["status"] == "healthy"
