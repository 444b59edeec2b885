"""Tasks that are pushed to the HTTP endpoints of agents, by real push workers."""

from __future__ import annotations

import asyncio
import json
import signal
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import web

from coord.keys import CONSUMES, PUSH
from coord.models.agents import AgentType, InboxDelivery
from coord.models.facts import AgentRegistered, TaskCompleted
from coord.models.tasks import TaskRecord
from tests.ports import unused_ports
from tests.processes import CellProcesses, Process, cell_processes
from tests.waiting import wait_until

Handle = Callable[[dict[str, Any]], Awaitable[web.Response]]
#: What takes 5 s in earnest.
SILENCE_S = "0.5"


class PushedService:
    """An HTTP service that is an agent: it notes what is pushed to it, and responds as its test says."""

    def __init__(self, agent_id: str, port: int) -> None:
        self.agent_id = agent_id
        self.url = f"http://127.0.0.1:{port}"
        self.port = port
        self.pushed: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.handle: Handle = completes
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        """Listen."""
        app = web.Application()
        app.router.add_post("/tasks/execute", self._execute)
        self._runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", self.port).start()

    async def stop(self) -> None:
        """Listen no more."""
        if self._runner is not None:
            await self._runner.cleanup()

    async def _execute(self, request: web.Request) -> web.Response:
        message = await request.json()
        self.pushed.append(message)
        self.headers.append(dict(request.headers))
        return await self.handle(message)

    @property
    def tasks(self) -> list[str]:
        """The tasks that were pushed, in order."""
        return [one["payload"]["task_id"] for one in self.pushed]


async def completes(message: dict[str, Any]) -> web.Response:
    """Complete it at once."""
    return web.json_response({"status": "success", "result": {"n": message["payload"]["task_data"]["n"] + 1}})


class World:
    """A cell, and services in this process."""

    def __init__(self, at: CellProcesses) -> None:
        self.at = at
        self.services: list[PushedService] = []

    async def service(self, agent_id: str, *, listens: bool = True, **more: Any) -> PushedService:
        """A service that is registered as an agent for the work that is named like it."""
        service = PushedService(agent_id, unused_ports(1)[0])
        self.services.append(service)
        if listens:
            await service.start()
        more = {"capabilities": (agent_id,), "endpoints": {"http": service.url}, "capacity": 4} | more
        await self.register(agent_id, **more)
        return service

    async def register(self, agent_id: str, **more: Any) -> None:
        """Register an agent whose tasks are pushed, as the gateway does."""
        fact = AgentRegistered(agent_id, AgentType.WORKER, delivery=InboxDelivery.PUSH, **more)
        handle = await self.at.client.connection.append_fact("in:registry", fact, wants_answer=True)
        await handle.accepted(30)

    async def submit(self, agent_id: str, *task_ids: str) -> None:
        """Submit tasks that an agent can do, with one attempt."""
        for task_id in task_ids:
            await self.at.client.submit(
                "work",
                {"n": 1},
                task_id=task_id,
                requirements={"capabilities": [agent_id]},
                retry={"max_attempts": 1},
                notify=False,
            )

    async def reaches(self, task_id: str, state: str) -> TaskRecord:
        """The record of a task, once it is in a state."""

        async def reached() -> bool:
            (task,) = await self.at.client.tasks([task_id])
            return task is not None and task.state == state

        await wait_until(reached, f"{task_id} is {state}", 30)
        return await self.at.client.task(task_id)


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    """A cell with one worker of each kind that consumes facts; push workers are of each test."""
    async with cell_processes(tmp_path) as built:
        await asyncio.gather(*(built.worker(kind) for kind in CONSUMES))
        world = World(built)
        yield world
        await asyncio.gather(*(service.stop() for service in world.services))


async def push_worker(world: World, name: str = "push-1", **environ: str) -> Process:
    """A push worker that waits briefly for endpoints."""
    return await world.at.worker(PUSH, name, **{"COORD_PUSH_TIMEOUT_S": SILENCE_S, **environ})


