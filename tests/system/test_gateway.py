"""The gateway as a process of its own: real HTTP, a real server, real workers, and what the world does to them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from coord.keys import CONSUMES
from tests.http import HttpAnswer, HttpCaller
from tests.processes import House, Process, house
from tests.waiting import wait_until

ECHO = {"task_type": "echo", "s": 0, "required_capabilities": ["echo"]}


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[House]:
    """A server of this test's own."""
    async with house(tmp_path) as built:
        yield built


@pytest.fixture
def http(unused_port: int) -> HttpCaller:
    """A caller of the gateway that the test starts."""
    return HttpCaller(unused_port)


async def gateway(at: House, http: HttpCaller, **environ: str) -> Process:
    """A gateway, once it answers."""
    process = at.start("gateway", "-P", "-m", "coord.cli", "gateway", "--port", str(http.port), **environ)

    async def up() -> bool:
        assert process.alive, process.told()
        return await http.is_up()

    await wait_until(up, "the gateway answers", 30)
    return process


async def full_house(at: House, http: HttpCaller) -> Process:
    """A gateway and one worker of each kind."""
    process, *_ = await asyncio.gather(gateway(at, http), *(at.worker(kind) for kind in CONSUMES))
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


async def ended(http: HttpCaller, task_id: str, timeout: float = 30) -> dict[str, object]:
    """A task's record, once it has an outcome."""

    async def record() -> dict[str, object] | None:
        answer = await http.get(f"/tasks/{task_id}")
        return answer.body["task"] if answer.status == 200 and answer.body["task"]["finished_at"] else None

    found = await wait_until(record, f"{task_id} has ended", timeout)
    assert found is not None
    return found


async def test_a_task_goes_through_http_to_an_agent_and_back(at: House, http: HttpCaller) -> None:
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
