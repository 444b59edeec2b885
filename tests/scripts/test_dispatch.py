"""``dispatch``: the only authority over who gets what."""

from __future__ import annotations

import pytest

from coord import queries
from coord.models.tasks import LANE, Priority
from tests.scripts.cell import START, Cell


@pytest.mark.on_fakeredis
@pytest.mark.parametrize("priority", list(Priority))
async def test_a_task_is_assigned(cell: Cell, priority: Priority) -> None:
    """Popped, recorded under its lease, in flight, and pushed on the lane of its priority, in one go."""
    await cell.register()
    await cell.submit(priority=priority)

    assert await cell.dispatch() == "ASSIGNED"

    task = await cell.task()
    assert (task.state, task.agent_id, task.term, task.attempt) == ("assigned", "a1", 1, 1)
    assert (task.assigned_at, task.placement) == (START, {"strategy": "test"})
    (entry,) = await cell.stream(f"inbox:a1:{LANE[priority]}")
    assert entry == {
        "message_type": "task_assignment",
        "data": '{"task_type":"echo","payload":{"n":1}}',
        "task_id": "t1",
        "lease": task.lease,
        "attempt": "1",
        "incarnation": "i1",
    }
    assert await cell.load() == 1
    assert await cell.redis.zscore(cell.keys.of("unclaimed"), "a1") == START + 60_000
    assert await cell.redis.exists(cell.keys.of("alarms")) == 0
    assert await cell.counter("backlog_bytes") == 0
    assert (await cell.logged())[-1] == "task.assigned"


async def test_what_the_batch_answers(cell: Cell) -> None:
    """The true loads of the agents and the state of the pools that it touched; an emptied pool leaves the table."""
    await cell.register("a1")
    await cell.register("a2")
    await cell.submit("t1")
    await cell.submit("t2")
    placements = [await cell.placement("a1"), await cell.placement("a2"), await cell.placement("a1")]

    answer = await cell.run(cell.scripts.dispatch(placements))

    assert answer.words == ["ASSIGNED", "ASSIGNED", "EMPTY"]
    assert answer.loads == {"a1": 1, "a2": 1}
    assert answer.pools == {"p1": (0, 0.0)}
    assert (answer.pools_rev, answer.raised) == (2, 1)
    assert await queries.list_waiting_pools(cell.redis, cell.keys, {}) == (2, [])


async def test_an_empty_pool_gives_nothing(cell: Cell) -> None:
    """EMPTY changes nothing but a counter."""
    await cell.register()
    before = await cell.dump("counters")
    assert await cell.dispatch() == "EMPTY"
    assert await cell.dump("counters") == before


async def test_only_an_active_agent_is_given_work(cell: Cell) -> None:
    """INACTIVE for one that is busy, gone or unknown; the task keeps waiting."""
    await cell.register()
    await cell.change_status(status="busy")
    await cell.submit()
    assert await cell.dispatch() == "INACTIVE"
    assert await cell.dispatch("ghost") == "INACTIVE"
    assert await cell.state() == "queued"


@pytest.mark.guarantee("stale-plans")
async def test_a_plan_on_an_older_rev_is_not_carried_out(cell: Cell) -> None:
    """⚠ CHANGED when the agent is not as the plan saw it: it may lack now what the task requires."""
    await cell.register()
    await cell.submit()
    await cell.register(digest="d2", facets="type:worker")
    assert await cell.dispatch(rev=1) == "CHANGED"
    assert await cell.state() == "queued"
    assert await cell.dispatch(rev=2) == "ASSIGNED"


async def test_capacity_is_never_exceeded(cell: Cell) -> None:
    """⚠ Two plans on stale views: each fits, together they do not; what is too much is FULL and keeps waiting."""
    await cell.register(capacity=3)
    for n in range(6):
        await cell.submit(f"t{n}")
    first = [await cell.placement() for _ in range(2)]
    second = [await cell.placement() for _ in range(3)]

    one, two = await cell.scripts.run(cell.scripts.dispatch(first), cell.scripts.dispatch(second))

    assert one.words == ["ASSIGNED", "ASSIGNED"]
    assert two.words == ["ASSIGNED", "FULL", "FULL"]
    assert two.loads == {"a1": 3}
    assert await cell.load() == 3
    assert await cell.redis.zcard(cell.keys.queue("p1")) == 3


