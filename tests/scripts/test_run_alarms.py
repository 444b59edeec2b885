"""``run_alarms``: what is due by the clock."""

from __future__ import annotations

from typing import Any

import pytest
from redis.exceptions import ResponseError

from coord import queries
from coord.models.tasks import Pool
from tests.scripts.cell import DAY, START, Cell


@pytest.mark.on_fakeredis
async def test_a_scheduled_task_is_queued_when_it_is_due(cell: Cell) -> None:
    """Not a millisecond earlier; in its pool, under its score; the pool is told without its definition."""
    await cell.submit(run_at=START + 1_000)
    cell.now += 999
    assert await cell.run_alarms() == []
    cell.now += 1

    answer = await cell.run(cell.scripts.run_alarms())

    assert (answer.words, answer.pools, answer.raised) == (["QUEUED"], {"p1": (1, START + 1_000 - 60_000.0)}, 1)
    task = await cell.task()
    assert (task.state, task.run_at) == ("queued", None)
    assert await cell.redis.hget(cell.keys.of("pools"), "p1") == b""
    assert (await cell.logged())[-1] == "task.queued"


async def test_a_requeued_pool_is_told_by_its_first_tasks_body(cell: Cell) -> None:
    """A pool that comes back has no definition in the table: the waiting task's body gives it."""
    await cell.submit(run_at=START + 1)
    cell.now += 1
    await cell.run_alarms()
    _, (pool,) = await queries.list_waiting_pools(cell.redis, cell.keys, {})
    assert pool.definition.task_type == "echo"
    _, (pool,) = await queries.list_waiting_pools(cell.redis, cell.keys, {"p1": Pool("known")})
    assert pool.definition.task_type == "known"


async def test_waking_twice_at_one_moment_changes_nothing(cell: Cell) -> None:
    """Any number of distributors run alarms."""
    await cell.register(capacity=9)
    await cell.submit("t1", run_at=START + 1)
    await cell.assign("t2", claimed=False)
    await cell.assign("t3", timeout=5, max_attempts=1)
    await cell.submit("t4", deadline=START + 2)
    cell.now += 100_000
    assert sorted(await cell.run_alarms()) == ["EXPIRED", "QUEUED", "RECALLED", "TIMED_OUT"]
    before = await cell.dump()
    assert await cell.run_alarms() == []
    assert await cell.dump() == before


async def test_an_unclaimed_task_is_recalled(cell: Cell) -> None:
    """⚠ Its entry is deleted and the agent never saw it: no attempt is counted, soon it is placed again."""
    await cell.register()
    await cell.assign(claimed=False)
    await cell.run_alarms()
    cell.now += 60_000
    await cell.tick()

    answer = await cell.run(cell.scripts.run_alarms())

    assert (answer.words, answer.loads) == (["RECALLED"], {"a1": 0})
    task = await cell.task()
    assert (task.state, task.failures, task.releases, task.attempts[0].how) == ("scheduled", 0, 0, "recalled")
    assert await cell.stream("inbox:a1:normal") == []
    assert await cell.orders() == []
    assert not await cell.redis.exists(cell.keys.inflight("a1"))


async def test_an_agent_is_looked_after_for_the_earliest_of_its_tasks(cell: Cell) -> None:
    """What was given later has its own time; what is claimed or runs is nothing to wait for."""
    await cell.register(capacity=4)
    await cell.assign("t1")
    cell.now += 20_000
    await cell.assign("t2", claimed=False)
    await cell.assign("t3")
    assert await cell.report("started", "t3") == "OK"
    assert await cell.redis.zscore(cell.keys.of("unclaimed"), "a1") == START + 60_000
    cell.now = START + 60_000
    assert await cell.run_alarms() == ["KEPT"]
    assert (await cell.state("t1"), await cell.state("t2")) == ("assigned", "assigned")
    assert await cell.redis.zscore(cell.keys.of("unclaimed"), "a1") == START + 80_000
    cell.now = START + 80_000
    assert await cell.run_alarms() == ["RECALLED"]
    assert await cell.state("t2") == "scheduled"
    assert await cell.redis.zcard(cell.keys.of("unclaimed")) == 0


async def test_a_shorter_start_timeout_is_kept(cell: Cell) -> None:
    """A task that has to be claimed sooner than what its agent was given before is looked after in its own time."""
    await cell.register()
    await cell.assign("t1")
    cell.change_settings(start_timeout_ms=5_000)
    await cell.assign("t2", claimed=False)
    cell.now += 5_000
    assert await cell.run_alarms() == ["RECALLED"]
    assert await cell.redis.zscore(cell.keys.of("unclaimed"), "a1") == START + 60_000


async def test_an_agent_that_left_is_looked_after_no_longer(cell: Cell) -> None:
    """Its place is given up when its time has come."""
    await cell.register()
    await cell.assign()
    await cell.complete()
    cell.now += 60_000
    assert await cell.run_alarms() == []
    assert await cell.redis.zcard(cell.keys.of("unclaimed")) == 0


