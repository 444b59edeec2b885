"""``scripts/bench polls``: CPU and memory of a gateway whose agents poll their inboxes over HTTP.

The agents wait for their inboxes at the same time: in the first row by long polls, in the second over WebSockets.
CPU is measured while all wait, in percent of a core; then some tasks are submitted one after the other, each for
another agent, and the time to the response of the poll, or to the frame, is measured.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import msgspec
import psutil
from websockets.asyncio.client import connect

from coord import Client
from coord.config import Settings
from coord.models.agents import AgentType, InboxDelivery
from coord.models.facts import AgentRegistered

from .child import Child
from .listeners import free_port, ready
from .markdown import markdown
from .stage import Stage

HEAD = (
    "agents wait by", "agents", "gateway CPU %", "Redis CPU %", "Redis commands/s", "KiB an agent", "p50 ms", "p90 ms",
)  # fmt: skip
#: Agents that connect at the same time.
AT_ONCE = 50
#: Tasks whose way is measured.
TASKS = 50

Wait = Callable[[int, str], Awaitable[Callable[[], Awaitable[None]]]]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="scripts/bench polls", description=__doc__)
    parser.add_argument("--agents", type=int, default=2_000, metavar="N", help="number of agents, 50 at least (2000)")
    parser.add_argument(
        "--seconds", type=float, default=20.0, metavar="S", help="time for which the CPU is measured (20)"
    )
    options = parser.parse_args(arguments)
    if options.agents < TASKS:
        parser.error(f"--agents must be {TASKS} or more, got {options.agents}")
    table: list[tuple[str, ...]] = [HEAD]
    for name, wait in (("long polls", _long_poll), ("WebSockets", _socket)):
        with tempfile.TemporaryDirectory(prefix="coord-bench-") as folder, Stage(Path(folder)) as stage:
            measured = asyncio.run(_measure(stage, Path(folder), wait, options.agents, options.seconds))
            table.append((name, f"{options.agents:,}", *measured))
    sys.stdout.write(markdown(table) + "\n")
    return 0


async def _measure(stage: Stage, folder: Path, wait: Wait, count: int, seconds: float) -> tuple[str, ...]:
    for kind in ("registry", "distributor"):
        stage.worker(kind)
    port = free_port()
    environ = {**os.environ, "COORD_REDIS_URL": stage.server.url, "COORD_LOG_LEVEL": "warning"}
    command = ["-m", "coord.cli", "gateway", "--port", str(port), "--watch-stdin"]
    child = Child("gateway", command, environ, folder / "gateway.log")
    try:
        settings = msgspec.structs.replace(Settings(), namespace="coord", redis_url=stage.server.url)
        async with Client(stage.server.url, settings=settings) as client:
            await ready(child, port)
            gateway, server = psutil.Process(child.pid), psutil.Process(stage.server.pid)
            await _register(client, count)
            before = gateway.memory_info().rss
            arrivals = []
            for begin in range(0, count, AT_ONCE):
                some = range(begin, min(count, begin + AT_ONCE))
                arrivals += await asyncio.gather(*(wait(port, f"a{number}") for number in some))
            await asyncio.to_thread(stage.wait, lambda: stage.size("SCARD", "agents:active"), count, "placeable agents")
            await asyncio.sleep(2)  # the heartbeats of the first polls are handled
            begin_s = [sum(process.cpu_times()[:2]) for process in (gateway, server)]
            commands_before = _commands(stage)
            await asyncio.sleep(seconds)
            per_s = (_commands(stage) - commands_before) / seconds
            used = [sum(one.cpu_times()[:2]) - old for one, old in zip((gateway, server), begin_s, strict=True)]
            resident = gateway.memory_info().rss
            taken = [await _time_task(client, number, arrivals[number]) for number in range(TASKS)]
    finally:
        child.stop()
    tenths = statistics.quantiles(taken, n=10)
    return (
        *(f"{100 * one / seconds:.1f}" for one in used), f"{per_s:.0f}",
        f"{(resident - before) / 1024 / count:.0f}", f"{tenths[4]:.1f}", f"{tenths[8]:.1f}",
    )  # fmt: skip


async def _register(client: Client, count: int) -> None:
    """Register agents that poll; each can do work that only it can do."""
    facts = [
        AgentRegistered(f"a{number}", AgentType.WORKER, capabilities=(f"a{number}",), delivery=InboxDelivery.POLL)
        for number in range(count)
    ]
    handles = await asyncio.gather(
        *(client.connection.append_fact("in:registry", fact, wants_answer=True) for fact in facts)
    )
    await asyncio.gather(*(handle.accepted(60) for handle in handles))


async def _time_task(client: Client, number: int, arrived: Callable[[], Awaitable[None]]) -> float:
    """Submit a task for an agent; return the milliseconds until it has it."""
    began = time.perf_counter()
    await client.submit("work", {"n": number}, requirements={"capabilities": [f"a{number}"]})
    await asyncio.wait_for(arrived(), 60)
    return (time.perf_counter() - began) * 1_000


async def _long_poll(port: int, agent_id: str) -> Callable[[], Awaitable[None]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(f"GET /agents/{agent_id}/inbox?wait=60 HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())

    async def arrived() -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert b" 200 " in head[:20]  # noqa: S101 (a measurement)
        writer.close()

    return arrived


async def _socket(port: int, agent_id: str) -> Callable[[], Awaitable[None]]:
    socket = await connect(f"ws://127.0.0.1:{port}/ws", ping_interval=None, compression=None)
    await socket.send(json.dumps({"id": 1, "inbox": {"agent_id": agent_id}}))
    assert json.loads(await socket.recv())["ok"]  # noqa: S101 (a measurement)

    async def arrived() -> None:
        assert "inbox" in json.loads(await socket.recv())  # noqa: S101 (a measurement)

    return arrived


def _commands(stage: Stage) -> int:
    info = stage.redis.info("stats")
    return int(info["total_commands_processed"])