@pytest.mark.guarantee("push-addresses")
async def test_each_response_has_its_effect(world: World) -> None:
    """⚠ A result completes, 202 is reported later, and an error, a redirect or silence fails the attempt.

    A service that does not listen gets its task back later; one without a handler never.
    """
    assert (await world.at.client.stats()).workers == dict.fromkeys(CONSUMES, 1)
    await push_worker(world)
    assert (await world.at.client.stats()).workers == {**dict.fromkeys(CONSUMES, 1), PUSH: 1}
    redirects_to = await world.service("victim")

    async def later(_: dict[str, Any]) -> web.Response:
        return web.Response(status=202)

    async def fails(_: dict[str, Any]) -> web.Response:
        return web.json_response({"error": "no"}, status=500)

    async def redirects(_: dict[str, Any]) -> web.Response:
        raise web.HTTPTemporaryRedirect(f"{redirects_to.url}/tasks/execute")

    async def is_silent(_: dict[str, Any]) -> web.Response:
        await asyncio.sleep(60)
        return web.Response()

    async def says_nothing(_: dict[str, Any]) -> web.Response:
        return web.json_response({"status": "success"})

    handlers: dict[str, Handle] = {
        "done": completes, "later": later, "fails": fails, "redirects": redirects, "silent": is_silent,
        "empty": says_nothing,
    }  # fmt: skip
    for name, handle in handlers.items():
        service = await world.service(name)
        service.handle = handle
        await world.submit(name, f"t-{name}")

    assert (await world.reaches("t-done", "completed")).result == {"n": 2}
    service = world.services[1]
    (message,) = service.pushed
    record = await world.at.client.task("t-done")
    assert message["id"] == message["payload"]["lease"] == record.lease == service.headers[0]["Idempotency-Key"]
    assert (message["message_type"], message["sender_id"], message["receiver_id"]) == (
        "task_assignment", "coordinator", "done",
    )  # fmt: skip
    assert (message["payload"]["task_type"], message["payload"]["attempt"]) == ("work", 1)

    codes: dict[str, Any] = {}
    for name in ("fails", "redirects", "silent", "empty"):
        task = await world.reaches(f"t-{name}", "failed")
        assert task.error is not None
        codes[name] = task.error.code
    assert codes == {
        "fails": "push_failed", "redirects": "push_failed", "silent": "push_timed_out", "empty": "push_failed",
    }  # fmt: skip
    assert redirects_to.pushed == []

    task = await world.reaches("t-later", "running")
    assert await world.at.redis.xlen(world.at.keys.inbox("later", "normal")) == 0
    report = await world.at.client.connection.append_fact(
        "in:reports", completed("t-later", str(task.lease), {"by": "report"}), wants_answer=True
    )
    await report.accepted(30)
    assert (await world.reaches("t-later", "completed")).result == {"by": "report"}
    await world.at.settle_down()


async def test_a_service_that_is_away_gets_its_task_when_it_is_back(world: World) -> None:
    """⚠ Its task is given back and no attempt is counted; it gets nothing until it responds, without a heartbeat."""
    await push_worker(world)
    service = await world.service("a1", listens=False)
    await world.submit("a1", "t1")

    async def is_suspended() -> bool:
        return bool(await world.at.redis.hexists(world.at.keys.of("suspended"), "a1"))

    await wait_until(is_suspended, "it is suspended", 30)
    task = await world.at.client.task("t1")
    assert (task.failures, task.attempts[0].code) == (0, "unreachable")
    await service.start()
    assert (await world.reaches("t1", "completed")).failures == 0
    await world.at.assert_in_order(["t1"])


@pytest.mark.guarantee("push-workers")
async def test_a_slow_agent_delays_no_other(world: World) -> None:
    """⚠ One that holds all connections that it may have is silent; another completes meanwhile."""
    await push_worker(world, COORD_PUSH_TIMEOUT_S="60", COORD_PUSH_CONNECTIONS="20")
    slow = await world.service("slow", capacity=50)
    quick = await world.service("quick")
    opened = asyncio.Event()

    async def waits(message: dict[str, Any]) -> web.Response:
        await opened.wait()
        return await completes(message)

    slow.handle = waits
    ids = [f"s{number}" for number in range(10)]
    await world.submit("slow", *ids)
    await wait_until(lambda: len(slow.pushed) == 2, "it has a tenth of the connections", 30)
    await world.submit("quick", "q1")
    await world.reaches("q1", "completed")
    assert len(slow.pushed) == 2
    opened.set()
    await world.at.all_end(11)
    assert Counter(slow.tasks) == Counter(ids)
    assert quick.tasks == ["q1"]
    await world.at.assert_in_order([*ids, "q1"])


