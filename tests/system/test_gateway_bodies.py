"""The gateway's app on a cell at work: whatever is posted, nothing is a 500, and what was taken can be shown."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
from falcon import testing
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from coord.config import Settings
from coord.gateway.app import make_app
from coord.gateway.backend import Backend
from coord.models.tasks import Requirements, TaskSubmitted
from coord.streams import Append, append
from tests.running import RunningCell
from tests.waiting import wait_until

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4),
    max_leaves=12,
)
IDS = st.text("ab.-_@", min_size=1, max_size=3)
WORDS = st.lists(st.text(max_size=8), max_size=3)


def some(**fields: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with some of these fields, now and then with a value that does not fit."""
    return st.fixed_dictionaries({}, optional={name: one | VALUES for name, one in fields.items()})


METRICS = st.dictionaries(st.text(max_size=8), st.floats() | st.integers(), max_size=3)
REGISTER = some(capabilities=WORDS, tags=WORDS, labels=st.dictionaries(st.text(max_size=5), st.text(max_size=5)))
AGENTS = st.tuples(
    REGISTER, some(metadata=VALUES, version=st.text(max_size=5), capacity=st.integers(), weight=st.floats())
)
TASK_DATA = some(task_id=IDS, task_type=st.text(max_size=8), required_capabilities=WORDS, more=VALUES)
TASKS = some(
    priority=st.sampled_from(["HIGH", "low", "x"]),
    requirements=some(capabilities=WORDS, min_health_score=st.floats(), labels=VALUES),
    timeout=st.floats(),
    delay=st.floats(),
    retry=some(max_attempts=st.integers()),
    payment=VALUES,
)


@pytest.fixture
async def http(cell: RunningCell, settings: Settings) -> AsyncIterator[testing.ASGIConductor]:
    """A caller of an app that has found the cell."""
    found = msgspec.structs.replace(settings, redis_url=cell.url, gateway_wait_s=30, gateway_redis_s=30)
    backend = Backend(found)
    backend.open(lambda error: pytest.fail(str(error)))
    async with testing.ASGIConductor(make_app(backend, found)) as conductor:

        async def ready() -> bool:
            return (await conductor.simulate_get("/health", host="localhost")).status_code == 200

        await wait_until(ready, "the gateway is healthy", 20)
        yield conductor
    await backend.close()


async def posted(http: testing.ASGIConductor, path: str, body: Any) -> Any:
    """The answer to this body, which is never a defect."""
    answer = await http.simulate_post(
        path, host="localhost", body=msgspec.json.encode(body), headers={"Content-Type": "application/json"}
    )
    assert answer.status_code in {200, 202, 400, 404, 409, 413, 422}, answer.json
    return answer


async def got(http: testing.ASGIConductor, path: str) -> Any:
    """What is there."""
    answer = await http.simulate_get(path, host="localhost")
    assert answer.status_code in {200, 404}, answer.json
    return answer


@effort(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(task=TASKS, data=TASK_DATA)
async def test_any_task_is_taken_or_refused(http: testing.ASGIConductor, task: dict[str, Any], data: Any) -> None:
    """And shown again as it was submitted."""
    answer = await posted(http, "/tasks/submit", task | {"task_data": data})
    if answer.status_code == 200:
        shown = await got(http, f"/tasks/{answer.json['task_id']}")
        assert shown.json["task"]["payload"] == msgspec.json.decode(msgspec.json.encode(data))


@effort(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(agent_id=IDS, result=AGENTS, status=st.sampled_from(["active", "busy", "inactive", "x"]), metrics=METRICS)
async def test_any_agent_is_taken_or_refused(
    http: testing.ASGIConductor, agent_id: str, result: Any, status: str, metrics: Any
) -> None:
    """It registers, beats and is shown."""
    await posted(http, "/agents/register", {"agent_id": agent_id, "agent_type": "worker"} | result[0] | result[1])
    await posted(http, f"/agents/{agent_id}/heartbeat", {"status": status, "load_metrics": metrics})
    await got(http, f"/agents/{agent_id}")


async def test_what_others_submitted_is_shown_whatever_it_holds(http: testing.ASGIConductor, cell: RunningCell) -> None:
    """A number beyond ours, a value nested too deeply to be decoded: no defect, and the rest of the record."""
    odd = {"number": b'{"a":1e999}', "text": b'"\\ud83d\\ude00 \\u0000"'}
    odd |= {f"deep-{depth}": b"[" * depth + b"]" * depth for depth in range(300, 1_100, 25)}
    for name, raw in odd.items():
        fact = TaskSubmitted(name, "odd", msgspec.Raw(raw), Requirements(capabilities=("nobody",)))
        await append(cell.redis, cell.keys, [Append("in:tasks:normal", fact)])

    async def handled() -> bool:
        return not await cell.redis.xlen(cell.keys.of("in:tasks:normal"))

    await wait_until(handled, "every submission is handled", 20)
    for name in odd:  # the deepest were buried, as the worker cannot decode them either
        answer = await http.simulate_get(f"/tasks/{name}", host="localhost")
        assert answer.status_code in {200, 404, 422}, name
    assert (await got(http, "/tasks/deep-300")).status_code == 200
    assert (await got(http, "/tasks/text")).json["task"]["payload"] == "\U0001f600 \x00"
    assert (await got(http, "/tasks/number")).json["task"]["state"] == "queued"
