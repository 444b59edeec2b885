"""The gateway as a process of its own: real HTTP, a real server, real workers, and what the world does to them."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from coord.keys import CONSUMES
from coord.models.tasks import TaskState
from tests.http import HttpAnswer, HttpCaller
from tests.ports import unused_port
from tests.processes import CellProcesses, Process, cell_processes
from tests.system.gateway_processes import PATIENT, gateway, lone_gateway
from tests.waiting import wait_until

EVERYWHERE = "0.0.0.0"  # noqa: S104 -- what is refused
ECHO = {"task_type": "echo", "s": 0, "required_capabilities": ["echo"]}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server of this test's own."""
    async with cell_processes(tmp_path) as built:
        yield built


@pytest.fixture
def http(unused_port: int) -> HttpCaller:
    """A caller of the gateway that the test starts."""
    return HttpCaller(unused_port)


async def full_house(at: CellProcesses, http: HttpCaller) -> Process:
    """A gateway and one worker of each kind."""
    process, *_ = await asyncio.gather(gateway(at, http, **PATIENT), *(at.worker(kind) for kind in CONSUMES))
    await wait_until(http.is_healthy, "all is healthy", 20)
    return process


def assert_written(answer: HttpAnswer, field: str) -> str:
    """A write was taken by its worker, a moment ago; what ``field`` holds, which is not its time."""
    assert answer.status == 200, answer.body
    assert answer.body["status"] == "success"
    assert answer.body["message"]
    moment = datetime.fromisoformat(next(value for name, value in answer.body.items() if name.endswith("_at")))
    assert moment.utcoffset() == timedelta(0)
    return str(answer.body[field])


ANYWHERE = "/load-balancer/strategy"


async def test_the_strategy_is_changed_over_http(at: CellProcesses, http: HttpCaller) -> None:
    """Of the cell and of a type, in any case; modifiers too; the history says from where; a DELETE undoes it."""
    await full_house(at, http)
    assert (await http.get(ANYWHERE)).body["strategy"] == "least_connections"
    assert (await http.get(ANYWHERE)).body["updated_at"] is None
    answer = await http.put(f"{ANYWHERE}?strategy=ROUND_ROBIN")
    assert assert_written(answer, "strategy") == "round_robin"
    body = {"strategy": "predictive", "task_type": "ocr", "modifiers": {"ejection": False, "rare_skills_first": True}}
    answer = await http.post(f"/v1{ANYWHERE}", body)
    assert assert_written(answer, "task_type") == "ocr"
    switched = {"ejection": False, "rare_skills_first": True, "avoid_failed_agent": True}
    assert (answer.body["strategy"], answer.body["modifiers"]) == ("predictive", switched)
    found = (await http.get(ANYWHERE)).body
    own = {"strategy": "predictive", "modifiers": {"ejection": False, "rare_skills_first": True}}
    assert (found["strategy"], found["task_type"], found["types"]) == ("round_robin", None, {"ocr": own})
    assert datetime.fromisoformat(found["updated_at"]).utcoffset() == timedelta(0)
    found = (await http.get(f"{ANYWHERE}?task_type=ocr")).body
    assert (found["strategy"], found["modifiers"], found["task_type"]) == ("predictive", switched, "ocr")
    assert (await http.get(f"{ANYWHERE}?task_type=other")).body["strategy"] == "round_robin"

    assert (await http.put(ANYWHERE, {"modifiers": {"ejection": None}, "task_type": "ocr"})).status == 200
    assert (await http.get(f"{ANYWHERE}?task_type=ocr")).body["modifiers"]["ejection"] is True
    answer = await http.delete(f"{ANYWHERE}?task_type=ocr")
    assert (answer.status, answer.body["strategy"], answer.body["task_type"]) == (200, "round_robin", "ocr")
    answer = await http.delete(ANYWHERE)
    assert (answer.status, answer.body["strategy"]) == (200, "least_connections")
    assert (await http.get(ANYWHERE)).body["types"] == {}

    history = (await http.get(f"{ANYWHERE}/history?limit=100")).body
    assert history["count"] == len(history["changes"]) == 8
    assert {change["by"] for change in history["changes"]} == {"http 127.0.0.1"}
    first = history["changes"][-1]
    assert (first["name"], first["value"], first["before"], first["task_type"]) == (
        "strategy", "round_robin", None, None,
    )  # fmt: skip
    assert (await http.get(f"{ANYWHERE}/history?limit=1")).body["count"] == 1


