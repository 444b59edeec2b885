"""A payload that an agent cannot decode: agents of other versions get the task, one version after the other."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from redis.asyncio import Redis

from coord import Agent, Client, Task, queries
from coord.config import Settings
from coord.models.agents import AgentStatus, AgentType
from coord.models.explanations import WaitingReason
from coord.models.facts import (
    AgentDeregistered,
    AgentRegistered,
    AgentStatusChanged,
    TaskCancelRequested,
    TaskFailed,
    TaskReleased,
    TaskReplayed,
)
from coord.models.tasks import Requirements, Retry, TaskState, TaskSubmitted
from tests.running import RunningCell
from tests.workers.test_handlers import DirectCell, direct, echo
from workers import refusals

__all__ = ["direct"]


async def register(direct: DirectCell, agent_id: str, version: str, **fields: Any) -> None:
    """Register an agent that can do the same as ``a1``, which has no version."""
    fields = {"capabilities": ("echo",), "capacity": 10, "incarnation": f"i-{agent_id}", **fields}
    fact = AgentRegistered(agent_id, AgentType.WORKER, version=version, **fields)
    assert await direct.tell("in:registry", fact) == ["ok"]


async def submit(direct: DirectCell, task_id: str = "t1", **options: Any) -> None:
    """Submit a task and have it placed."""
    assert await direct.tell("in:tasks:normal", echo(task_id, **options)) == ["ok"]
    await direct.place()


async def refuse(direct: DirectCell, task_id: str = "t1") -> str:
    """Let the agent that has the task refuse its payload; that agent."""
    task = await direct.task(task_id)
    assert task.agent_id is not None
    assert task.lease is not None
    fact = TaskFailed(task_id, task.lease, "payload_invalid", "payload: no field 'n'", retryable=False)
    assert await direct.tell("in:reports", fact) == ["ok"]
    return task.agent_id


async def placed_again(direct: DirectCell, task_id: str = "t1") -> str | None:
    """Wait until the task is due and have it placed; the agent that has it."""
    task = await direct.task(task_id)
    assert task.state in {TaskState.SCHEDULED, TaskState.QUEUED}
    while (await direct.task(task_id)).state is TaskState.SCHEDULED:
        await asyncio.sleep(0.01)
        await direct.distributor.run_alarms()
    await direct.place()
    return (await direct.task(task_id)).agent_id


@pytest.mark.guarantee("payload-versions")
async def test_each_version_may_refuse_a_task_once_and_the_last_one_fails_it(direct: DirectCell) -> None:
    """The attempts are kept with their code; none of them counts but the last one."""
    for version in ("2", "3"):
        for number in (1, 2):
            await register(direct, f"v{version}-{number}", version)
    await submit(direct)
    versions = {"a1": ""} | {f"v{version}-{number}": version for version in ("2", "3") for number in (1, 2)}
    refused = [versions[await refuse(direct)]]
    for _ in range(2):
        agent_id = await placed_again(direct)
        assert agent_id is not None
        refused.append(versions[agent_id])
        await refuse(direct)
    assert sorted(refused) == ["", "2", "3"]
    task = await direct.task()
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert task.error.code == "payload_invalid"
    assert [(one.how, one.code) for one in task.attempts] == [
        ("released", "payload_invalid"),
        ("released", "payload_invalid"),
        ("failed", "payload_invalid"),
    ]
    assert task.failures == 1


async def test_a_task_fails_at_once_if_no_other_version_is_there(direct: DirectCell) -> None:
    """Agents of the same version, of another capability, and those that have left do not count."""
    await register(direct, "same", "")
    await register(direct, "other", "2", capabilities=("sing",))
    await register(direct, "gone", "2")
    assert await direct.tell("in:registry", AgentDeregistered("gone", incarnation="i-gone")) == ["ok"]
    await submit(direct)
    await refuse(direct)
    assert (await direct.task()).state is TaskState.FAILED


@pytest.mark.parametrize("has_lost_track", [False, True])
async def test_an_agent_that_the_view_does_not_show_yet_counts(direct: DirectCell, has_lost_track: bool) -> None:
    """⚠ A task failed for good because the agents of the other version had registered a moment ago."""
    await submit(direct)
    await register(direct, "v2", "2")
    assert "v2" not in direct.distributor.view.agents
    if has_lost_track:
        direct.distributor.follower._lose_track()
    await refuse(direct)
    assert await placed_again(direct) == "v2"


async def test_a_task_waits_for_an_agent_of_another_version_that_is_busy(direct: DirectCell) -> None:
    """It is registered, and will have room again."""
    await submit(direct)
    await register(direct, "v2", "2")
    assert await direct.tell("in:registry", AgentStatusChanged("v2", AgentStatus.BUSY, "i-v2")) == ["ok"]
    await direct.place()
    await refuse(direct)
    assert await placed_again(direct) is None
    assert await direct.tell("in:registry", AgentStatusChanged("v2", AgentStatus.ACTIVE, "i-v2")) == ["ok"]
    await direct.place()
    assert (await direct.task()).agent_id == "v2"


@pytest.mark.guarantee("payload-versions")
async def test_another_distributor_knows_which_versions_have_refused(direct: DirectCell) -> None:
    """The record has it; and a task of the same kind that nobody has refused may go to any agent."""
    await register(direct, "v2", "2")
    await submit(direct)
    first = await refuse(direct)
    direct.distributor.planner.forget()
    direct.distributor.planner.definitions.clear()
    second = await placed_again(direct)
    assert {first, second} == {"a1", "v2"}
    body = {"task_id": "odd", "task_type": "echo", "requirements": {"capabilities": ["echo"]}, "refused_by": ["", "2"]}
    pool = queries.pool_in_record(None, msgspec.json.encode(body))
    assert pool is not None
    assert pool.refused_by == (), "a client does not decide this"


async def test_a_replayed_task_may_go_to_every_version_again(direct: DirectCell) -> None:
    """The agents may have been corrected since."""
    await register(direct, "v2", "2")
    await submit(direct)
    pool = (await direct.task()).pool
    await refuse(direct)
    await placed_again(direct)
    assert (await direct.task()).pool != pool
    await refuse(direct)
    assert (await direct.task()).state is TaskState.FAILED
    assert await direct.tell("in:control:distributor", TaskReplayed("t1")) == ["ok"]
    assert (await direct.task()).pool == pool
    await direct.place()
    assert (await direct.task()).state is TaskState.ASSIGNED


async def test_a_task_is_refused_by_a_limited_number_of_versions(
    direct: DirectCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The list is part of the record and of the pool."""
    monkeypatch.setattr(refusals, "MAX_VERSIONS", 1)
    for version in ("2", "3"):
        await register(direct, f"v{version}", version)
    await submit(direct)
    await refuse(direct)
    await placed_again(direct)
    await refuse(direct)
    assert (await direct.task()).state is TaskState.FAILED


