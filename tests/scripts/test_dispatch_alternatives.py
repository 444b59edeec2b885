"""``dispatch`` with a second agent for the task that takes the last slot of the first one."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from tests.scripts.cell import Cell
from workers.transitions import Placement, TaskBatch


async def placement(cell: Cell, agent_id: str, other_id: str, **options: str) -> Placement:
    """A planned assignment, with another agent as its alternative."""
    other = await cell.placement(other_id)
    return replace(await cell.placement(agent_id), other_id=other_id, other_rev=other.rev, **options)


async def dispatch(cell: Cell, *placements: Placement) -> TaskBatch:
    """The answer to a plan."""
    answer = await cell.run(cell.scripts.dispatch(placements))
    assert isinstance(answer, TaskBatch)
    return answer


@pytest.mark.on_fakeredis
async def test_a_task_goes_to_the_second_agent_if_the_first_is_full(cell: Cell) -> None:
    """Under the lease of the plan, in the same call; no plan is refused."""
    await cell.register("a1", capacity=1)
    await cell.register("a2", capacity=1)
    await cell.assign("t1", "a1")
    await cell.submit("t2")
    plan = await placement(cell, "a1", "a2")
    answer = await dispatch(cell, plan)
    assert (answer.words, answer.loads) == (["MOVED"], {"a1": 1, "a2": 1})
    task = await cell.task("t2")
    assert (task.state, task.agent_id, task.lease) == ("assigned", "a2", plan.lease)
    assert len(await cell.stream("inbox:a2:normal")) == 1
    assert await cell.redis.zscore(cell.keys.of("unclaimed"), "a2") is not None
    assert await cell.counter("plans_refused") == 0


async def test_the_second_agent_is_not_used_while_the_first_has_room(cell: Cell) -> None:
    """Its load is not even read."""
    await cell.register("a1", capacity=1)
    await cell.register("a2", capacity=1)
    await cell.submit()
    answer = await dispatch(cell, await placement(cell, "a1", "a2"))
    assert (answer.words, answer.loads) == (["ASSIGNED"], {"a1": 1})


async def test_only_the_last_task_of_an_agent_has_a_second_one(cell: Cell) -> None:
    """The others are refused if the agent has no room for them."""
    await cell.register("a1", capacity=2)
    await cell.register("a2", capacity=5)
    await cell.assign("t0", "a1")
    for number in range(1, 4):
        await cell.submit(f"t{number}")
    plan = [await cell.placement("a1"), await cell.placement("a1"), await placement(cell, "a1", "a2")]
    answer = await dispatch(cell, *plan)
    assert answer.words == ["ASSIGNED", "FULL", "MOVED"]
    assert answer.loads == {"a1": 2, "a2": 1}
    assert [(await cell.task(f"t{number}")).agent_id for number in (1, 2)] == ["a1", "a2"]
    assert await cell.state("t3") == "queued"


async def test_a_second_agent_that_has_changed_gets_nothing(cell: Cell) -> None:
    """Full, of another rev, not active or unknown: the plan is refused, and the first agent is named as full."""
    await cell.register("a1", capacity=1)
    await cell.register("a2", capacity=1)
    await cell.assign("t1", "a1")
    await cell.assign("t2", "a2")
    await cell.submit("t3")
    assert (await dispatch(cell, await placement(cell, "a1", "a2"))).words == ["FULL"]
    await cell.complete("t2")
    stale = replace(await placement(cell, "a1", "a2"), other_rev=77)
    assert (await dispatch(cell, stale)).words == ["FULL"]
    plan = await placement(cell, "a1", "a2")
    await cell.redis.srem(cell.keys.of("agents:active"), "a2")
    assert (await dispatch(cell, plan)).words == ["FULL"]
    unknown = replace(plan, other_id="stranger")
    assert (await dispatch(cell, unknown)).words == ["FULL"]
    assert await cell.counter("plans_refused") == 4
    await cell.redis.sadd(cell.keys.of("agents:active"), "a2")
    assert (await dispatch(cell, plan)).words == ["MOVED"]


async def test_a_first_agent_that_has_changed_is_reported(cell: Cell) -> None:
    """The view has to read its row again, so its task goes nowhere."""
    await cell.register("a1")
    await cell.register("a2")
    await cell.submit()
    plan = replace(await placement(cell, "a1", "a2"), rev=77)
    assert (await dispatch(cell, plan)).words == ["CHANGED"]
    assert await cell.load("a2") == 0


async def test_two_plans_share_the_room_of_a_second_agent(cell: Cell) -> None:
    """It never gets more than it has room for, also beside its own tasks."""
    for number in range(1, 4):
        await cell.register(f"a{number}", capacity=1)
        await cell.submit(f"t{number}")
    await cell.assign("x1", "a1")
    await cell.assign("x2", "a2")
    one, two = await placement(cell, "a1", "a3"), await placement(cell, "a2", "a3")
    assert (await dispatch(cell, one, two)).words == ["MOVED", "FULL"]
    assert (await cell.task("t1")).agent_id == "a3"
    await cell.complete("t1")
    plan = [await placement(cell, "a1", "a3"), await cell.placement("a3")]
    assert (await dispatch(cell, *plan)).words == ["FULL", "ASSIGNED"]
    assert await cell.load("a3") == 1
