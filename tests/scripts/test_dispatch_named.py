"""``dispatch`` of tasks that the plan names: each at most once, and only while it waits in the queue of the plan."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from coord import queries
from coord.models.agents import Location
from coord.models.tasks import NamedTask, Preferences, Priority
from tests.scripts.cell import START, Cell
from workers.transitions import Placement

QUEUE = "p1.named"
NEAR = {"preferences": b'{"location":{"region":"eu"},"affinity_key":"k"}'}


async def named(cell: Cell, task_id: str, agent_id: str = "a1", pool: str = QUEUE) -> Placement:
    """A planned assignment of this task."""
    return replace(await cell.placement(agent_id, pool=pool), task_id=task_id)


@pytest.mark.on_fakeredis
async def test_the_task_that_the_plan_names_is_assigned(cell: Cell) -> None:
    """Not the one before it; the record keeps what the task prefers."""
    await cell.register()
    for task in ("t1", "t2"):
        await cell.submit(task, pool=QUEUE, **NEAR)

    answer = await cell.run(cell.scripts.dispatch([await named(cell, "t2")]))

    assert (answer.words, answer.loads, answer.pools[QUEUE][0]) == (["ASSIGNED"], {"a1": 1}, 1)
    assert [await cell.state(task) for task in ("t1", "t2")] == ["queued", "assigned"]
    found = await cell.task("t2")
    assert (found.agent_id, found.location, found.affinity_key) == ("a1", Location(region="eu"), "k")
    assert not await cell.redis.hexists(cell.keys.of("counters"), "plans_late")


@pytest.mark.guarantee("named-tasks")
async def test_a_task_that_another_distributor_has_assigned_is_gone(cell: Cell) -> None:
    """⚠ It is assigned once; the slot that was planned for it is free again."""
    await cell.register(capacity=3)
    await cell.submit("t1", pool=QUEUE)
    plans = [[await named(cell, "t1"), await named(cell, "t1")], [await named(cell, "t1")]]

    one, two = await cell.scripts.run(*[cell.scripts.dispatch(plan) for plan in plans])

    assert (one.words, two.words) == (["ASSIGNED", "GONE"], ["GONE"])
    assert two.loads == {"a1": 1}
    assert (one.pools, two.pools) == ({QUEUE: (0, 0.0)}, {QUEUE: (0, 0.0)})
    assert await queries.list_waiting_pools(cell.redis, cell.keys, {}) == (2, [])


@pytest.mark.guarantee("named-tasks")
@pytest.mark.parametrize("what", ["cancelled", "expired", "moved", "unknown", "foreign"])
async def test_a_task_that_does_not_wait_in_the_queue_is_gone(cell: Cell, what: str) -> None:
    """Its id does not stay in the queue, where it would be planned for ever."""
    await cell.register(capacity=3)
    await cell.submit("t1", pool="p2.named" if what == "moved" else QUEUE, deadline=START + 10)
    if what == "cancelled":
        await cell.cancel("t1")
    elif what == "expired":
        cell.now += 10
    elif what != "moved":
        await cell.redis.zadd(cell.keys.queue(QUEUE), {"t2": 1})
        if what == "foreign":
            await cell.redis.set(cell.keys.task("t2"), "x")
    else:
        await cell.redis.zadd(cell.keys.queue(QUEUE), {"t1": 1})
    which = "t2" if what in {"unknown", "foreign"} else "t1"

    answer = await cell.run(cell.scripts.dispatch([await named(cell, which)]))

    assert answer.words == ["GONE"]
    assert await cell.redis.zscore(cell.keys.queue(QUEUE), which) is None
    assert await cell.load() == 0
    if what == "moved":
        assert await cell.state("t1") == "queued"
        assert await cell.redis.zscore(cell.keys.queue("p2.named"), "t1") is not None
    if what == "expired":
        assert await cell.state("t1") == "expired"
    await cell.redis.delete(cell.keys.task("t2"))


async def test_a_plan_mixes_both_queues(cell: Cell) -> None:
    """Each group gets its own tasks, in turn; what has no room is FULL and waits."""
    await cell.register(capacity=3)
    for task in ("t1", "t2"):
        await cell.submit(task)
        await cell.submit(f"n{task}", pool=QUEUE)
    plan = [
        await cell.placement(),
        await named(cell, "nt2"),
        await cell.placement(),
        await named(cell, "nt1"),
    ]

    answer = await cell.run(cell.scripts.dispatch(plan))

    assert answer.words == ["ASSIGNED", "ASSIGNED", "ASSIGNED", "FULL"]
    assert {name: length for name, (length, _) in answer.pools.items()} == {"p1": 0, QUEUE: 1}
    assert await cell.state("nt1") == "queued"


@pytest.mark.parametrize("broken", ["queue:p2.named", "inbox:bad:normal", "inflight:bad"])
async def test_a_broken_key_fails_its_own_placement_only(cell: Cell, broken: str) -> None:
    """⚠ A wrong type in the middle of a batch: no task is lost, the others are assigned."""
    for agent in ("a1", "bad", "a2"):
        await cell.register(agent)
    for task in ("t1", "t2", "t3"):
        await cell.submit(task, pool=QUEUE)
    await cell.redis.set(cell.keys.of(broken), "x")
    second = await named(cell, "t2", "bad", pool="p2.named" if broken.startswith("queue") else QUEUE)
    plan = [await named(cell, "t1"), second, await named(cell, "t3", "a2")]

    answer = await cell.run(cell.scripts.dispatch(plan))

    assert [word[:6] for word in answer.words] == ["ASSIGN", "ERROR ", "ASSIGN"]
    assert await cell.state("t2") == "queued"
    assert answer.pools[QUEUE][0] == 1
    await cell.redis.delete(cell.keys.of(broken))


async def test_what_a_plan_needs_is_read_from_the_records(cell: Cell) -> None:
    """In the order of the queue, with the priority; so it survives every distributor."""
    await cell.submit("t1", pool=QUEUE, priority="low", **NEAR)
    await cell.submit("t2", pool=QUEUE)
    await cell.submit("t3", pool=QUEUE, priority="high")
    found = await queries.get_named_tasks(cell.redis, cell.keys, {QUEUE: 9, "none.named": 9})
    length, tasks = found[QUEUE]
    assert length == 3
    assert tasks == [
        NamedTask(START - 120_000, "t3", Priority.HIGH),
        NamedTask(START - 60_000, "t2"),
        NamedTask(START, "t1", Priority.LOW, Preferences(Location(region="eu"), "k")),
    ]
    assert found["none.named"] == (0, [])
    length, tasks = (await queries.get_named_tasks(cell.redis, cell.keys, {QUEUE: 1}))[QUEUE]
    assert (length, [task.task_id for task in tasks]) == (3, ["t3"])
