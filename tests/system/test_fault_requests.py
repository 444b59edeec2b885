"""Requests while processes die and the server stands still: each ends, and none ends too early."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord import Client
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

#: An agent that requests the agent in its argument, if there is one, and writes what comes of it.
ASKER = """
import asyncio, os, sys
from coord import Agent
agent = Agent("asker")

@agent.on_reply
async def on_reply(message):
    print("found", message.reply_to, message.payload["code"], message.payload["receiver"]["status"], flush=True)

async def main():
    await agent.start()
    if len(sys.argv) > 1:
        print("got", await agent.request("answerer", timeout=float(sys.argv[1])), flush=True)
        await agent.stop()
    await agent.serve() if not sys.argv[1:] else None

asyncio.run(main())
"""
#: An agent that replies once there is a file.
ANSWERER = """
import asyncio, os, sys
from coord import Agent
agent = Agent("answerer")

@agent.on_request
async def answer(message):
    while not os.path.exists(sys.argv[1]):
        await asyncio.sleep(0.02)
    return "here"

agent.run()
"""


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with a registry and a router."""
    async with cell_processes(tmp_path) as built:
        await built.worker("registry")
        await built.worker("router")
        yield built


async def answerer(at: CellProcesses, go: Path) -> Process:
    """The agent that replies once ``go`` exists, when it is active."""
    process = at.start("answerer", "-c", ANSWERER, str(go))

    async def is_active() -> bool:
        assert process.alive, process.told()
        return bool(await at.redis.sismember(at.keys.of("agents:active"), "answerer"))

    await wait_until(is_active, "the answerer is active", 60)
    return process


async def open_request(at: CellProcesses) -> str:
    """The id of the only request, once it waits."""

    async def found() -> str:
        ids: list[bytes] = await at.redis.execute_command("ZRANGE", at.keys.of("requests"), 0, -1)
        return b" ".join(ids).decode()

    return await wait_until(found, "the request waits", 60)


@pytest.mark.guarantee("requester-restarts")
async def test_a_requester_that_is_killed_gets_its_timeout(at: CellProcesses, tmp_path: Path) -> None:
    """⚠ kill -9 while it waits; the router is killed as well, and the next one keeps the deadline."""
    await answerer(at, tmp_path / "never")
    first = at.start("asker", "-c", ASKER, "2")
    request_id = await open_request(at)
    first.kill()
    for worker in [one for one in at.processes if one.name.startswith("router")]:
        worker.kill()
    await at.worker("router")
    second = at.start("asker", "-c", ASKER)
    expected = f"found {request_id} request_timed_out active"
    await wait_until(lambda: expected in second.told(), "the requester finds the timeout", 60)
    record = await at.client.message(request_id)
    assert record.request == "timed_out"


@pytest.mark.guarantee("replies-in-time")
async def test_a_request_survives_a_server_that_stands_still(at: CellProcesses, tmp_path: Path) -> None:
    """⚠ SIGSTOP of the server for longer than the timeout: the clock of requests stands still as well."""
    go = tmp_path / "go"
    await answerer(at, go)
    asker = at.start("asker", "-c", ASKER, "3")
    await open_request(at)
    os.kill(at.server.pid, signal.SIGSTOP)
    try:
        begun = os.times().elapsed
        await wait_until(lambda: os.times().elapsed - begun > 3.6, "the server stands still for a while")
        go.touch()
    finally:
        os.kill(at.server.pid, signal.SIGCONT)
    await wait_until(lambda: "got here" in asker.told(), f"the reply counts\n{asker.told()}", 60)
    assert "request.timed_out" not in await events(at.client)


async def events(client: Client) -> list[str]:
    """The types of all events until now."""
    return [event.type async for event in client.events(since="0-0", follow=False)]
