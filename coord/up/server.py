"""The Redis server of ``coord up``: an embedded one on a data folder, restarted when it ends, or an external one.

Both have the same three steps: ``start``, ``keep`` until shutdown, ``stop``.
"""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from coord.backoff import Backoff
from coord.embedded import EmbeddedServer
from coord.errors import CoordError
from coord.up.data_dir import FolderLock, unusable
from coord.up.log import WriteMessage
from coord.up.shutdown import Shutdown
from coord.up.supervisor import Timing

#: Seconds between two checks of the server's process: short compared with how long clients retry.
POLL_S = 0.1


class Server(Protocol):
    """The server of a cell."""

    #: URL of the server; an embedded server has one after ``start``.
    url: str
    #: Data folder of an embedded server.
    data_dir: Path | None
    #: Where the server comes from, for people.
    origin: str

    async def start(self) -> None:
        """Start the server."""
        ...

    def abandon(self) -> None:
        """Kill the process that ``start`` has started and still waits for."""
        ...

    async def keep(self, shutdown: Shutdown, write: WriteMessage, on_new_url: Callable[[], None]) -> None:
        """Keep the server running until shutdown; ``on_new_url`` is called when its ``url`` has changed."""
        ...

    async def stop(self, shutdown: Shutdown, write: WriteMessage) -> None:
        """Stop the server if ``coord up`` has started it."""
        ...


class ExternalServer:
    """A server that is managed elsewhere."""

    data_dir: Path | None = None
    origin = "given"

    def __init__(self, url: str) -> None:
        self.url = url

    async def start(self) -> None:
        """Do nothing; ``wait_for_server`` reports a server that does not run."""

    def abandon(self) -> None:
        """Do nothing; nothing was started."""

    async def keep(self, shutdown: Shutdown, write: WriteMessage, on_new_url: Callable[[], None]) -> None:
        """Wait for shutdown; workers reconnect by themselves."""
        await shutdown.requested.wait()

    async def stop(self, shutdown: Shutdown, write: WriteMessage) -> None:
        """Leave the server running."""


class ManagedServer:
    """An embedded server, started here or found running on the folder.

    Raises (when created):
        DataFolderInUse: another ``coord up`` uses the folder.
    """

    url = ""
    origin = ""

    def __init__(self, folder: Path) -> None:
        self._claim = FolderLock(folder)
        self.data_dir: Path | None = self._claim.folder
        self._folder = self._claim.folder
        self._server: EmbeddedServer | None = None
        self._is_ours = False
        self._starting: subprocess.Popen[bytes] | None = None

    async def start(self) -> None:
        """Start the server, or adopt the one that runs on the folder; it is ours if a ``coord up`` has started it."""
        try:
            server = await asyncio.to_thread(EmbeddedServer.start, self._folder, on_process=self._note_start)
        except OSError as error:
            raise unusable(self._folder, error) from None
        self._is_ours = not server.adopted or server.pid == self._claim.earlier_server
        if self._is_ours:
            self._claim.record(server.pid)
        self._server, self.url = server, server.url
        self.origin = f"pid {server.pid}, {'found running' if server.adopted else 'started'}"

    def abandon(self) -> None:
        """Kill the server that was started here and loads its data: it has written nothing yet."""
        if self._starting is not None:
            self._starting.kill()

    def _note_start(self, process: subprocess.Popen[bytes]) -> None:
        self._starting = process

    async def keep(self, shutdown: Shutdown, write: WriteMessage, on_new_url: Callable[[], None]) -> None:
        """Restart the server with exponential backoff whenever it has ended."""
        server = self._running
        timing = Timing()
        loop = asyncio.get_running_loop()
        backoff, since = Backoff(timing.first_s, timing.longest_s), loop.time()
        while not await shutdown.requested_within(POLL_S):
            if await asyncio.to_thread(server.alive):
                continue
            if loop.time() - since >= timing.stable_s:
                backoff.reset()
            wait_s = backoff.next_s()
            write(
                "redis.ended",
                f"the Redis server (pid {server.pid}) has ended; it restarts in {wait_s:g} s",
                level="warning",
            )
            if await shutdown.requested_within(wait_s):
                return
            try:
                await asyncio.to_thread(server.restart)
            except (CoordError, OSError) as error:
                write("redis.failed", f"the Redis server did not start: {error}", level="error")
                continue
            since = loop.time()
            self._is_ours = True
            self._claim.record(server.pid)
            write(
                "redis.restarted",
                f"the Redis server runs again, pid {server.pid}; all acknowledged data is kept",
            )
            if server.url != self.url:
                self.url = server.url
                on_new_url()

    async def stop(self, shutdown: Shutdown, write: WriteMessage) -> None:
        """Stop the server once its data is on disk; if forced, at once: the system has what was acknowledged."""
        if self._server is not None:
            if self._is_ours:
                stopping = asyncio.create_task(asyncio.to_thread(self._server.stop, force=True))
                await shutdown.unless_forced(_wait_for(stopping))
                if not stopping.done():
                    await asyncio.to_thread(self._server.kill)
                await stopping
                self._claim.record(None)
            else:
                write(
                    "redis.left",
                    f"the Redis server (pid {self._server.pid}) keeps running: coord up has not started it",
                )
        self._claim.release()

    @property
    def _running(self) -> EmbeddedServer:
        if self._server is None:
            raise RuntimeError("call start() first")
        return self._server


async def _wait_for(stopping: asyncio.Task[None]) -> None:
    await asyncio.wait({stopping})