@pytest.mark.guarantee("push-workers")
async def test_a_killed_worker_loses_nothing(world: World) -> None:
    """⚠ It is killed with tasks under way: another worker pushes them again, under the same leases."""
    first = await push_worker(world, COORD_PUSH_TIMEOUT_S="60")
    service = await world.service("a1")
    opened = asyncio.Event()

    async def waits(message: dict[str, Any]) -> web.Response:
        await opened.wait()
        return await completes(message)

    service.handle = waits
    ids = ["t1", "t2", "t3"]
    await world.submit("a1", *ids)
    await wait_until(lambda: len(service.pushed) == 3, "all are under way", 30)
    first.kill()
    opened.set()
    await push_worker(world, "push-2")
    await world.at.all_end(3)
    leases = Counter(one["id"] for one in service.pushed)
    assert set(leases.values()) == {2}, "each was pushed by both"
    await world.at.assert_in_order(ids)


@pytest.mark.guarantee("push-workers")
async def test_two_workers_share_the_agents_and_a_shutdown_drops_nothing(world: World) -> None:
    """Every task of many agents is done, while one of two workers ends in between."""
    one, _ = await asyncio.gather(push_worker(world, "push-1"), push_worker(world, "push-2"))
    for number in range(8):
        await world.service(f"a{number}")
    ids = [f"t{number}-{part}" for part in range(5) for number in range(8)]
    for task_id in ids[:20]:
        await world.submit(f"a{task_id[1]}", task_id)
    one.send(signal.SIGTERM)
    for task_id in ids[20:]:
        await world.submit(f"a{task_id[1]}", task_id)
    assert await one.ended() == 0
    await world.at.all_end(len(ids))
    await world.at.assert_in_order(ids)


@pytest.mark.guarantee("push-addresses")
async def test_private_addresses_are_refused_with_security(world: World) -> None:
    """⚠ Whatever names or forms they have; a network that a setting allows is not."""
    worker = await push_worker(world, COORD_GATEWAY_SECURITY="true")
    service = await world.service("literal")
    by_name = await world.service("name", endpoints={"http": f"http://localhost:{service.port}"})
    mapped = await world.service("mapped", endpoints={"http": f"http://[::ffff:127.0.0.1]:{service.port}"})
    names = ("literal", "name", "mapped")
    for name in names:
        await world.submit(name, f"t-{name}")

    async def refused() -> bool:
        records = await world.at.client.tasks(f"t-{name}" for name in names)
        return all(one is not None and one.attempts and "is not public" in one.attempts[0].message for one in records)

    await wait_until(refused, "all are refused", 30)
    assert service.pushed == by_name.pushed == mapped.pushed == []
    worker.send(signal.SIGTERM)
    await push_worker(world, "push-2", COORD_GATEWAY_SECURITY="true", COORD_PUSH_NETWORKS="127.0.0.0/8")
    for name in names:
        await world.register(name, capabilities=(name,), endpoints={"http": service.url}, capacity=4)
    await world.at.all_end(3)
    assert sorted(service.tasks) == sorted(f"t-{name}" for name in names)


async def test_messages_go_to_an_endpoint_for_them(world: World) -> None:
    """In their order; one that is not accepted stays in the inbox, and is sent again."""
    got: list[Any] = []
    app = web.Application()

    async def take(request: web.Request) -> web.Response:
        got.append(await request.json())
        return web.Response(status=204)

    app.router.add_post("/inbox", take)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    (port,) = unused_ports(1)
    await web.TCPSite(runner, "127.0.0.1", port).start()
    try:
        await push_worker(world)
        service = await world.service("a1")
        endpoints = {"http": service.url, "messages": f"http://127.0.0.1:{port}/inbox"}
        await world.register("a1", capabilities=("a1",), endpoints=endpoints)
        sent = [await world.at.client.send("a1", {"n": number}) for number in range(3)]
        await wait_until(lambda: len(got) == 3, "all are delivered", 30)
        assert [one["id"] for one in got] == [one.message_id for one in sent]
        assert [one["payload"] for one in got] == [{"n": 0}, {"n": 1}, {"n": 2}]

        async def read() -> bool:
            return not await world.at.redis.exists(world.at.keys.inbox("a1", "normal")) or not (
                await world.at.redis.xlen(world.at.keys.inbox("a1", "normal"))
            )

        await wait_until(read, "all are read")
    finally:
        await runner.cleanup()


def completed(task_id: str, lease: str, result: Any) -> Any:
    """A report of a result."""
    return TaskCompleted(task_id, lease, msgspec.Raw(json.dumps(result).encode()))