async def test_an_agent_without_capacity_gets_nothing(cell: Cell) -> None:
    """Capacity 0 is FULL."""
    await cell.register(capacity=0)
    await cell.submit()
    assert await cell.dispatch() == "FULL"


@pytest.mark.guarantee("priority")
async def test_tasks_go_by_aged_priority(cell: Cell) -> None:
    """A low task is overtaken by normal ones submitted within 60 s after it, and by no later one."""
    await cell.register(capacity=9)
    await cell.submit("low", priority="low")
    cell.now += 59_999
    await cell.submit("soon")
    cell.now += 2
    await cell.submit("late")

    for expected in ("soon", "low", "late"):
        await cell.dispatch()
        assert await cell.state(expected) == "assigned"


async def test_the_head_is_popped_first(cell: Cell) -> None:
    """The task with the lowest score is the one that is assigned."""
    await cell.register(capacity=9)
    await cell.submit("normal")
    await cell.submit("urgent", priority="urgent")
    await cell.dispatch()
    assert await cell.state("urgent") == "assigned"
    assert await cell.state("normal") == "queued"


async def test_each_call_pops_anew(cell: Cell) -> None:
    """⚠ The one script that must not be repeated: again, it puts a second task under the same lease."""
    await cell.register()
    await cell.submit("t1")
    await cell.submit("t2")
    call = cell.scripts.dispatch([await cell.placement()])
    await cell.run(call)
    await cell.run(call)
    assert await cell.lease("t1") == await cell.lease("t2")


async def test_a_timeout_bounds_the_attempt_from_its_assignment(cell: Cell) -> None:
    """The timeout goes by the clock of attempts, the deadline by the server's."""
    await cell.register()
    await cell.assign("t1", timeout=30_000)
    await cell.assign("t2", timeout=90_000, deadline=START + 10_000)
    assert await cell.redis.zscore(cell.keys.of("limits"), "t1") == START + 30_000
    assert await cell.redis.zscore(cell.keys.of("limits"), "t2") == START + 90_000
    assert await cell.redis.zscore(cell.keys.of("deadlines"), "t2") == START + 10_000
    assert await cell.redis.zcard(cell.keys.of("alarms")) == 0


@pytest.mark.guarantee("no-task-past-its-deadline")
async def test_nobody_is_given_what_has_expired(cell: Cell) -> None:
    """⚠ Its alarm may ring later than an agent has room: it ends, and the one behind it goes in its place."""
    await cell.register(capacity=3)
    await cell.submit("t1", deadline=START + 10, caller="c1", notify=True)
    await cell.submit("t2", deadline=START + 11)
    await cell.submit("t3")
    cell.now += 10
    answer = await cell.run(cell.scripts.dispatch([await cell.placement() for _ in range(3)]))
    assert answer.words == ["ASSIGNED", "ASSIGNED", "EMPTY"]
    assert (answer.loads, answer.pools["p1"]) == ({"a1": 2}, (0, 0.0))
    assert [await cell.state(task) for task in ("t1", "t2", "t3")] == ["expired", "assigned", "assigned"]
    assert await cell.last_answer() == "task.expired"
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t1") is None
    assert await cell.counter("expired:normal") == 1


async def test_an_agent_without_incarnation_has_a_default_timeout(cell: Cell) -> None:
    """Nothing else would show that a shell agent lost its task: one hour, unless the task says otherwise."""
    await cell.register(incarnation="")
    await cell.assign("t1")
    await cell.assign("t2", timeout=5_000)
    assert await cell.fields("t1", "timeout_at") == [str(START + 3_600_000)]
    assert await cell.fields("t2", "timeout_at") == [str(START + 5_000)]


async def test_the_term_is_copied_into_the_task(cell: Cell) -> None:
    """A later loss of an earlier term leaves the task alone."""
    await cell.register(incarnation="i1")
    await cell.register(incarnation="i2")
    assert (await cell.assign()).term == 2


async def test_a_second_attempt_counts_on(cell: Cell) -> None:
    """``attempt`` is a number for people: each assignment raises it."""
    await cell.register()
    await cell.assign()
    await cell.fail()
    cell.now += 60_000
    await cell.run_alarms()
    await cell.dispatch(pool="p-t1")
    assert (await cell.task()).attempt == 2


