"""The Redis of a ``coord up``: an embedded server on a data folder, started again when it dies, or one that was given.

Both are used in the same way: ``begin``, ``keep`` until asked to stop, ``end``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import psutil

from coord.embedded import EmbeddedServer
from coord.errors import CoordError
from coord.up.data_dir import Claim, unusable
from coord.up.log import Say
from coord.up.shutdown import Stop
from coord.up.supervisor import Timing, backoff

#: Between two looks at whether the server lives: short beside what clients retry for.
LOOK_S = 0.1


class Server(Protocol):
    """What a cell needs of its server."""

    #: Where it is; for the embedded one known once it has begun.
    url: str
    #: The embedded one's folder.
    data_dir: Path | None
    #: What became of it at the beginning, for people.
    origin: str

    async def begin(self) -> None:
        """Make it run."""
        ...

    def abandon(self) -> None:
        """Kill what ``begin`` has started and still waits for."""
        ...

    async def keep(self, stop: Stop, say: Say, moved: Callable[[], None]) -> None:
        """Keep it running until ``stop``; ``moved`` is called when its ``url`` has changed."""
        ...

    async def end(self, stop: Stop, say: Say) -> None:
        """End it, if it is ours to end."""
        ...


class Given:
    """A server that someone else runs."""

    data_dir: Path | None = None
    origin = "given"

    def __init__(self, url: str) -> None:
        self.url = url

    async def begin(self) -> None:
        """It runs, or ``wait_for_server`` says that it does not."""

    def abandon(self) -> None:
        """Nothing was started."""

    async def keep(self, stop: Stop, say: Say, moved: Callable[[], None]) -> None:
        """Workers find it again by themselves."""
        await stop.asked.wait()

    async def end(self, stop: Stop, say: Say) -> None:
        """It stays."""


class Embedded:
    """A server of this ``coord up``, or one found running on the folder.

    Raises (when made):
        DataFolderInUse: another ``coord up`` runs on the folder.
    """

    url = ""
    origin = ""

    def __init__(self, folder: Path) -> None:
        self._claim = Claim(folder)
        self.data_dir: Path | None = self._claim.folder
        self._folder = self._claim.folder
        self._server: EmbeddedServer | None = None
        self._is_ours = False

    async def begin(self) -> None:
        """Start the server, or adopt the one that runs on the folder; it is ours if a ``coord up`` started it."""
        try:
            server = await asyncio.to_thread(EmbeddedServer.start, self._folder)
        except OSError as error:
            raise unusable(self._folder, error) from None
        self._is_ours = not server.adopted or server.pid == self._claim.earlier_server
        if self._is_ours:
            self._claim.record(server.pid)
        self._server, self.url = server, server.url
        self.origin = f"pid {server.pid}, {'found running' if server.adopted else 'started'}"

    def abandon(self) -> None:
        """Kill the server that loads its data: it has written nothing yet, and is the only process started so far."""
        for process in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                process.kill()

    async def keep(self, stop: Stop, say: Say, moved: Callable[[], None]) -> None:
        """Start it again when it has died, later and later while that fails."""
        server = self._running
        timing = Timing()
        loop = asyncio.get_running_loop()
        waits, since = backoff(timing), loop.time()
        while not await stop.asked_within(LOOK_S):
            if await asyncio.to_thread(server.alive):
                continue
            if loop.time() - since >= timing.well_s:
                waits = backoff(timing)
            wait_s = next(waits)
            say(
                "redis.ended",
                f"the Redis server (pid {server.pid}) has ended, starts again in {wait_s:g} s",
                level="warning",
            )
            if await stop.asked_within(wait_s):
                return
            try:
                await asyncio.to_thread(server.restart)
            except (CoordError, OSError) as error:
                say("redis.failed", f"the Redis server did not start: {error}", level="error")
                continue
            since = loop.time()
            self._is_ours = True
            self._claim.record(server.pid)
            say(
                "redis.restarted",
                f"the Redis server runs again, pid {server.pid}; nothing that it had acknowledged is lost",
            )
            if server.url != self.url:
                self.url = server.url
                moved()

    async def end(self, stop: Stop, say: Say) -> None:
        """Shut it down once its data is on disk; asked urgently, at once: what it acknowledged is with the system."""
        if self._server is not None:
            if self._is_ours:
                stopping = asyncio.create_task(asyncio.to_thread(self._server.stop, force=True))
                await stop.unless_urgent(_gone(stopping))
                if not stopping.done():
                    await asyncio.to_thread(self._server.kill)
                await stopping
                self._claim.record(None)
            else:
                say("redis.left", f"the Redis server (pid {self._server.pid}) was not started by coord up, so it stays")
        self._claim.release()

    @property
    def _running(self) -> EmbeddedServer:
        if self._server is None:
            raise RuntimeError("begin() comes first")
        return self._server


async def _gone(stopping: asyncio.Task[None]) -> None:
    await asyncio.wait({stopping})