async def test_a_strategy_waits_for_a_distributor(at: CellProcesses, http: HttpCaller) -> None:
    """Without one it is accepted with 202 and the name that was asked for; it holds once a distributor runs."""
    await gateway(at, http, COORD_GATEWAY_WAIT_S="0.2")
    await wait_until(http.is_ready, "Redis is found", 20)
    answer = await http.put(f"{ANYWHERE}?strategy=random")
    assert (answer.status, answer.body["status"], answer.body["strategy"]) == (202, "accepted", "random")
    assert answer.headers["location"] == ANYWHERE
    assert (await http.get(ANYWHERE)).body["strategy"] == "least_connections"
    await at.worker("distributor")

    async def holds() -> bool:
        return bool((await http.get(ANYWHERE)).body["strategy"] == "random")

    await wait_until(holds, "the strategy holds", 20)


async def test_http_counts_what_waits_by_reason(at: CellProcesses, http: HttpCaller) -> None:
    """``/pools`` has the numbers, of every reason."""
    await full_house(at, http)
    await http.post("/tasks/submit", {"task_data": ECHO})

    async def counted() -> dict[str, object] | None:
        waiting = (await http.get("/pools")).body["waiting"]
        return waiting if waiting and waiting["total"] else None

    waiting = await wait_until(counted, "the task is counted", 20)
    assert waiting is not None
    reasons = waiting["reasons"]
    assert isinstance(reasons, dict)
    assert (reasons["no_agent_registered"], reasons["all_full"], waiting["uncounted"]) == (1, 0, 0)
    assert isinstance(waiting["age"], float)


async def ended(http: HttpCaller, task_id: str, timeout: float = 30) -> dict[str, object]:
    """A task's record, once it has an outcome."""

    async def record() -> dict[str, object] | None:
        answer = await http.get(f"/tasks/{task_id}")
        return answer.body["task"] if answer.status == 200 and answer.body["task"]["finished_at"] else None

    found = await wait_until(record, f"{task_id} has ended", timeout)
    assert found is not None
    return found


async def test_a_task_goes_through_http_to_an_agent_and_back(at: CellProcesses, http: HttpCaller) -> None:
    """Submitted with either prefix, done by an agent of the SDK, its result read by whom it was submitted."""
    await full_house(at, http)
    await at.agent("a1")
    ids = []
    for prefix in ("", "/v1"):
        answer = await http.post(f"{prefix}/tasks/submit", {"task_data": ECHO, "priority": "HIGH", "payment": {"x": 1}})
        assert (answer.body["priority"], answer.body["escrow_id"]) == ("high", None)
        ids.append(assert_written(answer, "task_id"))
    for task_id in ids:
        task = await ended(http, task_id)
        assert (task["state"], task["agent_id"], task["attempt"]) == ("completed", "a1", 1)
        assert isinstance(task["result"], dict)
        assert task["result"]["by"] == "a1"
        assert task["payload"] == ECHO
        assert task["placement"]
        assert "lease" not in task
        times = [datetime.fromisoformat(str(task[name])) for name in ("submitted_at", "assigned_at", "finished_at")]
        assert times == sorted(times)
        assert (await http.get(f"/v1/tasks/{task_id}/status")).body["task"] == task
    await at.assert_in_order(ids)


async def test_the_traceparent_of_a_request_is_that_of_its_task(at: CellProcesses, http: HttpCaller) -> None:
    """Unchanged, and not part of its content; a malformed one is ignored."""
    await full_house(at, http)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    body = {"task_data": ECHO | {"task_id": "traced"}}
    for header in (parent, f"00-{'a' * 32}-{'b' * 16}-00", "nonsense"):
        assert_written(await http.post("/tasks/submit", body, traceparent=header), "task_id")
    assert (await http.get("/tasks/traced")).body["task"]["traceparent"] == parent
    assert_written(
        await http.post("/tasks/submit", {"task_data": ECHO | {"task_id": "bad"}}, traceparent="x"), "task_id"
    )
    assert (await http.get("/tasks/bad")).body["task"]["traceparent"] is None