async def test_a_cancelled_task_is_not_released_again(direct: DirectCell) -> None:
    """A refusal ends it as any other report does."""
    await register(direct, "v2", "2")
    await submit(direct)
    task = await direct.task()
    await direct.redis.xtrim(direct.keys.inbox(str(task.agent_id), "normal"), maxlen=0)  # the agent has claimed it
    assert await direct.tell("in:requests", TaskCancelRequested("t1")) == ["ok"]
    await refuse(direct)
    assert (await direct.task()).state is TaskState.CANCELLED


async def give_back(direct: DirectCell, task_id: str = "t1") -> str:
    """Let the agent that has the task say that it has no handler for it; that agent."""
    task = await direct.task(task_id)
    assert task.agent_id is not None
    assert task.lease is not None
    fact = TaskReleased(task_id, task.lease, "it has no handler; add one", "no_handler")
    assert await direct.tell("in:reports", fact) == ["ok"]
    return task.agent_id


@pytest.mark.guarantee("missing-handler")
async def test_agents_without_a_handler_give_a_task_back_once_each(direct: DirectCell) -> None:
    """⚠ The task failed for good because it came to the wrong agent first. No attempt counts; the last one fails it."""
    for number in (2, 3):
        await register(direct, f"a{number}", "")
    await submit(direct, retry=Retry(max_attempts=1))
    asked = [await give_back(direct)]
    for _ in range(2):
        assert (await direct.task()).failures == 0
        agent_id = await placed_again(direct)
        assert agent_id is not None
        asked.append(await give_back(direct))
    assert sorted(asked) == ["a1", "a2", "a3"]
    task = await direct.task()
    assert task.state is TaskState.FAILED
    assert task.error is not None
    assert (task.error.code, task.error.message) == ("no_handler", "it has no handler; add one")
    assert [(one.how, one.code) for one in task.attempts] == [
        ("released", "no_handler"),
        ("released", "no_handler"),
        ("failed", "no_handler"),
    ]


