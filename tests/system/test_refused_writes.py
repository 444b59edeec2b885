"""A server that refuses writes, or everything for a while: what works goes on, the rest waits or is one line."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.exceptions import RedisError, ResponseError

from coord import Client
from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from coord.errors import ServerUnavailable
from coord.models.agents import AgentStatus
from coord.queries import get_write_refusal
from tests.http import HttpCaller
from tests.ports import unused_port
from tests.processes import AGENT, NAMESPACE, CellProcesses, cell_processes
from tests.system.failing_disk import accept_writes, refuse_writes
from tests.system.gateway_processes import PATIENT, lone_gateway
from tests.waiting import wait_until


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of its own, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def _coord(at: CellProcesses, *arguments: str) -> tuple[int, str, str]:
    """Run a command of ``coord``: exit code, output, errors."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coord.cli", *arguments, "--redis-url", at.server.url, "--namespace", NAMESPACE),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode(), err.decode()


async def test_commands_that_read_work_and_others_are_one_line(at: CellProcesses) -> None:
    """A failing disk is no reason not to see what there is; `coord ps` warns of it."""
    assert (await _coord(at, "tasks", "submit", "echo"))[0] == 3  # it waits for a distributor
    await refuse_writes(at.server, at.redis)
    for line in ("tasks list", "agents list", "queues", "fsck"):
        code, _, err = await _coord(at, *line.split())
        assert (line, code, err) == (line, 0, "no task exists\n" if line == "tasks list" else "")
    code, _, err = await _coord(at, "ps")
    assert code == 1
    assert "warning: Redis refuses writes, so nothing is submitted, placed or reported: MISCONF " in err
    for line in ("tasks submit echo", "tasks cancel t1", "settings set strategy random"):
        code, out, err = await _coord(at, *line.split())
        assert (line, code, out) == (line, 2, "")
        assert err.startswith("coord: Redis takes no writes for now: MISCONF ")
        assert err.count("\n") == 1


async def test_a_client_opens_and_reads_and_a_write_is_an_error(at: CellProcesses) -> None:
    """It can do all of it again once the disk works."""
    await refuse_writes(at.server, at.redis)
    async with Client(at.server.url, settings=Settings(namespace=NAMESPACE), reach_s=5) as client:
        assert await client.agents() == []
        with pytest.raises(ServerUnavailable, match="takes no writes for now: MISCONF"):
            await client.submit("echo")
        assert (await get_write_refusal(client.connection.redis)).startswith("MISCONF ")
        await accept_writes(at.server, at.redis)
        await client.submit("echo")
        assert await get_write_refusal(client.connection.redis) == ""


async def test_workers_and_agents_that_start_meanwhile_wait(at: CellProcesses) -> None:
    """They log the reason once, and work when the disk does."""
    await refuse_writes(at.server, at.redis)
    worker = at.start("registry", "-m", "workers", "registry", "--name", "r1")
    agent = at.start("a0", "-c", AGENT, "a0", "1")
    await wait_until(lambda: "MISCONF" in agent.log.read_text(), "the agent says why it waits", 60)
    await wait_until(lambda: "worker.interrupted" in worker.log.read_text(), "the worker says that it waits", 60)
    await accept_writes(at.server, at.redis)

    async def active() -> bool:
        assert worker.alive, worker.told()
        assert agent.alive, agent.told()
        return [one.agent_id for one in await at.client.agents() if one.status is AgentStatus.ACTIVE] == ["a0"]

    await wait_until(active, "the agent is active", 60)
    for process in (worker, agent):
        assert "Traceback" not in process.log.read_text()


async def test_a_server_in_an_endless_script_is_waited_for(at: CellProcesses) -> None:
    """A command gives up with one line and exit code 2; a worker and an agent log the answer, and work afterwards."""
    await at.redis.config_set("busy-reply-threshold", 1)
    async with connect_worker(at.server.url, Settings()) as other:
        looping = asyncio.ensure_future(other.execute_command("EVAL", "while true do end", 0))

        async def is_busy() -> bool:
            try:
                await at.redis.ping()
            except ResponseError as error:
                return str(error).startswith("BUSY")
            return False

        await wait_until(is_busy, "the server is busy")
        worker = at.start("registry", "-m", "workers", "registry", "--name", "r1")
        agent = at.start("a0", "-c", AGENT, "a0", "1")
        await wait_until(lambda: "BUSY" in worker.log.read_text(), "the worker logs why it waits", 60)
        await wait_until(lambda: "BUSY" in agent.log.read_text(), "the agent logs why it waits", 60)
        lines = ("tasks list", "tasks submit echo", "ps")
        for code, out, err in await asyncio.gather(*(_coord(at, *line.split()) for line in lines)):
            assert (code, out) == (2, "")
            waiting, error = err.splitlines()
            assert waiting.startswith("waiting up to ")
            assert error.startswith("coord: Redis at ")
            assert "was not usable within 5 s: BUSY " in error
            assert error.endswith("Try again later")
        await at.redis.script_kill()
        with pytest.raises(RedisError):
            await looping
    await wait_until(lambda: _is_active(at), "the agent is active", 60)
    for process in (worker, agent):
        assert process.alive, process.told()
        assert "Traceback" not in process.log.read_text()


async def _is_active(at: CellProcesses) -> bool:
    return [one.agent_id for one in await at.client.agents() if one.status is AgentStatus.ACTIVE] == ["a0"]


async def test_health_is_not_well_while_writes_are_refused(at: CellProcesses) -> None:
    """Reads are answered, health names the reason, and both are well again without a restart."""
    for kind in ("registry", "distributor", "router"):
        await at.worker(kind, COORD_PRESENCE_TTL_S="600")
    http = HttpCaller(unused_port())
    await lone_gateway(at, http, **PATIENT, COORD_PRESENCE_TTL_S="600")
    await wait_until(http.is_healthy, "all is well", 60)
    await refuse_writes(at.server, at.redis)
    health = await http.get("/health")
    assert (health.status, health.body["status"]) == (503, "unhealthy")
    checks = health.body["checks"]
    assert checks["redis"]["status"] == "failed"
    assert checks["redis"]["message"].startswith("it refuses writes: MISCONF ")
    assert {checks[kind]["status"] for kind in ("registry", "distributor", "router")} == {"ok"}
    assert not await http.is_ready()
    assert (await http.get("/tasks/t1")).status == 404
    await accept_writes(at.server, at.redis)
    await wait_until(http.is_healthy, "all is well again", 60)


async def test_a_full_server_and_a_replica_refuse_writes(tmp_path: Path) -> None:
    """Both answer PING, so their memory and their role are looked at."""
    server = EmbeddedServer.start(tmp_path / "data")
    try:
        async with connect_worker(server.url, Settings()) as redis:
            assert await get_write_refusal(redis) == ""
            await redis.config_set("maxmemory", "1mb")
            assert await get_write_refusal(redis) == "its memory is full"
            await redis.config_set("maxmemory", "0")
            await redis.execute_command("REPLICAOF", "127.0.0.1", str(unused_port()))
            assert await get_write_refusal(redis) == "it is a read-only replica"
    finally:
        server.stop()


async def test_an_embedded_server_that_refuses_writes_is_found_and_used(tmp_path: Path) -> None:
    """It answers PING with an error, and has loaded its data all the same."""
    server = EmbeddedServer.start(tmp_path / "data")
    try:
        async with connect_worker(server.url, Settings()) as redis:
            await refuse_writes(server, redis)
        found = await asyncio.to_thread(EmbeddedServer.start, tmp_path / "data")
        assert (found.pid, found.adopted) == (server.pid, True)
    finally:
        server.stop()
