"""Tasks with preferences or agents to avoid: they wait in the named queue of their pool, and are placed one by one."""

from __future__ import annotations

from typing import Any

import pytest

from coord import queries
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.explanations import WaitingReason
from coord.models.facts import (
    AgentDeregistered,
    AgentRegistered,
    AgentStatusChanged,
    TaskCancelRequested,
    TaskCompleted,
    TaskFailed,
    TasksChangeRequested,
)
from coord.models.tasks import Priority, Requirements, Retry, TaskState, TaskSubmitted
from tests.workers.test_handlers import DirectCell, assigned, direct, echo
from tests.workers.test_refusals import placed_again
from workers.distributor import Distributor

__all__ = ["direct", "placed_again"]

EU, US = Location(lat=52.5, lon=13.4, region="eu"), Location(lat=40.7, lon=-74.0, region="us")


async def register(direct: DirectCell, agent_id: str, **fields: Any) -> None:
    """Register an agent that can do the same as ``a1``."""
    fields = {"capabilities": ("echo",), "capacity": 10, "incarnation": f"i-{agent_id}", **fields}
    assert await direct.tell("in:registry", AgentRegistered(agent_id, AgentType.WORKER, **fields)) == ["ok"]


async def leave_to_others(direct: DirectCell) -> None:
    """Let ``a1`` be busy."""
    assert await direct.tell("in:registry", AgentStatusChanged("a1", AgentStatus.BUSY, "i1")) == ["ok"]


async def test_a_task_goes_where_it_is_best_run(direct: DirectCell) -> None:
    """By its location and by its key, if the strategy looks at them; in the round trip that admits it."""
    await leave_to_others(direct)
    await register(direct, "berlin", location=EU)
    await register(direct, "york", location=US)
    await direct.place()
    near = [echo(f"t{n}", strategy="geographic", location=US if n % 2 else EU) for n in range(6)]
    assert await direct.tell("in:tasks:normal", *near) == ["ok"] * 6
    assert [(await direct.task(f"t{n}")).agent_id for n in range(6)] == ["berlin", "york"] * 3
    keyed = [echo(f"k{n}", strategy="consistent_hash", affinity_key="key") for n in range(3)]
    assert await direct.tell("in:tasks:normal", *keyed) == ["ok"] * 3
    assert len({(await direct.task(f"k{n}")).agent_id for n in range(3)}) == 1


async def test_an_expected_duration_names_no_task(direct: DirectCell) -> None:
    """Tasks of about one size share a pool and are popped; the record has the duration as it was given."""
    await leave_to_others(direct)
    tasks = [echo("t1"), echo("t2", expected_ms=1_500.5), echo("t3", expected_ms=900), echo("t4", expected_ms=9_000)]
    tasks.append(echo("t5", expected_ms=1_000, affinity_key="k"))
    assert await direct.tell("in:tasks:normal", *tasks) == ["ok"] * 5
    records = [await direct.task(task.task_id) for task in tasks]
    assert [one.expected_ms for one in records] == [None, 1_500.5, 900, 9_000, 1_000]
    plain, middle, same, long, named = [one.pool for one in records]
    assert middle == same
    assert named == f"{middle}.named"
    assert len({plain, middle, long}) == 3
    assert "named" not in plain + middle + long
    found = {one.pool: one.definition for one in (await queries.get_backlog(direct.redis, direct.keys)).pools}
    assert {pool: definition.expected_ms for pool, definition in found.items()} == {
        plain: None, middle: 1_024, long: 16_384, named: 1_024,
    }  # fmt: skip


@pytest.mark.guarantee("named-tasks")
async def test_a_restarted_distributor_knows_what_a_task_prefers(direct: DirectCell) -> None:
    """⚠ The record has it. Plain tasks of the same pool wait in another queue, and have no such field."""
    await leave_to_others(direct)
    await direct.place()
    tasks = [echo("t1", strategy="geographic", location=US), echo("t2", strategy="geographic")]
    assert await direct.tell("in:tasks:normal", *tasks) == ["ok", "ok"]
    pools = [(await direct.task(task)).pool for task in ("t1", "t2")]
    assert pools == [f"{pools[1]}.named", pools[1]]
    assert [one.length for one in (await queries.get_backlog(direct.redis, direct.keys)).pools] == [1, 1]
    plain = await direct.redis.hkeys(direct.keys.task("t2"))
    assert set(plain) == {b"state", b"submission", b"body"}
    direct.distributor.planner.forget()
    direct.distributor.planner.definitions.clear()
    await register(direct, "berlin", location=EU)
    await register(direct, "york", location=US)
    await direct.place()
    assert (await direct.task("t1")).agent_id == "york"
    assert (await direct.task("t2")).state is TaskState.ASSIGNED


