"""The three processes of the floor: the minimum cost of any coordinator on Redis Streams.

``python -m benchmarks.hops '{"role": "producer"|"middle"|"agents", "url": …, "tasks": N, "agents": N}'``: bare
redis-py with hiredis and uvloop, batches of 100. No validation, no leases, no loss handling; nothing is deleted.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from coord.models.ids import new_id

from . import payload
from .prompt import Prompt, main

BATCH = 100
BLOCK_MS = 1_000
TASKS, RESULTS, LOADS, GROUP = "tasks", "results", "loads", "hop"


def agent_name(number: int) -> str:
    """Return the name of an agent."""
    return f"agent-{number:05}"


async def producer(prompt: Prompt, redis: Redis, options: dict[str, Any]) -> None:
    """XADD every task."""
    data = payload.encoded()
    ids = [new_id() for _ in range(options["tasks"])]
    await prompt.ready()
    for begin in range(0, len(ids), BATCH):
        pipe = redis.pipeline(transaction=False)
        for task_id in ids[begin : begin + BATCH]:
            pipe.execute_command("XADD", TASKS, "*", "task_id", task_id, "data", data)
        await pipe.execute()


async def middle(prompt: Prompt, redis: Redis, options: dict[str, Any]) -> None:
    """Read tasks; the script chooses the agents."""
    sha = await redis.script_load(Path(__file__).with_name("floor.lua").read_text())
    left = int(options["tasks"])
    await prompt.ready()
    while left:
        arguments: list[bytes] = []
        for entry, fields in await _read(redis, TASKS):
            arguments += (entry, fields[b"task_id"], fields[b"data"])
        if arguments:
            left -= int(await redis.execute_command("EVALSHA", sha, 2, TASKS, LOADS, GROUP, *arguments))


async def agents(prompt: Prompt, redis: Redis, options: dict[str, Any]) -> None:
    """Run the agents: each reads its own inbox, appends the outcome of each task, and acknowledges."""
    left = int(options["tasks"])
    done = asyncio.Event()

    async def agent(connection: Redis, inbox: str) -> None:
        nonlocal left
        while True:
            if batch := await _read(connection, inbox):
                pipe = connection.pipeline(transaction=False)
                for _, fields in batch:
                    pipe.execute_command("XADD", RESULTS, "*", "task_id", fields[b"task_id"], "result", b"null")
                pipe.execute_command("XACK", inbox, GROUP, *[entry for entry, _ in batch])
                await pipe.execute()
                left -= len(batch)
                if left <= 0:
                    done.set()

    connections = [redis, *(_connect(options["url"]) for _ in range(options["agents"] - 1))]
    for connection in connections:
        await connection.ping()
    await prompt.ready()
    running = [
        asyncio.create_task(agent(connection, f"inbox:{agent_name(i)}")) for i, connection in enumerate(connections)
    ]
    await done.wait()
    prompt.send("done")
    await prompt.receive()
    for task in running:
        task.cancel()


async def _read(redis: Redis, stream: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    answer = await redis.execute_command(
        "XREADGROUP", "GROUP", GROUP, "one", "COUNT", BATCH, "BLOCK", BLOCK_MS, "STREAMS", stream, ">"
    )
    return [entry for batches in (answer or {}).values() for entry in batches[0]]


def _connect(url: str) -> Redis:
    return Redis.from_url(url, protocol=3, single_connection_client=True)


ROLES: dict[str, Callable[[Prompt, Redis, dict[str, Any]], Awaitable[None]]] = {
    "producer": producer,
    "middle": middle,
    "agents": agents,
}


async def work(prompt: Prompt, options: dict[str, Any]) -> None:
    """Run one role, then wait for a command of the driver, which reads the CPU time meanwhile."""
    redis = _connect(options["url"])
    await redis.ping()
    await ROLES[options["role"]](prompt, redis, options)
    await prompt.receive()


if __name__ == "__main__":
    main(work)