async def test_a_name_without_a_waiting_task_is_dropped(cell: Cell) -> None:
    """A fail-over may leave a name in a queue whose task is gone: the next one is taken instead."""
    await cell.register()
    await cell.submit()
    await cell.redis.zadd(cell.keys.queue("p1"), {"ghost": 1})
    assert await cell.dispatch() == "ASSIGNED"
    assert await cell.state() == "assigned"


@pytest.mark.parametrize("broken", ["queue:bad", "inbox:bad:normal", "inflight:bad"])
async def test_a_broken_key_fails_its_own_placement_only(cell: Cell, broken: str) -> None:
    """⚠ A wrong type in the middle of a batch: no task is lost, the others are assigned and counted."""
    for agent in ("a1", "bad", "a2"):
        await cell.register(agent)
    await cell.submit("t1")
    await cell.submit("t2")
    await cell.redis.set(cell.keys.of(broken), "x")
    pool = "bad" if broken == "queue:bad" else "p1"
    plan = [await cell.placement("a1"), await cell.placement("bad", pool=pool, rev=1), await cell.placement("a2")]

    answer = await cell.run(cell.scripts.dispatch(plan))

    assert [word[:6] for word in answer.words] == ["ASSIGN", "ERROR ", "ASSIGN"]
    assert answer.pools["p1"] == (0, 0.0)
    assert await cell.counter("assigned:normal") == 2
    await cell.redis.delete(cell.keys.of(broken))


async def test_a_broken_log_does_not_undo_an_assignment(cell: Cell) -> None:
    """⚠ What cannot be told of is done all the same: no task is given to two agents, none waits that was given."""
    for agent in ("a1", "a2"):
        await cell.register(agent)
    await cell.submit("t1")
    await cell.submit("t2")
    await cell.redis.set(cell.keys.of("log:tasks"), "x")

    answer = await cell.run(cell.scripts.dispatch([await cell.placement("a1"), await cell.placement("a2")]))

    assert answer.words == ["ASSIGNED", "ASSIGNED"]
    assert (await cell.load("a1"), await cell.load("a2"), answer.pools["p1"][0]) == (1, 1, 0)
    await cell.redis.delete(cell.keys.of("log:tasks"))


async def test_tasks_that_could_not_be_assigned_keep_their_place(cell: Cell) -> None:
    """⚠ Nothing is ever nowhere: what was popped for an agent that failed is back in its queue, in its order."""
    await cell.register("bad", capacity=9)
    for n in range(3):
        await cell.submit(f"t{n}")
        cell.now += 1
    before = await cell.redis.zrange(cell.keys.queue("p1"), 0, -1, withscores=True)
    await cell.redis.set(cell.keys.inbox("bad", "normal"), "x")
    answer = await cell.run(cell.scripts.dispatch([await cell.placement("bad") for _ in range(3)]))
    assert {word[:6] for word in answer.words} == {"ERROR "}
    assert answer.pools["p1"][0] == 3
    assert await cell.redis.zrange(cell.keys.queue("p1"), 0, -1, withscores=True) == before
    await cell.redis.delete(cell.keys.inbox("bad", "normal"))


async def test_a_large_batch(cell: Cell) -> None:
    """256 placements with explanations of their own in one call."""
    await cell.register(capacity=200)
    await cell.register("a2", capacity=200)
    await cell.admit(*[await cell.submission(f"t{n}", body=b"x" * 4_096) for n in range(300)])
    plan = [await cell.placement("a1" if n % 2 else "a2", rev=1) for n in range(256)]
    answer = await cell.run(cell.scripts.dispatch(plan))
    assert answer.words == ["ASSIGNED"] * 256
    assert answer.loads == {"a1": 128, "a2": 128}
    assert answer.pools["p1"][0] == 44


@pytest.mark.on_fakeredis
async def test_an_id_of_a_task_of_another_pool_is_dropped(cell: Cell) -> None:
    """⚠ A fail-over may leave an id in a queue that its task has left: it is not placed by the rules of that pool."""
    await cell.register(capacity=10)
    await cell.submit("t1", pool="p1")
    await cell.submit("t2", pool="p2")
    await cell.redis.zadd(cell.keys.queue("p1"), {"t2": 0})
    assert await cell.dispatch(pool="p1") == "ASSIGNED"
    assert [(await cell.task(name)).state for name in ("t1", "t2")] == ["assigned", "queued"]
    assert await cell.dispatch(pool="p2") == "ASSIGNED"
    assert (await cell.task("t2")).state == "assigned"