async def test_a_delayed_task_is_named_when_it_is_due(direct: DirectCell) -> None:
    """run_at puts it into its queue; the distributor reads it there."""
    await leave_to_others(direct)
    await register(direct, "berlin", location=EU)
    await register(direct, "york", location=US)
    task = echo("t1", strategy="geographic", location=US, delay=0.05)
    assert await direct.tell("in:tasks:normal", task) == ["ok"]
    assert await placed_again(direct) == "york"


async def test_a_cancelled_task_leaves_its_queue(direct: DirectCell) -> None:
    """And nothing is planned for it."""
    await leave_to_others(direct)
    await direct.place()
    assert await direct.tell("in:tasks:normal", echo("t1", affinity_key="k")) == ["ok"]
    assert await direct.tell("in:requests", TaskCancelRequested("t1")) == ["ok"]
    assert (await direct.task()).state is TaskState.CANCELLED
    assert await direct.redis.hlen(direct.keys.of("pools")) == 0
    assert direct.distributor.planner.waiting == {}


async def prioritize(direct: DirectCell, priority: Priority, *ids: str) -> None:
    """Let an operator give tasks another priority."""
    request = TasksChangeRequested("prioritize", ids, priority=priority)
    assert await direct.tell("in:control:distributor", request) == ["ok"]


async def complete(direct: DirectCell, task_id: str) -> None:
    """Let the agent that has a task complete it, and place what waits."""
    lease = (await direct.task(task_id)).lease
    assert lease is not None
    assert await direct.tell("in:reports", TaskCompleted(task_id, lease)) == ["ok"]
    await direct.place()


async def next_of(direct: DirectCell, *ids: str) -> str:
    """The only one of these tasks that an agent has."""
    (found,) = [one for one in ids if (await direct.task(one)).state is TaskState.ASSIGNED]
    return found


@pytest.mark.guarantee("priority")
@pytest.mark.parametrize(
    ("changed", "to", "order"),
    [
        ("w3", Priority.URGENT, ["w3", "w0", "w1", "w2"]),
        ("w2", Priority.LOW, ["w0", "w1", "w3", "w2"]),
        ("w0", Priority.LOW, ["w1", "w2", "w3", "w0"]),
    ],
)
async def test_a_new_priority_changes_the_order_of_named_tasks(
    direct: DirectCell, changed: str, to: Priority, order: list[str]
) -> None:
    """⚠ The distributor knows all of them, and their head may be the same."""
    await assigned(direct, "blocks")
    await direct.tell("in:tasks:normal", *(echo(one, affinity_key=one) for one in sorted(order)))
    await prioritize(direct, to, changed)
    await complete(direct, "blocks")
    found = []
    for _ in order:
        found.append(await next_of(direct, *order))
        await complete(direct, found[-1])
    assert found == order


@pytest.mark.guarantee("priority")
@pytest.mark.parametrize(("changed", "to", "first"), [("w2", Priority.URGENT, "w2"), ("w0", Priority.LOW, "w1")])
async def test_another_distributor_follows_a_new_priority_of_named_tasks(
    direct: DirectCell, changed: str, to: Priority, first: str
) -> None:
    """⚠ It knows the tasks, and no answer of its own shows the change: the table of pools does."""
    ids = ["w0", "w1", "w2"]
    await direct.tell("in:tasks:normal", *(echo(one, affinity_key=one) for one in ids))
    other = Distributor(direct.cell)
    other.view.replace(await other.follower.resync())
    await other.read_pools()
    assert other.planner.is_ready()
    await prioritize(direct, to, changed)
    await other.table.look()
    await other.handle([])
    await other.table.read_lengths()
    await other.handle([])
    assert await next_of(direct, *ids) == first


async def fail(direct: DirectCell, task_id: str = "t1") -> str:
    """Let the attempt of a task fail; the agent that had it."""
    task = await direct.task(task_id)
    assert task.agent_id is not None
    assert task.lease is not None
    assert await direct.tell("in:reports", TaskFailed(task_id, task.lease, "boom")) == ["ok"]
    return task.agent_id


@pytest.mark.guarantee("retry-elsewhere")
async def test_a_retry_goes_to_another_agent(direct: DirectCell) -> None:
    """⚠ An agent that fails at once is the least loaded one, and would get the task again and again."""
    await register(direct, "a2")
    await direct.place()
    assert await direct.tell("in:tasks:normal", echo("t1", retry=Retry(max_attempts=9))) == ["ok"]
    failed = [await fail(direct)]
    for _ in range(3):
        agent_id = await placed_again(direct)
        assert agent_id is not None
        failed.append(await fail(direct))
    assert failed[:2] * 2 == failed
    assert set(failed) == {"a1", "a2"}
    assert (await direct.task()).avoid == (failed[-1], failed[-2])


