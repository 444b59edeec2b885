"""Agents that speak only HTTP, with real gateways and workers: they poll, acknowledge and report, or are pushed to."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from coord.keys import CONSUMES
from tests.http import HttpAnswer, HttpCaller
from tests.ports import unused_ports
from tests.processes import CellProcesses, cell_processes
from tests.system.gateway_processes import PATIENT, gateway
from tests.waiting import wait_until

#: No heartbeat of these tests is missed on a slow machine, unless a test waits for that.
INTERVAL_S = 60.0


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with one worker of each kind that consumes facts."""
    async with cell_processes(tmp_path) as built:
        await asyncio.gather(*(built.worker(kind) for kind in CONSUMES))
        yield built


@pytest.fixture
async def http(at: CellProcesses, unused_port: int) -> HttpCaller:
    """A gateway of the cell."""
    caller = HttpCaller(unused_port)
    await gateway(at, caller, **PATIENT)
    return caller


def success(answer: HttpAnswer) -> Any:
    """The body of a 200 response."""
    assert answer.status == 200, answer.body
    assert answer.body["status"] == "success"
    return answer.body


def assert_error(answer: HttpAnswer, status: int, code: str) -> str:
    """An answer is this error; its message."""
    assert (answer.status, answer.body["code"]) == (status, code), answer.body
    return str(answer.body["message"])


async def register(http: HttpCaller, agent_id: str = "a1", **more: Any) -> None:
    """Register an agent that can do the work named like it."""
    body = {"agent_id": agent_id, "agent_type": "worker", "capabilities": [agent_id], "capacity": 2}
    success(await http.post("/agents/register", body | {"heartbeat_interval": INTERVAL_S} | more))


async def submit(http: HttpCaller, task_id: str, agent_id: str = "a1", **more: Any) -> None:
    """Submit a task for an agent."""
    data = {"task_id": task_id, "task_type": "work", "required_capabilities": [agent_id], "n": 7}
    success(await http.post("/tasks/submit", {"task_data": data} | more))


async def poll(http: HttpCaller, agent_id: str = "a1", wait_s: float = 30) -> list[dict[str, Any]]:
    """What a long poll returns."""
    found: list[dict[str, Any]] = success(await http.get(f"/v1/agents/{agent_id}/inbox?wait={wait_s}"))["entries"]
    return found


async def take(http: HttpCaller, agent_id: str = "a1") -> dict[str, Any]:
    """Poll until there is a task, and acknowledge it; the task."""
    (entry,) = await poll(http, agent_id)
    answer = success(await http.post(f"/agents/{agent_id}/inbox/ack", {"entries": [entry["ack"]]}))
    assert (answer["acknowledged"], answer["gone"]) == ([entry["ack"]], [])
    task: dict[str, Any] = entry["task"]
    return task


async def state(http: HttpCaller, task_id: str) -> str:
    """The state of a task."""
    return str(success(await http.get(f"/tasks/{task_id}"))["task"]["state"])


@pytest.mark.guarantee("http-agents-read")
async def test_an_agent_polls_works_and_completes(at: CellProcesses, http: HttpCaller) -> None:
    """⚠ Before its first poll it is listed and gets nothing, and its record says why; then it gets the task.

    What is not acknowledged comes again. A repeated acknowledgement and a repeated report are harmless; one with
    another lease is refused, and so is that of an attempt that ended otherwise.
    """
    await register(http)
    await submit(http, "t1")
    agent = success(await http.get("/agents/a1"))["agent"]
    assert (agent["status"], agent["deaf_reason"], agent["delivery"]) == ("active", "unpolled", "poll")
    assert agent["deaf_text"] == "it reads no inbox: poll /agents/a1/inbox or register endpoints.http"
    assert await state(http, "t1") == "queued"

    (entry,) = await poll(http)
    task = entry["task"]
    assert (entry["kind"], entry["lane"], task["task_id"], task["task_type"]) == ("task", "normal", "t1", "work")
    assert task["payload"]["n"] == 7
    assert [one["ack"] for one in await poll(http)] == [entry["ack"]]
    agent = success(await http.get("/agents/a1"))["agent"]
    assert (agent["deaf"], agent["deaf_text"]) == (False, "")

    for _ in range(2):
        answer = success(await http.post("/agents/a1/inbox/ack", {"entries": [entry["ack"], "low/1-1"]}))
        assert (answer["acknowledged"], answer["gone"]) == ([entry["ack"]], ["low/1-1"])
    assert await poll(http, wait_s=0) == []

    lease = {"lease": task["lease"]}
    for _ in range(2):
        success(await http.post("/tasks/t1/start", lease))
    assert await state(http, "t1") == "running"
    success(await http.post("/tasks/t1/progress", lease | {"progress": {"percent": 40}}))
    message = assert_error(await http.post("/tasks/t1/complete", {"lease": "0" * 16}), 409, "stale_lease")
    assert "lease" in message
    assert_error(await http.post("/tasks/t0/complete", lease), 404, "task_not_found")
    assert_error(await http.post("/tasks/t1/complete", {"lease": "x"}), 422, "body_invalid")
    for _ in range(2):
        answer = success(await http.post("/tasks/t1/complete", lease | {"result": {"pages": 7}}))
        assert answer["task_id"] == "t1"
    assert success(await http.get("/tasks/t1"))["task"]["result"] == {"pages": 7}
    assert "completed" in assert_error(await http.post("/tasks/t1/fail", lease), 409, "stale_lease")
    await at.assert_in_order(["t1"])


