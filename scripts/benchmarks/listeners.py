"""``scripts/bench listeners``: CPU and memory of a gateway with many listeners to events.

The listeners are in this process. Each row has a filter and a rate of events; ``delivered`` is what all listeners got
of what they should have got. The CPU is that of the gateway and of Redis, in percent of a core.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import psutil
from redis.asyncio import Redis

from coord.keys import Keys

from .child import Child
from .markdown import markdown
from .stage import Stage

#: Seconds that the gateway gets to start, and that the last events of a row get to arrive.
LIMIT_S = 30.0
#: Seconds between two writes.
STEP_S = 0.005
#: Stands before each event, and in none.
MARK = b"\ndata: "
HEAD = ("row", "events/s", "gateway CPU %", "Redis CPU %", "delivered", "MiB", "KiB a listener")


class Row(NamedTuple):
    """Something to measure."""

    name: str
    is_filtered: bool  #: each listener wants one task of its own
    per_s: int
    batch: int = 1  #: events in one entry of the log


ROWS = (
    Row("idle", is_filtered=False, per_s=0),
    Row("all", is_filtered=False, per_s=10),
    Row("all-100", is_filtered=False, per_s=100),
    Row("all-1000", is_filtered=False, per_s=1_000, batch=100),
    Row("one-task", is_filtered=True, per_s=100),
    Row("one-task-1000", is_filtered=True, per_s=1_000, batch=100),
)


class Received:
    """What all listeners have got."""

    def __init__(self) -> None:
        self.connected = 0
        self.events = 0

    async def listen(self, port: int, path: str) -> None:
        """Listen until cancelled."""
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            writer.write(f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            await reader.readuntil(b"retry: ")
            self.connected += 1
            end = b""
            while some := await reader.read(65_536):
                text = end + some
                self.events += text.count(MARK)
                end = text[1 - len(MARK) :]
        finally:
            writer.close()


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench listeners", description=__doc__)
    parser.add_argument("--listeners", type=int, default=1_000, metavar="N", help="number of listeners (1000)")
    parser.add_argument("--seconds", type=float, default=8.0, metavar="S", help="duration of each row (8)")
    options = parser.parse_args(arguments)
    table: list[tuple[str, ...]] = [HEAD]
    for row in ROWS:
        with tempfile.TemporaryDirectory(prefix="coord-bench-") as folder, Stage(Path(folder)) as stage:
            table.append(asyncio.run(_measure(stage, Path(folder), row, options.listeners, options.seconds)))
    sys.stdout.write(markdown(table) + "\n")
    return 0


async def _measure(stage: Stage, folder: Path, row: Row, count: int, seconds: float) -> tuple[str, ...]:
    port = free_port()
    environ = {**os.environ, "COORD_REDIS_URL": stage.server.url, "COORD_LOG_LEVEL": "warning"}
    command = ["-m", "coord.cli", "gateway", "--port", str(port), "--watch-stdin"]
    child = Child("gateway", command, environ, folder / "gateway.log")
    received, tasks = Received(), list[asyncio.Task[None]]()
    try:
        await ready(child, port)
        gateway, server = psutil.Process(child.pid), psutil.Process(stage.server.pid)
        before = gateway.memory_info().rss
        for number in range(count):
            path = f"/events?task=t{number}" if row.is_filtered else "/events"
            tasks.append(asyncio.create_task(received.listen(port, path)))
            if number % 50 == 0:
                await asyncio.sleep(0.01)
        await _until(lambda: received.connected == count)
        begin = [sum(process.cpu_times()[:2]) for process in (gateway, server)]
        written = await _write(stage.server.url, row, count, seconds)
        expected = written if row.is_filtered else written * count
        with contextlib.suppress(TimeoutError):
            await _until(lambda: received.events >= expected)
        used = [sum(process.cpu_times()[:2]) - old for process, old in zip((gateway, server), begin, strict=True)]
        resident = gateway.memory_info().rss
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        child.stop()
    return (
        row.name, f"{written / seconds:,.0f}", *(f"{100 * one / seconds:.1f}" for one in used),
        f"{received.events:,} of {expected:,}", f"{resident / 2**20:.0f}", f"{(resident - before) / 1024 / count:.0f}",
    )  # fmt: skip


async def _write(url: str, row: Row, count: int, seconds: float) -> int:
    """Append events of tasks at a rate; return their number."""
    redis, key, began, written = Redis.from_url(url), Keys("coord").of("log:tasks"), time.monotonic(), 0
    while (passed := time.monotonic() - began) < seconds:
        while written + row.batch <= passed * row.per_s:
            ids = " ".join(f"t{number % count}" for number in range(written, written + row.batch))
            agents = " ".join(["agent-1"] * row.batch)
            await redis.xadd(key, {"type": "task.completed", "task_id": ids, "agent_id": agents}, maxlen=10_000)
            written += row.batch
        await asyncio.sleep(STEP_S)
    await redis.aclose()
    return written


async def ready(child: Child, port: int) -> None:
    """Wait until a gateway has found Redis."""

    async def answers() -> bool:
        child.check()
        with contextlib.suppress(OSError):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /health/ready HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            answer = await reader.read()
            writer.close()
            return b" 200 " in answer[:20]
        return False

    async with asyncio.timeout(LIMIT_S):
        while not await answers():  # noqa: ASYNC110 (another process)
            await asyncio.sleep(0.05)


async def _until(predicate: Callable[[], bool]) -> None:
    async with asyncio.timeout(LIMIT_S):
        while not predicate():  # noqa: ASYNC110 (what it reads has no event)
            await asyncio.sleep(0.05)


def free_port() -> int:
    """Return a port that nobody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