@pytest.mark.guarantee("returns-never-fail-a-task")
async def test_an_agent_that_does_not_claim_gets_nothing_until_it_is_heard_of(cell: Cell) -> None:
    """⚠ A recall fails no task, however often, and suspends the agent until the registry has handled a later fact."""
    cell.change_settings(max_releases=1)
    await cell.register()
    await cell.assign(claimed=False)
    for _ in range(4):
        await cell.run_alarms()
        cell.now += 60_000
        assert await cell.run_alarms() == ["RECALLED"]
        assert await queries.get_suspended_agents(cell.redis, cell.keys) == {"a1"}
        cell.now += 5_000
        assert await cell.run_alarms() == ["QUEUED"]
        assert await cell.dispatch(pool="p-t1") == "INACTIVE"
        assert not (await queries.get_fleet(cell.redis, cell.keys))["a1"].active
        await cell.heartbeat()
        assert await queries.get_suspended_agents(cell.redis, cell.keys) == set()
        assert (await queries.get_fleet(cell.redis, cell.keys))["a1"].active
        assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
        assert await cell.redis.hlen(cell.keys.of("suspended")) == 0


async def test_a_claimed_task_is_left_alone_by_the_start_timeout(cell: Cell) -> None:
    """⚠ The agent deleted the entry, so it owns the task however long it takes to say that it started."""
    await cell.register()
    await cell.assign(claimed=True)
    cell.now += 60_000
    assert await cell.run_alarms() == ["KEPT"]
    assert await cell.state() == "assigned"
    assert await cell.redis.zcard(cell.keys.of("unclaimed")) == 0
    cell.now += DAY
    assert await cell.run_alarms() == []
    assert await cell.complete() == "OK"


async def test_a_running_attempt_times_out(cell: Cell) -> None:
    """A failed attempt that is tried again; its agent is told to stop, and its late report counts for nothing."""
    await cell.register()
    await cell.assign(timeout=30_000)
    lease = await cell.lease()
    await cell.report("started")
    cell.now += 30_000

    await cell.tick()
    answer = await cell.run(cell.scripts.run_alarms())
    assert (answer.words, answer.timed_out) == (["TIMED_OUT"], (lease,))

    task = await cell.task()
    assert (task.state, task.failures, task.attempts[0].how) == ("scheduled", 1, "timed_out")
    assert await cell.orders() == [("t1", lease)]
    assert await cell.complete(lease=lease) == "DUPLICATE"


async def test_an_agent_that_cannot_be_told_to_stop_keeps_nothing(cell: Cell) -> None:
    """⚠ The lease is the fence, and the order a courtesy: where it cannot be written, the attempt ends all the same."""
    await cell.register()
    await cell.assign(timeout=30_000)
    lane = cell.keys.inbox("a1", "critical")
    await cell.redis.set(lane, "x")
    cell.now += 30_000
    assert await cell.run_alarms() == ["TIMED_OUT"]
    await cell.redis.delete(lane)
    assert (await cell.state(), await cell.load()) == ("scheduled", 0)


async def test_a_claimed_attempt_times_out_before_it_was_reported_started(cell: Cell) -> None:
    """A claim does not stop the clock of the attempt."""
    await cell.register()
    await cell.assign(timeout=5_000)
    cell.now += 5_000
    assert await cell.run_alarms() == ["TIMED_OUT"]


async def test_an_unclaimed_attempt_is_recalled_at_its_timeout(cell: Cell) -> None:
    """With a timeout shorter than the start timeout nothing has run, so nothing is counted."""
    await cell.register()
    await cell.assign(timeout=5_000, claimed=False)
    cell.now += 5_000
    assert await cell.run_alarms() == ["RECALLED"]
    assert (await cell.task()).failures == 0


@pytest.mark.parametrize("state", ["scheduled", "queued", "assigned", "claimed", "running"])
async def test_a_deadline_ends_a_task_in_every_state(cell: Cell, state: str) -> None:
    """Expired is an outcome: told, kept, out of every queue; an agent that claimed it is told to stop."""
    await cell.register()
    deadline = START + 1_000
    caller: dict[str, Any] = {"caller": "c1", "notify": True}
    lease = ""
    if state in {"scheduled", "queued"}:
        await cell.submit(deadline=deadline, run_at=START + 5_000 if state == "scheduled" else None, **caller)
    else:
        await cell.assign(deadline=deadline, claimed=state != "assigned", **caller)
        lease = await cell.lease()
    if state == "running":
        await cell.report("started")
    cell.now += 1_000

    assert await cell.run_alarms() == ["EXPIRED"]

    task = await cell.task()
    assert task.error is not None
    assert (task.state, task.error.code, task.finished_at) == ("expired", "task_expired", START + 1_000)
    assert await cell.last_answer() == "task.expired"
    assert await cell.orders() == ([("t1", lease)] if state in {"claimed", "running"} else [])
    assert (await cell.logged())[-1] == "task.expired"
    assert await cell.load() == 0