async def test_what_an_agent_gives_back_or_fails(at: CellProcesses, http: HttpCaller) -> None:
    """A release and a failure have their effect, once; the lease of the attempt before is refused with how it ended."""
    await register(http)
    await submit(http, "t1", retry={"max_attempts": 2, "backoff": 0})
    first = await take(http)
    body = {"lease": first["lease"], "reason": "not now"}
    success(await http.post("/tasks/t1/release", body))
    success(await http.post("/tasks/t1/release", body))
    second = await take(http)
    assert (first["attempt"], second["attempt"]) == (1, 2)
    message = assert_error(await http.post("/tasks/t1/complete", {"lease": first["lease"]}), 409, "stale_lease")
    assert message == "the attempt of this lease has ended before: released"

    body = {"lease": second["lease"], "code": "bad_page", "message": "page 7", "retryable": False}
    success(await http.post("/tasks/t1/fail", body))
    success(await http.post("/tasks/t1/fail", body))
    task = success(await http.get("/tasks/t1"))["task"]
    assert (task["state"], task["error"]["code"]) == ("failed", "bad_page")


async def test_a_start_claims_what_was_not_acknowledged(at: CellProcesses, http: HttpCaller) -> None:
    """A simple agent need not acknowledge: what it starts or completes is out of its inbox."""
    await register(http)
    await poll(http, wait_s=0)
    for number in (1, 2):
        await submit(http, f"t{number}")
        (entry,) = await poll(http)
        lease = {"lease": entry["task"]["lease"]}
        if number == 1:
            success(await http.post("/tasks/t1/start", lease))
            assert await poll(http, wait_s=0) == []
        success(await http.post(f"/tasks/t{number}/complete", lease))
        assert await poll(http, wait_s=0) == []
    await at.assert_in_order(["t1", "t2"])


async def test_messages_and_orders_come_in_the_same_inbox(at: CellProcesses, http: HttpCaller) -> None:
    """The highest lane first; a cancel is an order that names the lease; each is acknowledged alike."""
    await register(http)
    await poll(http, wait_s=0)
    await submit(http, "t1")
    task = await take(http)
    success(await http.post("/tasks/t1/start", {"lease": task["lease"]}))
    sent = await at.client.send("a1", {"text": "hello"}, priority="low")
    await at.client.cancel("t1", "no longer needed")
    order, message = await poll(http)
    assert (order["kind"], order["lane"], order["order"]["order"]) == ("order", "critical", "stop_task")
    assert (order["order"]["task_id"], order["order"]["lease"]) == ("t1", task["lease"])
    assert (message["kind"], message["lane"], message["message"]["id"]) == ("message", "low", sent.message_id)
    assert message["message"]["payload"] == {"text": "hello"}
    answer = success(await http.post("/agents/a1/inbox/ack", {"entries": [order["ack"], message["ack"]]}))
    assert answer["gone"] == []
    success(await http.post("/tasks/t1/release", {"lease": task["lease"]}))
    assert await state(http, "t1") == "cancelled"
    record = await at.client.message(sent.message_id)
    assert record.status == "read"


