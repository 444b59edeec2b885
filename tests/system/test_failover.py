"""A fail-over that loses the last writes, and a server in cluster mode: everybody goes on by itself.

coord is told one address. Here it is a port that is led to whoever the sentinel names, which stands for what people put
in front of a pair: a virtual address, a DNS name, a proxy that asks the sentinels. Connections are cut when it moves.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import cast

import msgspec
import pytest
from redis.asyncio import Redis
from redis.exceptions import RedisError

from coord import Client, queries
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.errors import CoordError
from coord.fsck import examine
from coord.keys import Keys
from coord.models.tasks import TERMINAL, TaskState
from tests.processes import House, Process
from tests.system.failover_pair import Pair, pair
from tests.waiting import wait_until

#: Within which everything goes on by itself once a new primary is named, in seconds.
RESUMES_S = 10.0


class CellHouse(House):
    """A house with a namespace of its own."""

    def start(self, name: str, *command: str, **environ: str) -> Process:
        """Start a process in this namespace."""
        return super().start(name, *command, **{"COORD_NAMESPACE": self.keys.namespace} | environ)


@contextlib.asynccontextmanager
async def _cell(server: object, url: str, folder: Path, namespace: str) -> AsyncIterator[CellHouse]:
    folder.mkdir(exist_ok=True)
    settings = msgspec.structs.replace(Settings(), namespace=namespace)
    redis = connect(url, settings, retries=0)
    built: CellHouse | None = None
    try:
        async with Client(url, settings=settings) as client:
            built = CellHouse(cast("EmbeddedServer", server), folder, redis, client, Keys(namespace))
            yield built
    finally:
        for process in built.processes if built is not None else ():
            process.kill()
        await redis.aclose()


@pytest.fixture
async def two(tmp_path: Path) -> AsyncIterator[Pair]:
    """A primary, its replica, a sentinel, and the address in front."""
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(4)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        ports = [int(probe.getsockname()[1]) for probe in probes]
    async with pair(tmp_path, (ports[0], ports[1], ports[2], ports[3])) as running:
        yield running


class Load:
    """Submits small batches as long as it lasts; ``acknowledged`` are the ids that it was told are in."""

    def __init__(self, at: House) -> None:
        self.at = at
        self.acknowledged: list[str] = []
        self._stopped = asyncio.Event()
        self._task = asyncio.create_task(self._submit())

    async def stop(self) -> None:
        """Submit no more."""
        self._stopped.set()
        await self._task

    async def more(self, count: int) -> int:
        """Wait until so many more are acknowledged; how many there are."""
        wanted = len(self.acknowledged) + count
        await wait_until(lambda: len(self.acknowledged) >= wanted, f"{count} more are acknowledged", 20)
        return len(self.acknowledged)

    async def _submit(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(CoordError, RedisError, OSError):
                self.acknowledged += await self.at.submit(5, 0.02)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 0.02)


async def test_a_replica_is_promoted_that_lacks_the_last_writes(two: Pair, tmp_path: Path) -> None:
    """What was lost is lost whole, what was replicated ends once, and no process is restarted or told anything."""
    async with _cell(two, two.url, tmp_path / "house", "failover") as at:
        people = [await at.worker(kind) for kind in ("registry", "distributor", "distributor")]
        people += [await at.agent(f"a{number}", capacity=4) for number in (1, 2, 3)]
        load = Load(at)
        await load.more(200)
        safe = list(load.acknowledged)
        await two.cut()
        cut_at = await load.more(5)  # a batch may have been on its way when the link was cut
        lost_until = await load.more(100)
        lost = load.acknowledged[cut_at:lost_until]
        two.primary.kill()
        await wait_until(lambda: two.front.target == two.ports[1], "the replica is promoted", 30)
        resumed = await load.more(50)
        await _is_completed(at, load.acknowledged[resumed - 20 : resumed])
        await load.stop()
        await wait_until(lambda: _all_have_ended(at), "every visible task has ended", 30)
        await at.settle_down()
        assert all(one.alive for one in people)
        records = await queries.tasks(at.redis, at.keys, safe)
        assert [one.state if one else None for one in records] == [TaskState.COMPLETED] * len(safe)
        assert [one for one in await queries.tasks(at.redis, at.keys, lost) if one] == []
        await _assert_one_outcome_each(at)


async def test_two_cells_on_a_server_in_cluster_mode(tmp_path: Path) -> None:
    """A cell's keys share a slot, so that its scripts run there; the other cell sees nothing of it."""
    server = EmbeddedServer.start(tmp_path / "data", extra=("--cluster-enabled", "yes"), port=_port())
    try:
        async with connect(server.url, Settings()) as redis:
            await redis.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 16383)
            await wait_until(lambda: _cluster_is_ok(redis), "the slots are served")
        async with (
            _cell(server, server.url, tmp_path / "one", "one") as one,
            _cell(server, server.url, tmp_path / "two", "two") as two,
        ):
            for at in (one, two):
                await at.worker("registry")
                await at.worker("distributor")
                await at.agent("a1")
            ids = {at.keys.namespace: await at.submit(200) for at in (one, two)}
            for at in (one, two):
                await at.all_end(200)
                await at.assert_in_order(ids[at.keys.namespace])
                assert (await examine(at.redis, at.keys, quiet=True, trimmed=False)).tasks == 200
    finally:
        server.stop(force=True)


async def _is_completed(at: House, ids: list[str]) -> None:
    async def completed() -> bool:
        try:
            records = await queries.tasks(at.redis, at.keys, ids)
        except (RedisError, OSError):
            return False
        return all(one and one.state == TaskState.COMPLETED for one in records)

    await wait_until(completed, "what was submitted to the new primary is done", RESUMES_S)


async def _all_have_ended(at: House) -> bool:
    counted = await queries.counters(at.redis, at.keys)
    waiting = [await at.redis.xlen(at.keys.tasks_in("normal")), await at.redis.xlen(at.keys.of("in:reports"))]
    return not any(waiting) and sum(queries.by_state(counted)[one] for one in TERMINAL) == queries.submitted(counted)


async def _assert_one_outcome_each(at: House) -> None:
    """By the log of the surviving server; its books balance and nothing is in flight."""
    log = await at.redis.execute_command("XRANGE", at.keys.of("log:tasks"), "-", "+")
    ended = [fields[b"task_id"] for _, fields in log if fields[b"type"].decode().removeprefix("task.") in TERMINAL]
    assert len(ended) == len(set(ended))
    report = await examine(at.redis, at.keys, quiet=True, trimmed=False)
    assert report.findings == []
    assert report.tasks == len(ended)
    assert await at.redis.exists(at.keys.of("dead:in")) == 0


async def _cluster_is_ok(redis: Redis) -> bool:
    return b"cluster_state:ok" in await redis.execute_command("CLUSTER", "INFO")


def _port() -> int:
    """A free port; its cluster bus takes the one 10,000 above."""
    for port in range(21_000, 40_000):
        with socket.socket() as one, socket.socket() as other:
            try:
                one.bind(("127.0.0.1", port))
                other.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port
    raise AssertionError("no free port")
