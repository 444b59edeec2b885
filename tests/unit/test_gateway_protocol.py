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
from coord.gateway.draining import HEAD_S
from coord.gateway.protocol import (
    DRAINED_STREAM_S,
    HEAD_BYTES,
    HEADERS,
    IDLE_S,
    PIPELINED,
    READ_BYTES,
    READ_S,
    RESPOND,
    Protocol,
)
from tests.waiting import wait_until

LIVE = b"GET /health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
TOO_LARGE = b"HTTP/1.1 431 Request Header Fields Too Large\r\n"


class Host:
    """Connections of an app."""

    def __init__(self, app: Any) -> None:
        self.state = ServerState()
        self.connections: list[Protocol] = []
        self._config = uvicorn.Config(app, lifespan="off", access_log=False, ws="websockets-sansio")

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


class HeldApp:
    """Responds to /held and /slow once it may; to /large with much; to /stream with a stream."""

    def __init__(self) -> None:
        self.may_respond = asyncio.Event()
        self.began: list[str] = []
        self.ended: list[str] = []  #: with the last event that they received

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Respond to a request."""
        path = scope["path"]
        self.began.append(path)
        if path == "/held":
            responding = asyncio.create_task(self.may_respond.wait())
            receiving = asyncio.create_task(_disconnected(receive))
            await asyncio.wait({responding, receiving}, return_when=asyncio.FIRST_COMPLETED)
            self.ended.append("gone" if receiving.done() else "answered")
            receiving.cancel()
            responding.cancel()
        if path == "/slow":
            await self.may_respond.wait()
        if path == "/stream":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for _ in range(24):
                await send({"type": "http.response.body", "body": b"x" * 1024 * 1024, "more_body": True})
            return
        body = json.dumps({"path": path, "more": "x" * (24 * 1024 * 1024 if path == "/large" else 0)}).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        if not scope[RESPOND](200, headers, body):
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})


async def _disconnected(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


@pytest.fixture
async def link(settings: Settings) -> AsyncIterator[Link]:
    """A connection to a gateway that never finds Redis."""
    async for opened in _link(make_app(Backend(settings), settings)):
        yield opened


@pytest.fixture
def held() -> HeldApp:
    """An app that responds when the test lets it."""
    return HeldApp()


@pytest.fixture
async def held_link(held: HeldApp) -> AsyncIterator[Link]:
    """A connection to it."""
    async for opened in _link(held):
        yield opened


async def _link(app: Any) -> AsyncIterator[Link]:
    host = Host(app)
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
    link.protocol.sweep(later(HEAD_S / 2), IDLE_S)
    assert not link.protocol.transport.is_closing()
    link.protocol.sweep(later(HEAD_S + 1), IDLE_S)
    status, _, body = await link.answer()
    assert (status, body["code"]) == (b"HTTP/1.1 408 Request Timeout\r\n", "head_timeout")


async def test_an_idle_connection_is_closed(link: Link) -> None:
    """After its last response, and not while it is served."""
    await link.send(LIVE)
    await link.answer()
    link.protocol.sweep(later(IDLE_S / 2), IDLE_S)
    assert not link.protocol.transport.is_closing()
    link.protocol.sweep(later(IDLE_S + 1), IDLE_S)
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


def get(path: str, headers: bytes = b"") -> bytes:
    """Return a GET request."""
    return b"GET %b HTTP/1.1\r\nHost: localhost\r\n%b\r\n" % (path.encode(), headers)


UPGRADE = (
    b"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)


@pytest.mark.parametrize(
    ("second", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (get("/held")[:-2] + b"X: " + b"x" * HEAD_BYTES + b"\r\n\r\n", b"431"),
        (b"POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nnonsense\r\n", b"400"),
        (get("/held", UPGRADE), b"400"),
        (get("/held") * (PIPELINED + 1), b"503"),
    ],
    ids=["no HTTP", "a large head", "a broken body", "a WebSocket", "too many"],
)
async def test_an_invalid_request_hides_no_earlier_response(
    held_link: Link, held: HeldApp, second: bytes, status: bytes
) -> None:
    """The response to the request before it is whole, then it is refused, then the connection ends."""
    await held_link.send(get("/held"))
    await wait_until(lambda: held.began == ["/held"], "the first request is at work")
    await held_link.send(second)
    await wait_until(lambda: held_link.protocol._is_refused, "the second request is refused")
    held_link.protocol.sweep(later(HEAD_S), IDLE_S)
    held.may_respond.set()
    answers = [await held_link.answer() for _ in range(1 + second.count(get("/held")[:-2]) * (status == b"503"))]
    assert answers[0][0].startswith(b"HTTP/1.1 200")
    assert answers[0][2]["path"] == "/held"
    refused = await held_link.answer() if status != b"503" else answers[-1]
    assert refused[0].split()[1] == status
    assert refused[1][b"connection"] == b"close"
    assert (b"retry-after" in refused[1]) == (status == b"503")
    assert await held_link.is_closed()


async def test_a_body_that_breaks_after_its_response_gets_no_second_one(held_link: Link) -> None:
    """It would be taken for the response to the next request."""
    await held_link.send(b"POST /a HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n")
    assert (await held_link.answer())[0].startswith(b"HTTP/1.1 200")
    await held_link.send(b"nonsense\r\n")
    assert await held_link.is_closed()


async def test_the_request_at_work_learns_that_its_connection_is_lost(held_link: Link, held: HeldApp) -> None:
    """Also if another request waits behind it, which is not begun then."""
    await held_link.send(get("/held"))
    await wait_until(lambda: held.began == ["/held"], "the first request is at work")
    await held_link.send(get("/held"))
    await wait_until(lambda: bool(held_link.protocol.pipeline), "the second request waits")
    held_link.protocol.transport.abort()
    await wait_until(lambda: held.ended == ["gone"], "the first request has ended")
    assert held.began == ["/held"]


async def test_a_caller_that_does_not_read_is_cut_off(held_link: Link, held: HeldApp) -> None:
    """The request that waits for it ends; before the limit of time it goes on."""
    await held_link.send(get("/large") + get("/after"))
    await wait_until(lambda: held.began == ["/large", "/after"], "the second request is at work")
    assert held_link.protocol.flow.write_paused
    held_link.protocol.sweep(later(READ_S / 2), IDLE_S)
    assert not held_link.protocol.transport.is_closing()
    held_link.protocol.sweep(later(READ_S + 1), IDLE_S)
    await wait_until(lambda: not held_link.protocol.tasks, "the second request has ended")


async def test_a_caller_that_reads_slowly_gets_everything(held_link: Link) -> None:
    """As long as it reads a minimum in each interval."""
    await held_link.send(get("/large"))
    await wait_until(lambda: held_link.protocol.flow.write_paused, "the caller has much to read")
    transport = held_link.protocol.transport
    for interval in range(1, 4):
        unsent = transport.get_write_buffer_size()
        while transport.get_write_buffer_size() > unsent - READ_BYTES:
            await held_link._reader.readexactly(64 * 1024)
        held_link.protocol.sweep(later(interval * (READ_S + 1)), IDLE_S)
        assert not transport.is_closing()


async def test_a_stream_has_its_own_limit_until_the_shutdown(held_link: Link) -> None:
    """Its hub knows what a listener has taken; a shutdown does not wait for it."""
    await held_link.send(get("/stream"))
    await wait_until(lambda: held_link.protocol.flow.write_paused, "the caller has much to read")
    held_link.protocol.sweep(later(READ_S + 1), IDLE_S)
    assert not held_link.protocol.transport.is_closing()
    held_link.protocol.shutdown()
    held_link.protocol.sweep(later(DRAINED_STREAM_S + 1), IDLE_S)
    await wait_until(lambda: not held_link.protocol.tasks, "the stream has ended")


POST = b"POST /tasks/submit HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


async def test_a_caller_that_sends_no_more_gets_its_response(held_link: Link, held: HeldApp) -> None:
    """A half-closed socket is not a caller that has gone, unless the request waits for its end."""
    await held_link.send(get("/slow"))
    held_link._writer.write_eof()
    await wait_until(lambda: held.began == ["/slow"], "the request is at work")
    held.may_respond.set()
    assert (await held_link.answer())[1][b"connection"] == b"close"
    assert await held_link.is_closed()


async def test_a_request_that_waits_ends_with_its_half_closed_socket(held_link: Link, held: HeldApp) -> None:
    """A poll cannot tell it from a caller that has gone."""
    await held_link.send(get("/held"))
    await wait_until(lambda: held.began == ["/held"], "the request waits")
    held_link._writer.write_eof()
    await wait_until(lambda: held.ended == ["gone"], "the request has ended")


async def test_an_unknown_upgrade_is_ignored(link: Link) -> None:
    """As RFC 9110 allows. The parser reads nothing after it, so the connection ends and hides no request."""
    await link.send(get("/health/live", b"Connection: Upgrade\r\nUpgrade: h2c\r\n") + LIVE)
    status, headers, _ = await link.answer()
    assert (status, headers[b"connection"]) == (b"HTTP/1.1 200 OK\r\n", b"close")
    assert await link.is_closed()


@pytest.mark.parametrize("length", [b"Content-Length: 2\r\n\r\n{}", b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n"])
async def test_a_body_after_an_unknown_upgrade_is_refused(link: Link, length: bytes) -> None:
    """It would be taken for an empty one."""
    await link.send(POST + b"Connection: Upgrade\r\nUpgrade: h2c\r\n" + length)
    status, _, body = await link.answer()
    assert (status, body["code"]) == (b"HTTP/1.1 400 Bad Request\r\n", "request_invalid")
    assert "Upgrade" in body["detail"]


async def test_a_handshake_is_a_get(link: Link) -> None:
    """Another method is a request without a WebSocket, and is answered."""
    await link.send(b"POST /ws HTTP/1.1\r\nHost: localhost\r\n" + UPGRADE + b"\r\n")
    status, _, body = await link.answer()
    assert (status, body["code"]) == (b"HTTP/1.1 405 Method Not Allowed\r\n", "method_not_allowed")


async def test_two_host_headers_are_refused(link: Link) -> None:
    """A proxy and the gateway might each believe another one."""
    await link.send(get("/registry/stats", b"Host: evil.example\r\nHost: localhost\r\n"))
    status, _, body = await link.answer()
    assert (status, body["code"]) == (b"HTTP/1.1 400 Bad Request\r\n", "request_invalid")


@pytest.mark.parametrize(
    ("sent", "statuses"),
    [
        (get("http://localhost/health/live"), [200]),
        (b"GET /agents/\xff\xfe HTTP/1.1\r\nHost: localhost\r\n\r\n", [400]),
        (get("/agents/%ff"), [404]),
        (POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}", [400]),
        (POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", [400]),
        (POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\nX: y\r\nHost: evil\r\n\r\n" + LIVE, [422, 200]),
        (POST.replace(b"/tasks/submit", b"/nope") + b"Expect: 100-continue\r\nContent-Length: 2\r\n\r\n", [404]),
        (b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n", [404]),
        (get("/health/live", b"Content-Length : 3\r\n"), [400]),
        (get("/health/live", b"X: a\x00b\r\n"), [400]),
    ],
    ids=[
        "absolute form", "8-bit path", "8-bit escape", "two lengths", "a length and chunks", "trailers", "expect",
        "options of all", "a space in a name", "a NUL",
    ],
)  # fmt: skip
async def test_odd_requests_get_one_response_each(link: Link, sent: bytes, statuses: list[int]) -> None:
    """With the body of every error."""
    await link.send(sent)
    for wanted in statuses:
        status, _, body = await link.answer()
        assert int(status.split()[1]) == wanted
        assert wanted == 200 or body["code"]