@pytest.mark.guarantee("killed-gateway")
async def test_a_killed_gateway_loses_nothing_and_another_goes_on(at: CellProcesses, http: HttpCaller) -> None:
    """⚠ One gateway is killed while it waits for an entry, and after it has delivered one: the other has both."""
    other = HttpCaller(unused_ports(1)[0])
    process = await gateway(at, other, **PATIENT)
    await register(other)
    waiting = asyncio.create_task(other.get("/agents/a1/inbox?wait=30"))
    await wait_until(lambda: is_placeable(at), "it is placeable")
    process.kill()
    assert (await waiting).status == 0
    await submit(http, "t1")
    process = await gateway(at, other, **PATIENT)
    (entry,) = await poll(other)
    process.kill()
    (again,) = await poll(http)
    assert again["ack"] == entry["ack"]
    success(await http.post("/tasks/t1/complete", {"lease": again["task"]["lease"]}))
    await at.assert_in_order(["t1"])


async def test_two_gateways_wake_the_polls_of_one_agent(at: CellProcesses, http: HttpCaller) -> None:
    """A poll at each of them sees the task; only one attempt of it is made."""
    other = HttpCaller(unused_ports(1)[0])
    await gateway(at, other, **PATIENT)
    await register(http)
    polls = [asyncio.create_task(poll(caller)) for caller in (http, other)]
    await wait_until(lambda: is_placeable(at), "it is placeable")
    await submit(http, "t1")
    (first,), (second,) = await asyncio.gather(*polls)
    assert first["ack"] == second["ack"]
    success(await other.post("/tasks/t1/complete", {"lease": first["task"]["lease"]}))
    success(await http.post("/tasks/t1/complete", {"lease": second["task"]["lease"]}))
    await at.assert_in_order(["t1"])


@pytest.mark.guarantee("http-agents-read")
async def test_one_that_is_silent_loses_what_it_holds(at: CellProcesses, http: HttpCaller) -> None:
    """⚠ It takes a task and neither polls nor sends heartbeats: the task goes to another agent that polls."""
    await register(http, heartbeat_interval=0.3)
    await register(http, "a2", capabilities=["a1"], heartbeat_interval=60, weight=0)
    await poll(http, wait_s=0)
    await submit(http, "t1", retry={"max_attempts": 3, "backoff": 0})
    first = await take(http)
    polling = asyncio.create_task(poll(http, "a2"))
    (entry,) = await polling
    assert entry["task"]["task_id"] == "t1"
    assert_error(await http.post("/tasks/t1/complete", {"lease": first["lease"]}), 409, "stale_lease")
    success(await http.post("/tasks/t1/complete", {"lease": entry["task"]["lease"]}))
    task = success(await http.get("/tasks/t1"))["task"]
    assert (task["agent_id"], [one["how"] for one in task["attempts"]]) == ("a2", ["agent_lost"])


async def test_a_long_poll_keeps_its_agent_alive(at: CellProcesses, http: HttpCaller) -> None:
    """A poll that waits for longer than the patience of its agent sends the heartbeats meanwhile."""
    await register(http, heartbeat_interval=0.2)
    assert await poll(http, wait_s=1.5) == []
    agent = success(await http.get("/agents/a1"))["agent"]
    assert (agent["status"], agent["deaf"]) == ("active", False)


async def test_who_may_not_poll(at: CellProcesses, http: HttpCaller) -> None:
    """An unknown agent, one that reads from Redis, and a wrong query are refused."""
    assert_error(await http.get("/agents/nobody/inbox"), 404, "agent_not_found")
    await at.agent("sdk")
    assert "Redis" in assert_error(await http.get("/agents/sdk/inbox"), 409, "inbox_elsewhere")
    await register(http)
    for query in ("wait=-1", "wait=61", "limit=0", "limit=x"):
        assert_error(await http.get(f"/agents/a1/inbox?{query}"), 422, "query_invalid")
    for entries in ([], ["x"], ["normal/1-x"], ["slow/1-1"], ["normal/1-1/t1"]):
        answer = await http.post("/agents/a1/inbox/ack", {"entries": entries})
        assert_error(answer, 422, "body_invalid")


