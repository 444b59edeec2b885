"""Tasks with preferences or agents to avoid: they wait in the named queue of their pool, and are placed one by one."""

from __future__ import annotations

from typing import Any

from coord import queries
from coord.models.agents import AgentStatus, AgentType, Location
from coord.models.facts import AgentRegistered, AgentStatusChanged, TaskCancelRequested
from coord.models.tasks import TaskState
from tests.workers.test_handlers import DirectCell, direct, echo
from tests.workers.test_refusals import placed_again

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
