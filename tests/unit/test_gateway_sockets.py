"""WebSockets of callers that send too much, too slowly, or read nothing."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from coord.config import Settings
from coord.gateway import websocket
from coord.gateway.app import make_app
from coord.gateway.backend import Backend
from coord.gateway.callers import Caller
from coord.gateway.protocol import IDLE_S, Protocol
from coord.gateway.socket_protocol import LISTENER_BYTES, MESSAGE_S, TOO_SLOW, SocketProtocol
from coord.models.api_keys import CallerRole
from tests.waiting import wait_until


class Roles:
    """Lets every request pass, with one role."""

    def __init__(self) -> None:
        self.role: CallerRole | None = None

    async def authorize(self, call: Any, _route: Any) -> None:
        """Set who calls."""
        call.credential = None if self.role is None else Caller("key:k", self.role, agent_id="a1")

    def check_body(self, call: Any, route: Any) -> None:
        """Let it pass."""

    def guarded(self, _call: Any, chunks: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """Return the chunks."""
        return chunks


class Host:
    """A gateway that never finds Redis, for WebSockets of one role."""

    def __init__(self, settings: Settings) -> None:
        self.access = Roles()
        self.state = ServerState()
        self.port = 0
        app = make_app(Backend(settings), settings, self.access)
        self._config = uvicorn.Config(
            app, lifespan="off", access_log=False, ws=SocketProtocol, ws_max_size=settings.max_entry_bytes
        )

    def protocol(self) -> Protocol:
        """Return the protocol of a new connection."""
        return Protocol(config=self._config, server_state=self.state, app_state={})

    async def open(self, role: CallerRole | None) -> ClientConnection:
        """Connect."""
        self.access.role = role
        return await connect(f"ws://127.0.0.1:{self.port}/ws")

    @property
    def socket(self) -> SocketProtocol:
        """The only connection."""
        (found,) = self.state.connections
        assert isinstance(found, SocketProtocol)
        return found


@pytest.fixture
async def host(settings: Settings) -> AsyncIterator[Host]:
    """A gateway."""
    host = Host(settings)
    server = await asyncio.get_running_loop().create_server(host.protocol, "127.0.0.1", 0)
    host.port = server.sockets[0].getsockname()[1]
    yield host
    server.close()
    await wait_until(lambda: not host.state.connections and not host.state.tasks, "all connections are closed")


def frame(size: int) -> str:
    """Return a frame of at least this size, with a field that does not exist."""
    return json.dumps({"more": "x" * size})


@pytest.mark.parametrize("role", [CallerRole.READONLY, CallerRole.CLIENT])
async def test_a_listener_may_send_small_frames_only(host: Host, role: CallerRole) -> None:
    """It only subscribes; a large frame would be memory for everyone who may listen."""
    async with await host.open(role) as connection:
        await connection.send(frame(LISTENER_BYTES - 100))
        assert json.loads(await connection.recv())["error"]["code"] == "frame_invalid"
        await connection.send(frame(LISTENER_BYTES))
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009


@pytest.mark.parametrize("role", [CallerRole.AGENT, CallerRole.ADMIN, None], ids=["agent", "admin", "no security"])
async def test_an_agent_may_send_a_large_result(host: Host, settings: Settings, role: CallerRole | None) -> None:
    """Up to the limit of a body."""
    async with await host.open(role) as connection:
        await connection.send(frame(settings.max_entry_bytes - 100))
        assert json.loads(await connection.recv())["error"]["code"] == "frame_invalid"
        await connection.send(frame(settings.max_entry_bytes))
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == 1009


@pytest.mark.parametrize("pieces", [1, 2], ids=["a frame", "a fragmented message"])
async def test_a_message_that_does_not_end_ends_the_connection(host: Host, pieces: int) -> None:
    """As a body that does not arrive."""
    async with await host.open(CallerRole.AGENT) as connection:
        if pieces == 1:
            connection.transport.write(b"\x81\xff" + (100_000).to_bytes(8, "big") + b"\x00\x00\x00\x00" + b"x" * 10)
        else:
            connection.transport.write(b"\x01\x85\x00\x00\x00\x00xxxxx")
        socket = host.socket
        await wait_until(lambda: bool(socket.conn.reader.buffer or socket.frames), "the message has begun")
        now_s = asyncio.get_running_loop().time()
        socket.sweep(now_s, IDLE_S)
        socket.sweep(now_s + MESSAGE_S / 2, IDLE_S)
        assert not socket.transport.is_closing()
        socket.sweep(now_s + MESSAGE_S + 1, IDLE_S)
        with pytest.raises(ConnectionClosed):
            await connection.recv()
        assert connection.close_code == TOO_SLOW


async def test_a_caller_that_reads_no_answers_is_cut_off(host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its place for ever."""
    monkeypatch.setattr(websocket, "STALL_S", 0.2)
    reader, writer = await asyncio.open_connection("127.0.0.1", host.port, limit=1_000)
    writer.write(
        b"GET /ws HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101")
    body = json.dumps({"id": "x" * 30_000}).encode()  # the answer has it as well
    message = b"\x81\xfe" + len(body).to_bytes(2, "big") + b"\x00\x00\x00\x00" + body
    with suppress(ConnectionError):
        while not writer.is_closing():
            writer.write(message)
            await writer.drain()
    await wait_until(lambda: not host.state.tasks, "the socket has ended")
    writer.close()
