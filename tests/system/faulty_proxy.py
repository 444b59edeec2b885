"""A proxy between our processes and the server whose connections break as real ones do: reset, or half-open."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from coord.background import cancel_and_wait
from coord.embedded import EmbeddedServer

#: SO_LINGER with a time of 0: closing sends a reset.
RESET = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class Connection:
    """One client's connection and the proxy's to the server."""

    writers: tuple[asyncio.StreamWriter, asyncio.StreamWriter]
    task: asyncio.Task[None]
    resets_after: int | None = None  #: bytes from the client, in the middle of which it is reset
    speaks: asyncio.Event = field(default_factory=asyncio.Event)

    def reset(self) -> None:
        """Reset the client's side; the server's is closed."""
        client, server = self.writers
        sock: socket.socket | None = client.get_extra_info("socket")
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        client.transport.abort()
        server.transport.abort()
        self.task.cancel()


class FaultyProxy:
    """A port of 127.0.0.1 that leads to the server's unix socket."""

    def __init__(self, server: EmbeddedServer) -> None:
        self.connections: set[Connection] = set()
        self.accepted = 0
        self.tasks: set[asyncio.Task[None]] = set()
        self.resets = 0
        self.silences_later = False  #: connections that come pass nothing either
        self._server = server
        self._listener: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What the processes are told."""
        assert self._listener is not None
        return f"redis://127.0.0.1:{self._listener.sockets[0].getsockname()[1]}/0"

    def reset_all(self, after: int | None = None) -> None:
        """Reset every connection now, or in the middle of its next write, after so many bytes of it."""
        for connection in tuple(self.connections):
            self.resets += 1
            if after is None:
                connection.reset()
            else:
                connection.resets_after = after

    def silence_all(self) -> int:
        """Let every connection that there is pass nothing any more, and stay open; how many there are."""
        for connection in self.connections:
            connection.speaks.clear()
        return len(self.connections)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One client's connection."""
        self.accepted += 1
        back, away = await asyncio.open_unix_connection(str(self._server.socket_path))
        task = asyncio.current_task()
        assert task is not None
        self.tasks.add(task)
        connection = Connection((writer, away), task)
        if not self.silences_later:
            connection.speaks.set()
        self.connections.add(connection)
        ways = [
            asyncio.create_task(self._pass(connection, reader, away, is_up=True)),
            asyncio.create_task(self._pass(connection, back, writer, is_up=False)),
        ]
        try:
            await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            pass  # it was reset
        finally:
            self.connections.discard(connection)
            await cancel_and_wait(*ways)
            writer.transport.abort()
            away.transport.abort()
            self.tasks.discard(task)

    async def _pass(
        self, connection: Connection, source: asyncio.StreamReader, sink: asyncio.StreamWriter, *, is_up: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65_536):
                await connection.speaks.wait()
                if is_up and connection.resets_after is not None:
                    sink.write(data[: connection.resets_after])
                    connection.reset()
                    return
                sink.write(data)
                await sink.drain()


@asynccontextmanager
async def faulty_proxy(server: EmbeddedServer) -> AsyncIterator[FaultyProxy]:
    """A proxy before ``server``; its connections are closed at the end."""
    proxy = FaultyProxy(server)
    proxy._listener = await asyncio.start_server(proxy.serve, "127.0.0.1", 0)
    try:
        yield proxy
    finally:
        proxy._listener.close()
        for connection in tuple(proxy.connections):
            connection.reset()
        if proxy.tasks:
            await asyncio.wait(tuple(proxy.tasks), timeout=10)
        await asyncio.sleep(0.01)  # the event loop closes the sockets in its next turns
