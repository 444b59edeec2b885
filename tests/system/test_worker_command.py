"""`coord worker KIND`: one more worker, as a process of its own."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process

import msgspec
import pytest
from redis.asyncio import Redis

from coord.embedded import EmbeddedServer
from coord.keys import Keys
from tests.waiting import wait_until

START_S = 60.0


async def coord_worker(*arguments: str) -> Process:
    """Start the command."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "coord.cli", "worker", *arguments, stdin=PIPE, stdout=PIPE, stderr=PIPE
    )


@pytest.mark.parametrize("kind", ["registry", "distributor", "router", "push"])
async def test_it_works_until_it_is_asked_to_end(
    server: EmbeddedServer, redis: Redis, namespace: str, kind: str
) -> None:
    """Under its name, in this process: SIGTERM is its own, and so is the exit code; the log is JSON when piped."""
    given = ("--redis-url", server.url, "--namespace", namespace)
    process = await coord_worker(kind, "--name", f"{kind}-9", *given)
    key = Keys(namespace).worker(kind, f"{kind}-9")

    async def present() -> bool:
        return await redis.hget(key, "pid") == str(process.pid).encode()

    await wait_until(present, "it is present", START_S)
    process.terminate()
    _, err = await asyncio.wait_for(process.communicate(), START_S)
    assert process.returncode == 0
    events = [msgspec.json.decode(line) for line in err.splitlines()]
    assert [(one["event"], one["name"]) for one in events if one["event"].startswith("worker.")] == [
        ("worker.started", f"{kind}-9"),
        ("worker.stopped", f"{kind}-9"),
    ]


async def test_it_says_which_settings_of_the_server_cost_memory(
    server: EmbeddedServer, redis: Redis, namespace: str
) -> None:
    """A server with the defaults of Redis works; the log names the setting, the command and the saving."""
    await redis.config_set("hash-max-listpack-value", 64)
    try:
        process = await coord_worker("router", "--redis-url", server.url, "--namespace", namespace)

        async def present() -> bool:
            return bool(await redis.zcard(Keys(namespace).of("workers:router")))

        await wait_until(present, "it is present", START_S)
    finally:
        await redis.config_set("hash-max-listpack-value", 1024)
    process.terminate()
    _, err = await asyncio.wait_for(process.communicate(), START_S)
    events = [msgspec.json.decode(line) for line in err.splitlines()]
    (advice,) = [one["message"] for one in events if one["event"] == "server.advice"]
    assert "CONFIG SET hash-max-listpack-value 1024" in advice
    assert "saves a quarter" in advice


async def test_it_ends_with_who_started_it(server: EmbeddedServer, redis: Redis, namespace: str) -> None:
    """--watch-stdin is handed on."""
    given = ("--redis-url", server.url, "--namespace", namespace, "--watch-stdin")
    process = await coord_worker("router", *given)

    async def present() -> bool:
        return bool(await redis.zcard(Keys(namespace).of("workers:router")))

    await wait_until(present, "it is present", START_S)
    assert process.stdin is not None
    process.stdin.close()
    assert await asyncio.wait_for(process.wait(), START_S) == 0


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["butler"], "'butler' is not one of 'registry', 'distributor', 'router', 'push'"),
        (["router", "--name", "a b"], "name must be 1 to 128 characters of A-Z a-z 0-9 . _ @ -, not 'a b'"),
        (["router", "--redis-url", "nowhere"], "is not a Redis URL"),
    ],
)
async def test_a_wrong_word_is_named(arguments: list[str], says: str) -> None:
    """Exit code 2, and what is expected."""
    process = await coord_worker(*arguments)
    _, err = await asyncio.wait_for(process.communicate(), START_S)
    text = " ".join(err.decode().replace("│", " ").split())
    assert process.returncode == 2
    assert says in text
    assert "Traceback" not in text
