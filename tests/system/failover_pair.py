"""A primary, a replica and a sentinel, and one address that leads to whoever is the primary."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from coord.embedded import EmbeddedServer, find_binary
from coord.sdk.ending import end
from tests.waiting import wait_until

#: What the sentinel calls the group.
GROUP = "cell"
SENTINEL = """
port {port}
bind 127.0.0.1
dir {folder}
logfile {folder}/sentinel.log
sentinel monitor {group} 127.0.0.1 {primary} 1
sentinel down-after-milliseconds {group} 500
sentinel failover-timeout {group} 3000
"""


@dataclass
class Forwarder:
    """A local port that leads to ``target``; connections to what was the target before are cut."""

    port: int
    target: int
    _open: set[asyncio.Task[None]] = field(default_factory=set)
    _server: asyncio.Server | None = None

    async def begin(self) -> None:
        """Listen."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port)

    async def lead_to(self, target: int) -> None:
        """From now on, lead there."""
        self.target = target
        await end(*self._open)

    async def finish(self) -> None:
        """Listen no more, and cut what is open."""
        if self._server is not None:
            self._server.close()
        await end(*self._open)

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
                await end(*ways)
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


@dataclass
class Pair:
    """Primary, replica, sentinel, and the address in front of them."""

    primary: EmbeddedServer
    replica: EmbeddedServer
    ports: tuple[int, int]  #: primary, replica
    front: Forwarder
    sentinel: Redis
    _following: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        """What workers, agents and clients are told."""
        return f"redis://127.0.0.1:{self.front.port}/0"

    async def cut(self) -> None:
        """From here on the replica gets no more writes: it is cut off, and may not synchronise again."""
        async with Redis(port=self.ports[0], protocol=3) as redis:
            await redis.execute_command("WAIT", 1, 5000)
            await redis.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
            await redis.execute_command("CLIENT", "KILL", "TYPE", "replica")

    async def follow(self) -> None:
        """Do what is told by the sentinel: lead to the primary that it names."""
        while True:
            with contextlib.suppress(RedisError, OSError):
                host_port = await self.sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP)
                if (named := int(host_port[1])) != self.front.target:
                    await self.front.lead_to(named)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def pair(folder: Path, ports: tuple[int, int, int, int]) -> AsyncIterator[Pair]:
    """A primary with a replica that has caught up, watched by a sentinel; every process of it is ended."""
    first, second, watching, front = ports
    async with contextlib.AsyncExitStack() as stack:
        repl = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")
        primary = EmbeddedServer.start(folder / "primary", port=first, extra=repl)
        stack.callback(primary.kill)
        replica = EmbeddedServer.start(
            folder / "replica", port=second, extra=(*repl, "--replicaof", "127.0.0.1", str(first))
        )
        stack.callback(replica.kill)
        config = folder / "sentinel.conf"
        config.write_text(SENTINEL.format(port=watching, folder=folder, group=GROUP, primary=first))
        process = _start_sentinel(config)
        stack.callback(process.wait)
        stack.callback(process.kill)
        sentinel = Redis(port=watching, protocol=3)
        stack.push_async_callback(sentinel.aclose)
        forwarder = Forwarder(front, first)
        await forwarder.begin()
        stack.push_async_callback(forwarder.finish)
        built = Pair(primary, replica, (first, second), forwarder, sentinel)
        await wait_until(lambda: _knows_replica(sentinel), "the sentinel knows the replica, which has caught up", 20)
        following = asyncio.create_task(built.follow())
        stack.push_async_callback(end, following)
        yield built


def _start_sentinel(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(find_binary()), str(config), "--sentinel"], stdin=subprocess.DEVNULL)


async def _knows_replica(sentinel: Redis) -> bool:
    try:
        found = await sentinel.execute_command("SENTINEL", "REPLICAS", GROUP)
    except (RedisError, OSError):
        return False
    return "'ok'" in str(found)