@pytest.mark.guarantee("retry-elsewhere")
async def test_a_retry_waits_for_another_agent_that_is_full(direct: DirectCell) -> None:
    """It does not go to the agent that failed, and does not hold up the tasks behind it."""
    await register(direct, "a2")
    await direct.place()
    assert await direct.tell(
        "in:tasks:normal", TaskSubmitted("t1", "echo", requirements=Requirements(agent_id="a1"))
    ) == ["ok"]
    assert await direct.tell("in:tasks:normal", echo("t2")) == ["ok"]
    assert await fail(direct, "t2") == "a2"
    assert await placed_again(direct, "t2") is None
    why = await queries.explain_task(direct.redis, direct.keys, direct.cell.settings, "t2")
    assert why is not None
    assert why.waiting is not None
    assert "it avoids a2 while another eligible agent is registered" in why.summary
    assert (why.waiting.pool, why.waiting.position) == ((await direct.task("t2")).pool, 1)
    assert await direct.tell("in:tasks:normal", echo("t3"), echo("t4", affinity_key="k")) == ["ok", "ok"]
    assert [(await direct.task(task)).agent_id for task in ("t3", "t4")] == ["a2", "a2"]
    lease = (await direct.task("t1")).lease
    assert lease is not None
    assert await direct.tell("in:reports", TaskCompleted("t1", lease)) == ["ok"]
    assert (await direct.task("t2")).agent_id == "a1"


@pytest.mark.guarantee("retry-elsewhere")
async def test_a_retry_goes_to_the_same_agent_if_it_is_the_only_one(direct: DirectCell) -> None:
    """Agents of another kind, and those that have left or drain, do not count."""
    await register(direct, "other", capabilities=("sing",))
    await register(direct, "a2")
    assert await direct.tell("in:registry", AgentStatusChanged("a2", AgentStatus.DRAINING, "i-a2")) == ["ok"]
    await direct.place()
    assert await direct.tell("in:tasks:normal", echo("t1")) == ["ok"]
    assert await fail(direct) == "a1"
    assert await placed_again(direct) == "a1"


@pytest.mark.guarantee("named-capability-first")
async def test_a_task_without_capabilities_goes_first_to_an_agent_that_can_do_its_type(direct: DirectCell) -> None:
    """If one is eligible, the task waits for it even if others have room; otherwise it goes to any."""
    await register(direct, "other", capabilities=("sing",))
    await direct.place()
    tasks = [TaskSubmitted(f"t{number}", "echo") for number in range(3)]
    assert await direct.tell("in:tasks:normal", *tasks) == ["ok"] * 3
    assert [(await direct.task(f"t{number}")).agent_id for number in range(3)] == ["a1", None, None]
    why = await queries.explain_task(direct.redis, direct.keys, direct.cell.settings, "t1")
    assert why is not None
    assert why.waiting is not None
    assert why.waiting.rejected == {WaitingReason.NO_CAPABILITY: 1, WaitingReason.ALL_FULL: 1}
    (pool,) = (await queries.get_backlog(direct.redis, direct.keys)).pools
    assert (pool.reason, pool.length) == (WaitingReason.ALL_FULL, 2)
    await leave_to_others(direct)
    await direct.place()
    assert [(await direct.task(f"t{number}")).agent_id for number in range(3)] == ["a1", "other", "other"]
    assert await direct.tell("in:tasks:normal", TaskSubmitted("t4", "echo")) == ["ok"]
    assert (await direct.task("t4")).agent_id == "other"


@pytest.mark.guarantee("named-capability-first")
async def test_waiting_tasks_follow_an_agent_that_registers(direct: DirectCell) -> None:
    """They go to it as soon as it can do their type, and to the others again when it has left."""
    await leave_to_others(direct)
    await register(direct, "other", capabilities=("sing",), capacity=1)
    await direct.place()
    tasks = [TaskSubmitted(f"t{number}", "echo") for number in range(3)]
    assert await direct.tell("in:tasks:normal", *tasks) == ["ok"] * 3
    assert [(await direct.task(f"t{number}")).agent_id for number in range(3)] == ["other", None, None]
    await register(direct, "able", capacity=1)
    await direct.place()
    assert (await direct.task("t1")).agent_id == "able"
    assert await direct.tell("in:registry", AgentDeregistered("able", incarnation="i-able")) == ["ok"]
    lease = (await direct.task("t0")).lease
    assert lease is not None
    assert await direct.tell("in:reports", TaskCompleted("t0", lease)) == ["ok"]
    await direct.place()
    assert (await direct.task("t2")).agent_id == "other"


async def test_a_task_submitted_twice_has_one_effect(direct: DirectCell) -> None:
    """Also while the first one waits, is assigned or has other content."""
    await leave_to_others(direct)
    await direct.place()
    task = echo("t1", affinity_key="k")
    assert await direct.tell("in:tasks:normal", task, task) == ["ok", "ok"]
    await register(direct, "a2")
    await direct.place()
    assert (await direct.task()).agent_id == "a2"
    assert await direct.tell("in:tasks:normal", task, echo("t1", affinity_key="other")) == ["ok", "id_conflict"]
    assert (await direct.task()).attempt == 1
