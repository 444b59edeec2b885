"""Connections that are reset, many times: no process ends, no agent goes deaf, nothing is buried or left undone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import uvloop

from coord import Client
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.errors import CoordError, ServerUnavailable
from coord.models.tasks import TaskState
from tests.http import HttpCaller
from tests.ports import unused_port
from tests.processes import NAMESPACE, CellProcesses, Process, cell_processes
from tests.system.failing_disk import accept_writes, refuse_writes
from tests.system.faulty_proxy import FaultyProxy, faulty_proxy
from tests.system.gateway_processes import PATIENT, gateway, lone_gateway
from tests.waiting import wait_until

#: How often all connections are reset, half of the times in the middle of a write.
RESETS = 40


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.fixture
async def proxy(at: CellProcesses) -> AsyncIterator[FaultyProxy]:
    """A proxy before its server."""
    async with faulty_proxy(at.server) as proxy:
        yield proxy


@asynccontextmanager
async def resetting(proxy: FaultyProxy, *, every_s: float = 0.05) -> AsyncIterator[None]:
    """Reset all connections again and again, at rest and amid a write in turn."""

    async def go_on() -> None:
        while True:
            proxy.reset_all(after=7 if proxy.resets % 2 else None)
            await asyncio.sleep(every_s)

    task = asyncio.create_task(go_on())
    try:
        yield
    finally:
        await cancel_and_wait(task)
        for connection in proxy.connections:
            connection.resets_after = None


def assert_unharmed(*people: Process) -> None:
    """All run, and none has met with what it did not expect."""
    for one in people:
        assert one.alive, one.told()
        text = one.log.read_text()
        for word in ("RuntimeError", "Traceback", "background.failed", "never retrieved", "entry.buried", "sdk.defect"):
            assert word not in text, f"{word} in the log of {one.name}:\n{one.told()}"


@pytest.mark.guarantee("connection-resets")
async def test_no_process_ends_and_no_agent_goes_deaf(at: CellProcesses, proxy: FaultyProxy) -> None:
    """Workers and agents whose connections are reset under load, at rest and amid writes, do all of it all the same."""
    through = {"COORD_REDIS_URL": proxy.url}
    workers = [await at.worker(kind, **through) for kind in ("registry", "distributor", "distributor", "router")]
    agents = [await at.agent(f"a{number}", url=proxy.url) for number in range(3)]
    done = 0
    async with resetting(proxy):
        while proxy.resets < RESETS * 10:
            done += len(await at.submit(10, 0.01))
            await asyncio.sleep(0.2)
    await at.all_end(done)
    # Each agent still hears: it gets its share of what comes now.
    for agent in agents:
        specs = [{"task_type": "echo", "payload": {"s": 0}, "requirements": {"agent_id": agent.name}}]
        (handle,) = await at.client.submit_many(specs)
        assert (await handle.result(30))["by"] == agent.name
        done += 1
    assert_unharmed(*workers, *agents)
    assert await at.redis.exists(at.keys.of("dead:in")) == 0
    assert await at.count(TaskState.COMPLETED) == done


@pytest.mark.guarantee("errors-of-calls")
def test_a_client_s_calls_end_well_or_say_that_redis_is_away(tmp_path: Path) -> None:
    """Submissions, reads and results on uvloop: an answer, or an error of coord's; nothing else leaks."""

    async def work() -> None:
        async with cell_processes(tmp_path) as at, faulty_proxy(at.server) as proxy:
            for kind in ("registry", "distributor"):
                await at.worker(kind)
            await at.agent("a0")
            faults: list[object] = []
            asyncio.get_running_loop().set_exception_handler(lambda _loop, context: faults.append(context))
            settings = Settings(namespace=NAMESPACE)
            outcomes: list[str] = []

            async def call(client: Client, number: int) -> None:
                try:
                    task_id = f"t{number}"
                    handle = await client.submit("echo", {"s": 0}, task_id=task_id, capabilities=["echo"])
                    await handle.result(60)
                    await client.task(task_id)
                    await client.agents()
                    await client.counters()
                except CoordError as error:
                    outcomes.append(error.code)
                else:
                    outcomes.append("ok")

            async with Client(proxy.url, settings=settings) as client:
                async with resetting(proxy):
                    for number in range(0, 200, 10):
                        await asyncio.gather(*(call(client, one) for one in range(number, number + 10)))
                await call(client, 1_000)
            assert proxy.resets >= 20
            assert set(outcomes) <= {"ok", ServerUnavailable.code}
            assert outcomes[-1] == "ok"
            assert outcomes.count("ok") > len(outcomes) / 2
            assert faults == []

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(work())


@pytest.mark.guarantee("connection-resets")
async def test_the_gateway_answers_after_its_idle_connection_was_reset(at: CellProcesses, proxy: FaultyProxy) -> None:
    """The first request as well, every time."""
    for kind in ("registry", "distributor"):
        await at.worker(kind)
    await at.agent("a0")
    http = HttpCaller(unused_port())
    process = await gateway(at, http, COORD_REDIS_URL=proxy.url, **PATIENT)
    for _ in range(20):
        assert (await http.get("/agents/a0")).status == 200
        proxy.reset_all()
    assert_unharmed(process)


@pytest.mark.guarantee("redis-busy-at-start")
async def test_a_gateway_finds_a_server_that_refuses_writes_or_resets_at_first(
    at: CellProcesses, proxy: FaultyProxy
) -> None:
    """A server with a failing disk answers even PING with MISCONF; when it is well again, so is the gateway."""
    await at.worker("registry")
    await at.agent("a0")
    await refuse_writes(at.server, at.redis)
    http = HttpCaller(unused_port())
    process = await lone_gateway(at, http, COORD_REDIS_URL=proxy.url, **PATIENT)
    assert not await http.is_ready()
    async with resetting(proxy, every_s=0.02):
        await asyncio.sleep(0.5)
    await accept_writes(at.server, at.redis)
    await wait_until(http.is_ready, "the gateway has found Redis", 30)
    assert (await http.get("/agents/a0")).status == 200
    assert_unharmed(process)