async def test_why_a_task_waits_is_told_over_http(at: CellProcesses, http: HttpCaller) -> None:
    """The reason with its counts and the nearest agents; pools with their reason; and why a task went to its agent."""
    await full_house(at, http)
    await at.agent("a1")
    task = {"task_type": "scan", "required_capabilities": ["scan"], "task_id": "scan-1"}
    assert_written(await http.post("/tasks/submit", {"task_data": task, "priority": "low"}), "task_id")
    answer = await http.get("/v1/tasks/scan-1/explain")
    body = answer.body
    assert (answer.status, body["status"], body["state"], body["placed"]) == (200, "success", "queued", None)
    assert body["summary"] == "the task waits: no agent has the capability 'scan'"
    waiting = body["waiting"]
    assert waiting.pop("pool")
    assert waiting == {
        "reason": "no_capability",
        "text": "no agent has the capability 'scan'",
        "run_at": None,
        "position": 1,
        "ahead": 0,
        "length": 1,
        "agents": 1,
        "eligible": 0,
        "rejected": {"no_capability": 1},
        "nearest": [
            {
                "agent_id": "a1",
                "reason": "no_capability",
                "lacks": ["capability 'scan'"],
                "text": "a1 fits except for capability 'scan'",
            }
        ],
        "estimate": None,
        "obstacles": [],
    }
    found = (await http.get("/pools?limit=1")).body
    assert (found["status"], found["count"], found["unlisted"]) == ("success", 1, 0)
    (pool,) = found["pools"]
    assert pool["pool"]
    assert pool["head_age"] >= 0
    assert (pool["reason"], pool["head"], pool["head_priority"]) == ("no_capability", "scan-1", "low")
    assert (pool["task_type"], pool["length"], pool["requirements"]) == ("scan", 1, {"capabilities": ["scan"]})
    assert_written(await http.post("/tasks/submit", {"task_data": ECHO | {"task_id": "echo-1"}}), "task_id")
    assert (await ended(http, "echo-1"))["state"] == "completed"
    body = (await http.get("/tasks/echo-1/explain")).body
    assert (body["state"], body["waiting"]) == ("completed", None)
    assert datetime.fromisoformat(body["placed"].pop("assigned_at")).utcoffset() == timedelta(0)
    placement = (await http.get("/tasks/echo-1")).body["task"]["placement"]
    assert body["placed"].pop("term") >= 1
    assert body["placed"] == {
        "agent_id": "a1",
        "attempt": 1,
        "strategy": "least_connections",
        "eligible": 1,
        "waiting_reason": None,
        "decision": placement,
    }
    assert (await http.get("/tasks/ghost/explain")).body["code"] == "task_not_found"


async def test_an_agent_registers_and_beats(at: CellProcesses, http: HttpCaller) -> None:
    """What it says is read back; it is placeable, and a beat changes its status where it says another."""
    await full_house(at, http)
    result = {
        "agent_id": "a1",
        "agent_type": "worker",
        "capabilities": ["ocr"],
        "endpoints": {"http": "http://10.0.0.5:8000"},
        "metadata": {"deep": {"n": [1, None]}},
        "tags": ["fast"],
        "labels": {"rack": "7"},
        "location": {"lat": 1.5, "region": "eu"},
        "capacity": 3,
        "chain_id": 7,
        "island_id": "i1",
    }
    assert assert_written(await http.post("/v1/agents/register", result), "agent_id") == "a1"
    answer = await http.get("/agents/a1")
    agent = answer.body["agent"]
    same = ("agent_id", "agent_type", "capabilities", "endpoints", "metadata", "tags", "capacity")
    assert {name: agent[name] for name in same} == {name: result[name] for name in same}
    assert agent["labels"] == {"rack": "7", "chain_id": "7", "island_id": "i1"}
    assert (agent["location"]["region"], agent["status"], agent["health_score"]) == ("eu", "active", 1.0)
    assert "incarnation" not in agent
    assert await at.redis.sismember(at.keys.of("agents:active"), "a1")
    for body, status in (
        (None, "active"),
        ({"load_metrics": {"cpu": 0.25}}, "active"),
        ({"status": "busy", "load_metrics": {"cpu": 0.5}, "running": ["t1"]}, "busy"),
        (None, "busy"),
        ({"status": "active"}, "active"),
        ({"status": "draining"}, "draining"),
        ({"status": "active"}, "draining"),  # a beat ends no draining
        ({"status": "inactive"}, "inactive"),
    ):
        assert_written(await http.post("/agents/a1/heartbeat", body), "agent_id")
        agent = (await http.get("/v1/agents/a1")).body["agent"]
        assert agent["status"] == status
    assert agent["load_metrics"] == {"cpu": 0.5}
    for path in ("/agents/a1/heartbeat", "/agents/nobody/heartbeat"):  # it left; it never was
        answer = await http.post(path)
        assert (answer.status, answer.body["code"]) == (404, "agent_not_found")
    assert (await http.get("/agents/nobody")).status == 404
    assert_written(await http.post("/agents/register", result | {"capacity": 5}), "agent_id")
    assert (await http.get("/agents/a1")).body["agent"]["capacity"] == 5


