"""A gateway that shuts down answers every request that it has accepted: whole, and truthfully."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, NamedTuple

import pytest
from msgspec.structs import replace
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from coord.config import Settings
from coord.gateway import server as gateway_server
from coord.gateway.draining import process_limit_s, request_limit_s
from coord.gateway.server import serve
from coord.gateway.socket_protocol import SHUTDOWN
from tests.http import HttpCaller
from tests.ports import unused_port
from tests.running import RunningCell
from tests.waiting import wait_until

#: A wait for a worker that no test waits for.
LONG_S = 600.0


class Response(NamedTuple):
    """A whole response."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body, decoded."""
        return json.loads(self.body)


class Served:
    """A gateway in this process, and requests of it that are in flight.

    Attributes:
        requested: set it for a graceful shutdown.
        running: the gateway.
    """

    def __init__(self, cell: RunningCell) -> None:
        self.http = HttpCaller(unused_port())
        self.requested = asyncio.Event()
        settings = replace(
            cell.settings,
            redis_url=cell.url,
            gateway_port=self.http.port,
            gateway_wait_s=LONG_S,
            gateway_redis_s=30,
        )
        self.running = asyncio.create_task(serve(settings, self.requested, asyncio.Event()))

    async def opened(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Connect."""
        return await asyncio.open_connection("127.0.0.1", self.http.port)

    async def request(self, method: str, path: str, body: Any = None) -> Response:
        """Send a request, and read its response until the connection ends."""
        reader, writer = await self.opened()
        data = b"" if body is None else json.dumps(body).encode()
        writer.write(head(method, path, len(data)) + data)
        return await self.response(reader, writer)

    async def response(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Response:
        """Read a response until the connection ends."""
        raw = await asyncio.wait_for(reader.read(), 60)
        writer.close()
        lines, _, body = raw.partition(b"\r\n\r\n")
        status, *headers = lines.decode().split("\r\n")
        named = dict(line.lower().split(": ", 1) for line in headers)
        assert len(body) == int(named.get("content-length", len(body)))
        return Response(int(status.split()[1]), named, body)


def head(method: str, path: str, size: int) -> bytes:
    """Return the head of a request with a body of this size."""
    lines = (f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {size}")
    return "\r\n".join((*lines, "Content-Type: application/json", "", "")).encode()


@pytest.fixture
async def served(cell: RunningCell) -> AsyncIterator[Served]:
    """A gateway whose writes wait for long, in a cell at work."""
    served = Served(cell)
    await wait_until(served.http.is_ready, "the gateway has found Redis", 60)
    yield served
    served.requested.set()
    await asyncio.wait_for(served.running, 60)


WRITES: dict[str, tuple[str, str, Any]] = {
    "submit": ("POST", "/tasks/submit", {"task_data": {"task_id": "t1"}}),
    "batch": ("POST", "/tasks/batch", {"tasks": [{"task_data": {"task_id": "t2"}}, {"task_data": {"task_id": "t3"}}]}),
    "cancel": ("POST", "/tasks/t4/cancel", {}),
    "retry": ("POST", "/tasks/t4/retry", None),
    "register": ("POST", "/agents/register", {"agent_id": "a2", "agent_type": "worker"}),
    "status": ("PUT", "/agents/a1/status", {"status": "busy"}),
    "send": ("POST", "/messages/send", {"receiver_id": "a1", "message_type": "direct", "payload": {}}),
    "broadcast": ("POST", "/messages/broadcast", {"message_type": "status_update", "payload": {}}),
    "peers": ("POST", "/peers/add?agent_id=a1&peer_id=a2", None),
    "rules": ("PUT", "/load-balancer/strategy?strategy=random", None),
    "clear": ("POST", "/tasks/queues/low/clear", None),
}


async def test_requests_in_flight_get_whole_responses(cell: RunningCell, served: Served) -> None:
    """A write: 202 with its id; a poll: an empty page; a stream: its end; a frame: its answer, then the close code."""
    registered = {"agent_id": "a1", "agent_type": "worker", "capabilities": ["x"], "heartbeat_interval": 3600}
    assert (await served.http.post("/agents/register", registered)).status == 200
    low = {"task_data": {"task_id": "low", "required_capabilities": ["none"]}, "priority": "low"}
    assert (await served.http.post("/tasks/submit", low)).status == 200
    poll = asyncio.create_task(served.request("GET", "/agents/a1/inbox?wait=60"))
    stream = asyncio.create_task(served.request("GET", "/events"))
    socket = await connect(f"ws://127.0.0.1:{served.http.port}/ws")

    async def is_polled() -> bool:
        return bool(await cell.redis.hget(cell.keys.agent("a1"), "polled_obs"))

    await wait_until(is_polled, "the poll waits")
    for worker in cell.workers:
        await worker.stop()
    writes = {name: asyncio.create_task(served.request(*request)) for name, request in WRITES.items()}
    await socket.send(json.dumps({"id": 1, "heartbeat": {"agent_id": "a1"}}))
    await socket.send(json.dumps({"id": 2, "heartbeat": {"agent_id": "a1"}}))

    async def all_wait() -> bool:
        # The streams in which the writes and the frame wait, with the number of their entries at least.
        streams = {"tasks:normal": 1, "registry": 1, "messages:normal": 2, "beats": 1}
        control = {"control:router": 1, "control:distributor": 3}
        return all([await cell.redis.xlen(cell.keys.of(f"in:{one}")) >= n for one, n in (streams | control).items()])

    await wait_until(all_wait, "the writes wait for workers")
    served.requested.set()
    answers = {name: await writing for name, writing in writes.items()}
    assert {name: answer.status for name, answer in answers.items()} == {
        **dict.fromkeys(WRITES, 202),
        "batch": 200,
    }, answers
    assert {answer.headers["connection"] for answer in answers.values()} == {"close"}
    assert answers["submit"].json["task_id"] == "t1"
    assert [one["status"] for one in answers["batch"].json["results"]] == ["accepted", "accepted"]
    assert (await poll).json["entries"] == []
    ended = await stream
    assert (ended.status, ended.body[-5:]) == (200, b"0\r\n\r\n")
    assert json.loads(await socket.recv()) | {"answer": None} == {"id": 1, "ok": True, "answer": None}
    with pytest.raises(ConnectionClosed):
        await socket.recv()
    assert socket.close_code == SHUTDOWN
    await asyncio.wait_for(served.running, 60)


async def test_a_body_that_arrives_during_the_shutdown_counts(cell: RunningCell, served: Served) -> None:
    """The request has been accepted: it is not cut off, although connections that idle are closed."""
    body = json.dumps({"task_data": {"task_id": "slow"}}).encode()
    reader, writer = await served.opened()
    writer.write(head("POST", "/tasks/submit", len(body)) + body[:10])
    idle, idle_writer = await served.opened()
    served.requested.set()
    assert await asyncio.wait_for(idle.read(), 60) == b"", "a connection without a request is closed"
    idle_writer.close()
    writer.write(body[10:])
    answer = await served.response(reader, writer)
    assert (answer.status, answer.json["task_id"]) == (200, "slow")
    await asyncio.wait_for(served.running, 60)


async def test_a_request_beyond_the_limit_says_so(
    cell: RunningCell, served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The body of it never comes: 503, and not 500."""
    monkeypatch.setattr(gateway_server, "request_limit_s", lambda _settings: 0.5)
    reader, writer = await served.opened()
    writer.write(head("POST", "/tasks/submit", 100))
    await wait_until(served.http.is_up, "the gateway has read the head")
    served.requested.set()
    answer = await served.response(reader, writer)
    assert (answer.status, answer.json["code"]) == (503, "overloaded")
    assert "may have been written" in answer.json["detail"]


def test_the_limit_of_a_shutdown_follows_from_the_settings() -> None:
    """It leaves time for the slowest body and for Redis; ``coord up`` waits longer than that."""
    settings = Settings()
    slow = replace(settings, gateway_body_s=settings.gateway_body_s + 100)
    assert request_limit_s(settings) > settings.gateway_body_s + settings.gateway_redis_s
    assert request_limit_s(slow) == request_limit_s(settings) + 100
    assert request_limit_s(replace(settings, gateway_redis_s=60)) > request_limit_s(settings)
    assert request_limit_s(replace(settings, gateway_wait_s=LONG_S)) == request_limit_s(settings), "waits end early"
    assert process_limit_s(slow) > request_limit_s(slow)


async def test_a_caller_that_ignores_the_end_of_its_socket_is_cut_off(served: Served) -> None:
    """A WebSocket whose caller neither confirms the close nor reads delays the shutdown by seconds only."""
    reader, writer = await served.opened()
    writer.write(
        b"GET /ws?type=task HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    served.requested.set()
    await asyncio.wait_for(served.running, 60)
    writer.close()