async def test_an_inbox_needs_the_token_of_its_agent(at: CellProcesses, http: HttpCaller) -> None:
    """⚠ Where the cell requires tokens: also for a caller that does not wait, and while no registry answers."""
    for process in at.processes:
        if process.name.startswith("registry"):
            process.send(signal.SIGTERM)
    registry = await at.worker("registry", COORD_REQUIRE_TOKENS="on")
    token = await at.client.admin.enrol("a1", timeout=30)
    bearer = {"Authorization": f"Bearer {token}"}
    body = {"agent_id": "a1", "agent_type": "worker", "capabilities": ["a1"], "heartbeat_interval": INTERVAL_S}
    success(await http.post("/agents/register", body, **bearer))
    success(await http.get("/agents/a1/inbox", **bearer))
    await submit(http, "t1")
    await http.post(
        "/messages/send", {"receiver_id": "a1", "message_type": "direct", "payload": {}, "message_id": "m1"}
    )
    wrong = {"Authorization": "Bearer " + "x" * len(token)}
    for headers, code in ((wrong, "token_invalid"), ({}, "token_missing")):
        for more in ({}, {"Prefer": "respond-async"}):
            assert (await http.get("/agents/a1/inbox", **headers, **more)).body["code"] == code
            ack = {"entries": ["normal/1-1"]}
            assert (await http.post("/agents/a1/inbox/ack", ack, **headers, **more)).body["code"] == code
            assert (await http.post("/messages/m1/read", {}, **headers, **more)).body["code"] == code
    other = HttpCaller(unused_ports(1)[0])
    await gateway(at, other, COORD_GATEWAY_WAIT_S="0.5")
    registry.send(signal.SIGSTOP)
    answer = await other.get("/agents/a1/inbox", **wrong, Prefer="respond-async")
    registry.send(signal.SIGCONT)
    assert_error(answer, 503, "server_unavailable")
    entries = success(await http.get("/agents/a1/inbox?wait=30", **bearer))["entries"]
    assert [one["kind"] for one in entries] == ["task", "message"]


async def test_a_revoked_token_ends_with_the_poll(at: CellProcesses, http: HttpCaller) -> None:
    """⚠ The heartbeats of a waiting poll are not answered, so they do not prolong what is known of its token."""
    for process in at.processes:
        if process.name.startswith("registry"):
            process.send(signal.SIGTERM)
    await at.worker("registry", COORD_REQUIRE_TOKENS="on")
    bearer = {"Authorization": f"Bearer {await at.client.admin.enrol('a1', timeout=30)}"}
    body = {"agent_id": "a1", "agent_type": "worker", "heartbeat_interval": 1}
    success(await http.post("/agents/register", body, **bearer))
    success(await http.get("/agents/a1/inbox", **bearer))
    polling = asyncio.create_task(http.get("/agents/a1/inbox?wait=2.2", **bearer))
    await at.client.admin.revoke("a1", timeout=30)
    await polling
    assert_error(await http.get("/agents/a1/inbox", **bearer), 403, "token_invalid")


async def is_placeable(at: CellProcesses, agent_id: str = "a1") -> bool:
    """Whether an agent may get work."""
    return bool(await at.redis.sismember(at.keys.of("agents:active"), agent_id))


async def test_the_statistics_have_the_weights_of_agents_that_may_get_work(at: CellProcesses, http: HttpCaller) -> None:
    """Those that are not 1; not that of an agent that has not polled."""
    for agent_id, weight in (("a1", 3.0), ("a2", 1.0), ("a3", 0.5), ("a4", 7.0)):
        await register(http, agent_id, weight=weight)
        if agent_id != "a4":
            assert await poll(http, agent_id, 0) == []
            await wait_until(partial(is_placeable, at, agent_id), "the agent may get work")
    for path in ("/load-balancer/stats", "/tasks/status"):
        stats = success(await http.get(path))["stats"]
        assert stats.get("load_balancer_stats", stats)["agent_weights"] == {"a1": 3.0, "a3": 0.5}


async def test_a_gateway_that_shuts_down_answers_its_polls(at: CellProcesses, http: HttpCaller) -> None:
    """At once, with no entries: the agent polls again, at another gateway."""
    other = HttpCaller(unused_ports(1)[0])
    process = await gateway(at, other, **PATIENT)
    await register(other)
    waiting = asyncio.create_task(poll(other, wait_s=60))
    await wait_until(lambda: is_placeable(at), "it is placeable")
    process.send(signal.SIGTERM)
    assert await waiting == []
    assert await process.ended() == 0