async def test_agents_are_discovered_over_http(at: CellProcesses, http: HttpCaller) -> None:
    """By any mix of properties, the healthiest first, in pages; by a service those that may get work."""
    await full_house(at, http)
    declared: dict[str, dict[str, Any]] = {
        "d1": {"services": ["scan/fast"], "labels": {"zone": "eu"}, "chain_id": 7},
        "d2": {"services": ["scan/fast"], "labels": {"zone": "eu"}},
        "d3": {"agent_type": "monitor"},
    }
    for agent_id, more in declared.items():
        body = {"agent_id": agent_id, "agent_type": "worker", "capabilities": ["disc"], **more}
        body["endpoints"] = {"http": "http://127.0.0.1:9"}  # so it may get work
        assert_written(await http.post("/agents/register", body), "agent_id")
    assert_written(await http.post("/agents/d1/heartbeat", {"load_metrics": {"cpu": 0.9}}), "agent_id")

    async def found(query: dict[str, Any]) -> list[str]:
        body = (await http.post("/agents/discover", query)).body
        assert (body["status"], body["count"]) == ("success", len(body["agents"]))
        return [agent["agent_id"] for agent in body["agents"]]

    assert await found({"capabilities": ["disc"], "unknown": 1}) == ["d2", "d3", "d1"]
    assert await found({"query": {"capabilities": ["disc"], "labels": {"zone": "eu"}}}) == ["d2", "d1"]
    assert await found({"services": ["scan/fast"], "chain_id": 7}) == ["d1"]
    assert await found({"capabilities": ["disc"], "min_health_score": 0.8, "agent_type": "worker"}) == ["d2"]
    assert await found({"agent_type": "wizard"}) == await found({"status": "happy"}) == []
    page = (await http.post("/agents/discover", {"capabilities": ["disc"], "limit": 2})).body
    rest = (await http.post("/agents/discover", {"capabilities": ["disc"], "limit": 2, "cursor": page["next"]})).body
    assert ([one["agent_id"] for one in rest["agents"]], rest["next"]) == (["d1"], None)
    assert rest["query"]["capabilities"] == ["disc"]
    assert rest["agents"][0]["health"]["load_penalty"] == 0.3
    assert_written(await http.post("/agents/d2/heartbeat", {"status": "busy"}), "agent_id")
    body = (await http.get("/v1/agents/service/scan%2Ffast")).body
    assert (body["service"], [one["agent_id"] for one in body["agents"]]) == ("scan/fast", ["d1"])
    body = (await http.get("/agents/capability/disc?limit=1")).body
    assert (body["capability"], [one["agent_id"] for one in body["agents"]]) == ("disc", ["d3"])
    assert body["next"] is not None
    answer = await http.post("/agents/discover", {"cursor": "1-1"})
    assert (answer.status, answer.body["code"]) == (422, "cursor_invalid")
    answer = await http.post("/agents/discover", {"limit": 0})
    assert (answer.status, answer.body["detail"][0]["loc"]) == (422, ["body", "limit"])