async def test_an_agent_without_a_handler_gets_other_tasks(direct: DirectCell) -> None:
    """Also of the same type, which coord does not guess, and without a new fact of the agent."""
    await submit(direct)
    await register(direct, "a2", "")
    assert await give_back(direct) == "a1"
    only = TaskSubmitted("t2", "echo", requirements=Requirements(agent_id="a1"))
    assert await direct.tell("in:tasks:normal", only) == ["ok"]
    assert (await direct.task("t2")).agent_id == "a1"
    assert await placed_again(direct) == "a2"


@pytest.mark.guarantee("missing-handler")
async def test_a_task_waits_for_an_agent_that_may_have_a_handler(direct: DirectCell) -> None:
    """It is registered, and busy for now; the explanation says what is the matter with the other one."""
    await submit(direct)
    await register(direct, "a2", "")
    assert await direct.tell("in:registry", AgentStatusChanged("a2", AgentStatus.BUSY, "i-a2")) == ["ok"]
    await direct.place()
    await give_back(direct)
    assert await placed_again(direct) is None
    found = await queries.explain_task(direct.redis, direct.keys, direct.cell.settings, "t1")
    assert found is not None
    assert found.waiting is not None
    assert found.waiting.rejected == {WaitingReason.NO_HANDLER: 1, WaitingReason.ALL_BUSY_STATUS: 1}
    assert await direct.tell("in:registry", AgentStatusChanged("a2", AgentStatus.ACTIVE, "i-a2")) == ["ok"]
    await direct.place()
    assert (await direct.task()).agent_id == "a2"


async def test_a_limited_number_of_agents_may_have_no_handler(
    direct: DirectCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their ids are part of the record and of the pool."""
    monkeypatch.setattr(refusals, "MAX_AGENTS", 1)
    for number in (2, 3):
        await register(direct, f"a{number}", "")
    await submit(direct)
    await give_back(direct)
    await placed_again(direct)
    await give_back(direct)
    assert (await direct.task()).state is TaskState.FAILED


async def test_a_named_task_that_is_refused_stays_named(direct: DirectCell) -> None:
    """Its preferences count in the other pool as well; a replay takes it back to the first one."""
    await register(direct, "a2", "2")
    await submit(direct, affinity_key="k")
    first = (await direct.task()).pool
    await give_back(direct)
    second = (await direct.task()).pool
    assert first != second
    assert first.endswith(".named")
    assert second.endswith(".named")
    await placed_again(direct)
    await refuse(direct)
    assert await direct.tell("in:control:distributor", TaskReplayed("t1")) == ["ok"]
    assert (await direct.task()).pool == first


class Old(msgspec.Struct, forbid_unknown_fields=True):
    """The payload before a change."""

    page: int


class New(msgspec.Struct):
    """And after it."""

    pages: list[int]


@pytest.mark.guarantee("payload-versions")
async def test_no_task_fails_during_a_rolling_deployment_of_a_new_payload(
    cell: RunningCell, settings: Settings, redis: Redis
) -> None:
    """⚠ Old and new tasks, old and new agents; without this, half of the tasks failed for good."""
    agents = [
        Agent(f"{kind.__name__}-{number}", version=kind.__name__, url=cell.url, settings=settings, capacity=4)
        for kind in (Old, New)
        for number in (1, 2)
    ]

    async def read_old(payload: Old, task: Task) -> list[Any]:
        return ["Old", payload.page]

    async def read_new(payload: New, task: Task) -> list[Any]:
        return ["New", *payload.pages]

    for agent in agents:
        agent.task("read")(read_old if agent.agent_id.startswith("Old") else read_new)
        await agent.start()
    try:
        async with Client(cell.url, settings=settings) as client:
            payloads = [{"page": n} if n % 2 else {"pages": [n]} for n in range(40)]
            handles = await client.submit_many([{"task_type": "read", "payload": one} for one in payloads])
            results = [await handle.result(timeout=30) for handle in handles]
            assert results == [["Old" if n % 2 else "New", n] for n in range(40)]
    finally:
        for agent in agents:
            await agent.stop(grace=1)