async def test_a_cancel_is_forced_after_the_grace(cell: Cell) -> None:
    """An agent that does not stop loses the task; its late report changes nothing."""
    await cell.register()
    await cell.assign()
    lease = await cell.lease()
    assert await cell.cancel() == "STOPPING"
    cell.now += 9_999
    assert await cell.run_alarms() == []
    cell.now += 1

    assert await cell.run_alarms() == ["CANCELLED"]

    task = await cell.task()
    assert (task.state, task.attempts[0].how) == ("cancelled", "cancelled")
    assert await cell.complete(lease=lease) == "DUPLICATE"
    assert await cell.load() == 0


async def test_the_next_moment_is_kept(cell: Cell) -> None:
    """After one alarm the next due one of the same task is set from its record."""
    await cell.register()
    await cell.assign(deadline=START + DAY)
    await cell.run_alarms()
    cell.now += 60_000
    assert await cell.run_alarms() == ["KEPT"]
    assert await cell.redis.zscore(cell.keys.of("deadlines"), "t1") == START + DAY


async def test_an_alarm_without_a_task_is_dropped(cell: Cell) -> None:
    """Its record was forgotten or flushed."""
    await cell.redis.zadd(cell.keys.of("alarms"), {"ghost": START})
    assert await cell.run_alarms() == ["GONE"]
    assert await cell.run_alarms() == []


async def test_a_leftover_alarm_of_an_ended_task_is_dropped(cell: Cell) -> None:
    """It is not looked at again and again, even where the record has a deadline."""
    await cell.register()
    await cell.assign(deadline=START + 1)
    await cell.complete()
    await cell.redis.zadd(cell.keys.of("alarms"), {"t1": START})
    cell.now += 10
    assert await cell.run_alarms() == ["KEPT"]
    assert await cell.run_alarms() == []


async def test_alarms_are_taken_a_bounded_number_at_a_time(cell: Cell) -> None:
    """What is due beyond ``most`` is counted, and left for the next call."""
    await cell.admit(*[await cell.submission(f"t{n}", run_at=START + 1 + n) for n in range(250)])
    cell.now += 1_000
    answer = await cell.run(cell.scripts.run_alarms(100))
    assert (len(answer.words), answer.due) == (100, 150)
    answer = await cell.run(cell.scripts.run_alarms(256))
    assert (answer.words, answer.due) == (["QUEUED"] * 150, 0)
    assert await cell.redis.zcard(cell.keys.queue("p1")) == 250


@pytest.mark.parametrize("broken", ["task:t1", "queue:bad"])
async def test_a_broken_task_stands_in_nobodys_way(cell: Cell, broken: str) -> None:
    """⚠ Its alarm is put off by a minute, so that it cannot crowd out the others; these are done and counted."""
    for n in range(3):
        await cell.submit(f"t{n}", run_at=START + 1, pool="bad" if n == 1 else "p1")
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")
    cell.now += 1

    answer = await cell.run(cell.scripts.run_alarms())

    assert sorted(word[:6] for word in answer.words) == ["ERROR ", "QUEUED", "QUEUED"]
    assert (answer.due, answer.pools["p1"][0]) == (0, 2)
    assert await cell.counter("queued:normal") == 2
    await cell.redis.delete(cell.keys.of(broken))
    if kept:
        await cell.redis.restore(cell.keys.of(broken), 0, kept)
    cell.now += 60_000
    assert await cell.run_alarms() == ["QUEUED"]


@pytest.mark.parametrize(("options", "after"), [({}, 60_000), ({"timeout": 1_000}, 1_000)], ids=["start", "timeout"])
async def test_a_recall_that_fails_leaves_the_assignment(cell: Cell, options: dict[str, Any], after: int) -> None:
    """⚠ The inbox entry is deleted only where the attempt can be ended, or nobody would have the task."""
    await cell.register()
    await cell.assign(claimed=False, **options)
    kept = await cell.redis.dump(cell.keys.inflight("a1"))
    await cell.redis.set(cell.keys.inflight("a1"), "x")
    cell.now += after
    (word,) = await cell.run_alarms()
    assert word.startswith("ERROR ")
    assert [one["task_id"] for one in await cell.stream("inbox:a1:normal")] == ["t1"]
    await cell.redis.restore(cell.keys.inflight("a1"), 0, kept, replace=True)
    cell.now += 60_000
    assert "RECALLED" in await cell.run_alarms()


@pytest.mark.parametrize(
    "broken", ["counters", "pools", "alarms", "unclaimed", "tasks:terminal", "tasks:dead", "tasks:refused"]
)
async def test_a_broken_index_leaves_everything_as_it_is(cell: Cell, broken: str) -> None:
    """⚠ What every batch writes to is of its type, or nothing is begun: mended, the same is due still."""
    await cell.submit("t1", run_at=START + 1)
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")
    cell.now += 1
    before = await cell.dump()

    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await cell.scripts.run(cell.scripts.run_alarms())

    assert await cell.dump() == before
    await cell.redis.delete(cell.keys.of(broken))
    if kept:
        await cell.redis.restore(cell.keys.of(broken), 0, kept)
    assert await cell.run_alarms() == ["QUEUED"]