async def test_without_workers_a_write_is_accepted_and_waits(at: CellProcesses, http: HttpCaller) -> None:
    """202 with where to look; the worker that comes later finds it. Health names what is missing."""
    await gateway(at, http, COORD_GATEWAY_WAIT_S="0.2")

    async def is_missing_workers() -> bool:
        health = await http.get("/health")
        assert (health.status, health.body["status"]) == (503, "unhealthy")
        found = {name: one["status"] for name, one in health.body["checks"].items()}
        return found == {"redis": "ok", **dict.fromkeys(CONSUMES, "failed")}

    await wait_until(is_missing_workers, "health says that every kind is missing")
    await wait_until(http.is_ready, "it is ready all the same")
    answer = await http.post("/v1/tasks/submit", {"task_data": ECHO})
    assert (answer.status, answer.body["status"]) == (202, "accepted")
    where = answer.headers["location"]
    assert where == f"/v1/tasks/{answer.body['task_id']}"
    assert (await http.get(where)).status == 404
    assert (await http.post("/agents/register", {"agent_id": "a9", "agent_type": "worker"})).status == 202
    await asyncio.gather(*(at.worker(kind) for kind in CONSUMES))
    await wait_until(http.is_healthy, "all is healthy", 20)
    await wait_until(lambda: _is_found(http, where), "the task is known", 20)
    await wait_until(lambda: _is_found(http, "/agents/a9"), "the agent is known", 20)
    asked = await http.post("/tasks/submit", {"task_data": ECHO}, Prefer="respond-async")
    assert (asked.status, asked.headers["location"]) == (202, f"/tasks/{asked.body['task_id']}")
    await at.agent("a1")
    await at.assert_in_order([str((await ended(http, one.body["task_id"]))["task_id"]) for one in (answer, asked)])


async def test_the_same_submission_twice_is_one_task(at: CellProcesses, http: HttpCaller) -> None:
    """By its key in every gateway, by its own id; different content is a conflict."""
    await full_house(at, http)
    second = HttpCaller(unused_port())
    await gateway(at, second, **PATIENT)
    await at.agent("a1")
    body = {"task_data": ECHO, "priority": "low"}
    ids = {
        assert_written(await one.post(path, body, Idempotency_Key="k-1"), "task_id")
        for one in (http, second)
        for path in ("/tasks/submit", "/v1/tasks/submit")
    }
    assert len(ids) == 1
    other = {"task_data": ECHO | {"n": 2}}
    third = await second.post("/tasks/submit", other, Idempotency_Key="k-1")
    assert (third.status, third.body["code"]) == (422, "idempotency_key_reused")
    await second.post("/tasks/submit", other, Idempotency_Key="k-2")
    again = await http.post("/tasks/submit", body, Idempotency_Key="k-2")  # this gateway has not seen the key
    assert (again.status, again.body["code"]) == (422, "idempotency_key_reused")
    named = {"task_data": ECHO | {"task_id": "mine"}}
    assert {assert_written(await http.post("/tasks/submit", named), "task_id") for _ in range(2)} == {"mine"}
    conflict = await http.post("/tasks/submit", {"task_data": ECHO | {"task_id": "mine", "n": 1}})
    assert (conflict.status, conflict.body["code"]) == (409, "id_conflict")
    await at.all_end(3)
    assert await at.count(TaskState.COMPLETED) == 3


async def test_redis_stands_still_and_the_gateway_says_so(at: CellProcesses, http: HttpCaller) -> None:
    """503 for what needs Redis, also for health; all of it again when Redis goes on, with the same process."""
    process = await gateway(at, http, COORD_GATEWAY_REDIS_S="0.5", COORD_GATEWAY_WAIT_S="0.5")
    await asyncio.gather(*(at.worker(kind) for kind in CONSUMES))
    await wait_until(http.is_healthy, "all is healthy", 20)
    os.kill(at.server.pid, signal.SIGSTOP)
    try:
        health = await http.get("/health")
        assert (health.status, health.body["checks"]["redis"]["status"]) == (503, "failed")
        assert (await http.get("/health/live")).status == 200
        answers = await asyncio.gather(
            *(http.post("/tasks/submit", {"task_data": ECHO}, Idempotency_Key=f"k{n}") for n in range(20)),
            http.get("/tasks/t1"),
            http.post("/agents/a1/heartbeat"),
        )
    finally:
        os.kill(at.server.pid, signal.SIGCONT)
    assert {(one.status, one.body["code"]) for one in answers} == {(503, "server_unavailable")}
    assert {one.headers["retry-after"] for one in answers} == {"1"}
    assert "the same Idempotency-Key" in answers[0].body["message"]
    await wait_until(http.is_healthy, "all is healthy again", 30)
    for number in range(20):  # whether Redis had it or not, the same key makes one task of it
        await _submitted(http, f"k{number}")
    await at.agent("a1")
    await at.all_end(20)
    assert await at.count(TaskState.COMPLETED) == 20
    assert process.alive


