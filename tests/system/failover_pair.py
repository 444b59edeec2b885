"""A primary and a replica; with a sentinel, or in cluster mode. Before them one address, see ``Forwarder``."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from coord.background import cancel_and_wait
from coord.embedded import EmbeddedServer, find_binary
from tests.ports import unused_ports
from tests.system.forwarder import Forwarder
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
REPLICATION = ("--repl-diskless-sync-delay", "0", "--repl-ping-replica-period", "1")


@dataclass
class Pair:
    """Primary, replica, and the address in front of them."""

    primary: EmbeddedServer  #: that was it at first
    replica: EmbeddedServer
    ports: tuple[int, int]  #: primary, replica
    front: Forwarder

    @property
    def url(self) -> str:
        """What workers, agents and clients are told."""
        return self.front.url

    async def cut(self) -> None:
        """From here on the replica gets no more writes: it is cut off, and may not synchronise again."""
        async with self.direct(0) as redis:
            assert await redis.execute_command("WAIT", 1, 60_000) == 1, "the replica does not keep up"
            await redis.execute_command("ACL", "SETUSER", "default", "-psync", "-sync")
            await redis.execute_command("CLIENT", "KILL", "TYPE", "replica")

    def direct(self, which: int) -> Redis:
        """A client of the first or the second server, whatever its role."""
        return Redis(port=self.ports[which], protocol=3)

    async def follows(self, which: int) -> bool:
        """Whether that server is a replica which has caught up with the other."""
        try:
            async with self.direct(which) as one, self.direct(1 - which) as other:
                mine, theirs = await one.info("replication"), await other.info("replication")
        except (RedisError, OSError):
            return False
        if (mine["role"], theirs["role"]) != ("slave", "master") or mine["master_link_status"] != "up":
            return False
        return bool(mine["slave_repl_offset"] == theirs["master_repl_offset"])


@dataclass
class SentinelPair(Pair):
    """The address leads to whom the sentinel names."""

    sentinel: Redis

    async def follow(self) -> None:
        """Do what is told by the sentinel: lead to the primary that it names."""
        while True:
            with contextlib.suppress(RedisError, OSError):
                host_port = await self.sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", GROUP)
                if (named := int(host_port[1])) != self.front.target:
                    await self.front.lead_to(named)
            await asyncio.sleep(0.05)


@asynccontextmanager
async def plain_pair(folder: Path, *, cuts: bool = True) -> AsyncIterator[Pair]:
    """A primary with a replica that has caught up; both are ended.

    Args:
        folder: for their data.
        cuts: what the address in front does to open connections when it moves, see ``Forwarder``.
    """
    first, second, front = unused_ports(3)
    async with contextlib.AsyncExitStack() as stack:
        primary = EmbeddedServer.start(folder / "primary", port=first, extra=REPLICATION)
        stack.callback(primary.kill)
        replica = EmbeddedServer.start(
            folder / "replica", port=second, extra=(*REPLICATION, "--replicaof", "127.0.0.1", str(first))
        )
        stack.callback(replica.kill)
        forwarder = Forwarder(front, first, cuts)
        await forwarder.begin()
        stack.push_async_callback(forwarder.finish)
        built = Pair(primary, replica, (first, second), forwarder)
        await wait_until(lambda: built.follows(1), "the replica has caught up", 60)
        yield built


@asynccontextmanager
async def sentinel_pair(folder: Path, *, cuts: bool = True) -> AsyncIterator[SentinelPair]:
    """The same, watched by a sentinel, which is ended too."""
    (watching,) = unused_ports(1)
    async with plain_pair(folder, cuts=cuts) as two, contextlib.AsyncExitStack() as stack:
        config = folder / "sentinel.conf"
        config.write_text(SENTINEL.format(port=watching, folder=folder, group=GROUP, primary=two.ports[0]))
        process = _start_sentinel(config)
        stack.callback(process.wait)
        stack.callback(process.kill)
        sentinel = Redis(port=watching, protocol=3)
        stack.push_async_callback(sentinel.aclose)
        built = SentinelPair(two.primary, two.replica, two.ports, two.front, sentinel)
        await wait_until(lambda: _knows_replica(sentinel), "the sentinel knows the replica", 60)
        following = asyncio.create_task(built.follow())
        stack.push_async_callback(cancel_and_wait, following)
        yield built


@asynccontextmanager
async def cluster_pair(folder: Path, *, cuts: bool = True) -> AsyncIterator[Pair]:
    """A cluster of one primary that has all slots, and its replica, which has caught up. Arguments as before."""
    *nodes, front = unused_ports(5)
    ports = nodes[0], nodes[1]
    async with contextlib.AsyncExitStack() as stack:
        servers: list[EmbeddedServer] = []
        for name, port, bus in (("primary", nodes[0], nodes[2]), ("replica", nodes[1], nodes[3])):
            cluster = ("--cluster-enabled", "yes", "--cluster-port", str(bus), "--cluster-node-timeout", "2000")
            server = EmbeddedServer.start(folder / name, port=port, extra=(*REPLICATION, *cluster))
            stack.callback(server.kill)
            servers.append(server)
        forwarder = Forwarder(front, ports[0], cuts)
        await forwarder.begin()
        stack.push_async_callback(forwarder.finish)
        built = Pair(servers[0], servers[1], ports, forwarder)
        async with built.direct(0) as primary, built.direct(1) as replica:
            await primary.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await replica.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0], nodes[2])
            name = (await primary.execute_command("CLUSTER", "MYID")).decode()

            async def met() -> bool:
                found = [await one.execute_command("CLUSTER", "INFO") for one in (primary, replica)]
                return all(b"cluster_state:ok" in info and b"cluster_known_nodes:2" in info for info in found)

            await wait_until(met, "the nodes have met and serve the slots", 60)
            await replica.execute_command("CLUSTER", "REPLICATE", name)
        await wait_until(lambda: built.follows(1), "the replica has caught up", 60)
        yield built


async def take_over(pair: Pair) -> None:
    """Promote the replica of a cluster, whose primary is gone."""
    async with pair.direct(1) as replica:
        await replica.execute_command("CLUSTER", "FAILOVER", "TAKEOVER")

        async def takes_writes() -> bool:
            try:
                return bool(await replica.execute_command("DEL", "nothing") == 0)
            except RedisError:
                return False

        await wait_until(takes_writes, "the replica is promoted and takes writes", 60)
    await pair.front.lead_to(pair.ports[1])


def _start_sentinel(config: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen([str(find_binary()), str(config), "--sentinel"], stdin=subprocess.DEVNULL)


async def _knows_replica(sentinel: Redis) -> bool:
    try:
        found = await sentinel.execute_command("SENTINEL", "REPLICAS", GROUP)
    except (RedisError, OSError):
        return False
    return "'ok'" in str(found)
