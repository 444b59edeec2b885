"""One address that leads to whoever is the primary: what people put in front of a pair of servers."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field

from coord.background import cancel_and_wait


@dataclass
class Forwarder:
    """A local port that leads to ``target``.

    When it moves, connections to what was the target before are cut, as a proxy or a virtual address does it; or they
    are left as they are, as with a DNS name.
    """

    port: int
    target: int
    cuts: bool = True
    _open: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    @property
    def url(self) -> str:
        """What workers, agents and clients are told."""
        return f"redis://127.0.0.1:{self.port}/0"

    async def begin(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def lead_to(self, target: int) -> None:
        """From now on, lead there."""
        self.target = target
        if self.cuts:
            await cancel_and_wait(*self._open)

    async def finish(self) -> None:
        """Listen no more, and cut what is open."""
        if self._server is not None:
            self._server.close()
        await cancel_and_wait(*self._open)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        away: asyncio.StreamWriter | None = None
        try:
            back, away = await asyncio.open_connection("127.0.0.1", self.target)
            ways = [asyncio.create_task(_pump(reader, away)), asyncio.create_task(_pump(back, writer))]
            try:
                await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
            finally:
                await cancel_and_wait(*ways)
        except (OSError, asyncio.CancelledError):
            pass  # who connected sees a closed connection, as if the server had gone
        finally:
            self._open.discard(task)
            for one in (writer, away):
                if one is not None:
                    one.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65_536):
            sink.write(data)
            await sink.drain()