async def test_redis_is_killed_and_the_gateway_goes_on_with_the_next(at: CellProcesses, http: HttpCaller) -> None:
    """It may even have been started while Redis was away."""
    early = await full_house(at, http)
    at.server.kill()
    second = HttpCaller(unused_port())
    late = await lone_gateway(at, second)
    for one in (http, second):
        answer = await one.post("/tasks/submit", {"task_data": ECHO}, Idempotency_Key="k")
        assert (answer.status, answer.body["code"]) == (503, "server_unavailable")
        assert (await one.get("/health")).status == 503
    at.server.restart()
    await at.agent("a1")
    ids = {await _submitted(one, "k") for one in (http, second)}
    assert len(ids) == 1
    for one in (http, second):
        await wait_until(one.is_healthy, "all is healthy again", 30)
    await ended(second, ids.pop())
    assert early.alive
    assert late.alive


async def test_on_sigterm_requests_under_way_are_answered(at: CellProcesses, http: HttpCaller) -> None:
    """A request that waits for its worker gets a 202; then the process exits with 0."""
    process = await gateway(at, http, COORD_GATEWAY_WAIT_S="3")
    waiting = asyncio.create_task(http.post("/tasks/submit", {"task_data": ECHO}))
    await wait_until(lambda: at.redis.xlen(at.keys.of("in:tasks:normal")), "the task is in its stream")
    process.send(signal.SIGTERM)
    assert (await waiting).status == 202
    assert await process.ended(30) == 0
    assert not await http.is_up()
    assert "gateway.stopped" in process.told()


@pytest.mark.parametrize(
    ("environ", "text"),
    [
        ({"COORD_GATEWAY_HOST": EVERYWHERE}, "COORD_GATEWAY_SECURITY=on"),
        ({"COORD_REDIS_URL": "nonsense"}, "is not a Redis URL"),
        ({"AITBC_COORDINATOR_PORT": "99999"}, "AITBC_COORDINATOR_PORT"),
    ],
)
async def test_what_cannot_be_started_as_asked_is_one_line(
    at: CellProcesses, environ: dict[str, str], text: str
) -> None:
    """Exit code 2, what is wrong, and no trace."""
    any_port = {"COORD_GATEWAY_PORT": "0"}
    process = at.start("gateway", "-m", "coord.cli", "gateway", **any_port | environ)
    assert await process.ended(30) == 2
    assert text in process.told()
    assert "Traceback" not in process.told()


async def test_the_predecessors_variable_names_the_port(at: CellProcesses, http: HttpCaller) -> None:
    """Its installations start unchanged."""
    environ = {"AITBC_COORDINATOR_PORT": str(http.port)}
    at.start("gateway", "-m", "coord.cli", "gateway", **environ)
    await wait_until(http.is_up, "the gateway answers", 30)


async def _is_found(http: HttpCaller, path: str) -> bool:
    return (await http.get(path)).status == 200


async def _submitted(http: HttpCaller, key: str) -> str:
    """The id of a task that is submitted under this key until it is taken."""

    async def submit() -> HttpAnswer | None:
        answer = await http.post("/tasks/submit", {"task_data": ECHO}, Idempotency_Key=key)
        assert answer.status in {200, 202, 503}, answer
        return answer if answer.status < 300 else None

    answer = await wait_until(submit, "the task is taken", 40)
    assert answer is not None
    return str(answer.body["task_id"])
