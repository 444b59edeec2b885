"""``replay``: a failed task is set going again."""

from __future__ import annotations

from typing import Any

import pytest

from coord.models.tasks import HEAD_START_MS, Priority
from tests.scripts.cell import START, Cell
from workers.transitions import Replay, TaskBatch


async def request(cell: Cell, task_id: str = "t1", *, caller: str = "op") -> Replay:
    """A request to replay a task, appended."""
    return Replay(await cell.append("in:control:distributor", "task.replayed"), task_id, caller)


async def replay(cell: Cell, task_id: str = "t1", *, caller: str = "op") -> str:
    """Replay a task; the word."""
    return await cell.word(cell.scripts.replay([await request(cell, task_id, caller=caller)]))


async def failed(cell: Cell, task_id: str = "t1", **options: Any) -> None:
    """A task that an agent has claimed and failed for good."""
    await cell.assign(task_id, **options)
    assert await cell.fail(task_id, retryable=False) == "OK"
    assert await cell.state(task_id) == "failed"


@pytest.mark.on_fakeredis
async def test_a_failed_task_is_queued_with_fresh_attempts_and_its_story(cell: Cell) -> None:
    """Same id, no failures counted, the attempt's number and story kept; the operator is told."""
    await cell.register()
    await failed(cell, priority="high", max_attempts=2)
    before = await cell.task()
    cell.now += 5_000

    assert await replay(cell) == "REPLAYED"

    task = await cell.task()
    assert (task.state, task.attempt, task.failures, task.releases) == ("queued", 1, 0, 0)
    assert (task.lease, task.agent_id, task.error, task.finished_at) == (None, None, None, None)
    assert (task.submitted_at, task.replayed_at, task.attempts) == (START, START + 5_000, before.attempts)
    assert await cell.redis.zcard(cell.keys.of("tasks:dead")) == 0
    assert await cell.last_answer("op") == "ok"
    assert (await cell.logged())[-1] == "task.replayed"
    assert [await cell.counter(f"{name}:high") for name in ("submitted", "failed", "queued")] == [1, 0, 1]
    assert await cell.counter("backlog_bytes") > 0
    assert await cell.is_consumed("in:control:distributor")


@pytest.mark.parametrize("options", [{}, {"preferences": b'{"affinity_key":"k"}'}])
async def test_fresh_attempts_avoid_no_agent(cell: Cell, options: dict[str, Any]) -> None:
    """The task waits where it did at first: in the named queue only if it has preferences."""
    await cell.register()
    first = "p-t1.named" if options else "p-t1"
    await cell.submit(pool=first, max_attempts=2, **options)
    await cell.dispatch(pool="p-t1")
    await cell.fail()
    cell.now += 60_000
    await cell.run_alarms()
    assert ((await cell.task()).pool, (await cell.task()).avoid) == ("p-t1.named", ("a1",))
    await cell.dispatch(pool="p-t1")
    await cell.fail()
    assert await replay(cell) == "REPLAYED"
    assert ((await cell.task()).pool, (await cell.task()).avoid) == (first, ())
    assert await cell.dispatch(pool="p-t1") == "ASSIGNED"


async def test_it_waits_as_if_it_had_been_submitted_now(cell: Cell) -> None:
    """Else many that are replayed after a week would overtake everybody who waits."""
    await cell.register()
    await failed(cell, priority="low")
    cell.now += 600_000
    await replay(cell)
    score = await cell.redis.zscore(cell.keys.queue("p-t1"), "t1")
    assert score == cell.now - HEAD_START_MS[Priority.LOW]


async def test_its_caller_is_told_the_new_outcome(cell: Cell) -> None:
    """Whoever submitted it hears that it failed, and then that it completed."""
    await cell.register()
    await failed(cell, caller="c1", notify=True)
    await replay(cell)
    assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
    assert await cell.claim()
    assert (await cell.task()).attempt == 2
    assert await cell.complete() == "OK"
    assert [told for _, told in await cell.answers() if told.startswith("task.")] == ["task.failed", "task.completed"]
    assert [await cell.counter(f"{name}:normal") for name in ("submitted", "failed", "completed")] == [1, 0, 1]


async def test_it_may_fail_as_often_again(cell: Cell) -> None:
    """Attempts are counted from the replay on; it may become a dead letter again, and be replayed again."""
    await cell.register()
    await failed(cell, max_attempts=2)
    for again in range(2):
        assert await replay(cell) == "REPLAYED"
        for state in ("scheduled", "failed"):
            assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
            assert await cell.claim()
            await cell.fail()
            assert await cell.state() == state
            cell.now += 60_000
            await cell.run_alarms()
        assert len((await cell.task()).attempts) == 3 + 2 * again


async def test_it_may_be_given_back_as_often_again(cell: Cell) -> None:
    """Releases, too, are counted from the replay on."""
    cell.change_settings(max_releases=1)
    await cell.register()
    await cell.assign()
    for again in range(2):
        for state in ("scheduled", "failed"):
            await cell.report("released", message="not now", started_ms_ago=5)
            assert await cell.state() == state, again
            if state == "failed":
                assert await replay(cell) == "REPLAYED"
            cell.now += 60_000
            await cell.run_alarms()
            assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
            assert await cell.claim()


async def test_a_late_report_under_its_old_lease_changes_nothing(cell: Cell) -> None:
    """The lease that failed stays settled: its outcome is the first one's, whatever the task does now."""
    await cell.register()
    await failed(cell)
    lease = (await cell.task()).attempts[0].lease
    await replay(cell)
    assert await cell.complete(lease=lease) == "DUPLICATE"
    assert await cell.state() == "queued"


@pytest.mark.guarantee("operator-requests-once")
async def test_the_same_request_twice_is_one(cell: Cell) -> None:
    """The script run twice for one entry replays once, even when the task failed again in between."""
    await cell.register()
    await failed(cell)
    call = cell.scripts.replay([await request(cell)])
    assert await cell.word(call) == "REPLAYED"
    before = await cell.dump()
    assert await cell.word(call) == "GONE"
    assert await cell.dump() == before
    await cell.dispatch(pool="p-t1")
    await cell.claim()
    await cell.fail(retryable=False)
    assert await cell.word(call) == "GONE"
    assert await cell.state() == "failed"


@pytest.mark.parametrize("state", ["scheduled", "queued", "assigned", "running", "completed", "cancelled", "expired"])
async def test_what_has_not_failed_is_left_alone(cell: Cell, state: str) -> None:
    """The answer says what the task is."""
    await cell.register()
    if state in {"scheduled", "queued", "cancelled", "expired"}:
        limits: dict[str, Any] = {"deadline": START + 10} if state == "expired" else {}
        await cell.submit(run_at=START + 5_000 if state == "scheduled" else None, **limits)
    else:
        await cell.assign()
    if state == "running":
        await cell.report("started")
    elif state == "completed":
        await cell.complete()
    elif state == "cancelled":
        await cell.cancel()
    elif state == "expired":
        cell.now += 20
        await cell.run_alarms()
    assert await cell.state() == state
    before = await cell.dump("log:", "in:")

    assert await replay(cell) == "NOT_DEAD"

    assert await cell.dump("log:", "in:") == before
    assert await cell.last_answer("op") == "task_not_dead"
    assert f"task 't1' is {state}" in (await cell.stream("replies:op"))[-1]["message"]


async def test_nothing_to_replay(cell: Cell) -> None:
    """An unknown task, and one that was never admitted, are not found."""
    assert await replay(cell, "ghost") == "NOT_FOUND"
    await cell.admit(await cell.submission("r1"), nearly_full=True)
    assert await replay(cell, "r1") == "NOT_FOUND"
    assert [one for _, one in await cell.answers("op")] == ["task_not_found"] * 2


async def test_a_task_whose_deadline_has_passed_stays_dead(cell: Cell) -> None:
    """It would expire at once; the operator is told so instead. Before that, its alarm is its deadline again."""
    await cell.register()
    await failed(cell, deadline=START + 50_000)
    cell.now += 10_000
    assert await replay(cell) == "REPLAYED"
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t1") == START + 50_000
    await cell.dispatch(pool="p-t1")
    await cell.claim()
    await cell.fail(retryable=False)
    cell.now += 40_000
    assert await replay(cell) == "EXPIRED"
    assert await cell.last_answer("op") == "task_expired"
    assert await cell.state() == "failed"


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own request, which stays pending; the others are replayed."""
    await cell.register(capacity=300)
    names = [f"t{n}" for n in range(100)]
    for name in names:
        await failed(cell, name)
    await cell.redis.set(cell.keys.task("bad"), "x")
    batch = [await request(cell, name) for name in [*names, "bad"]]

    answer: TaskBatch = await cell.run(cell.scripts.replay(batch))

    assert answer.words[:-1] == ["REPLAYED"] * 100
    assert answer.words[-1].startswith("ERROR ")
    assert len(answer.pools) == 100
    assert await cell.left("in:control:distributor") == [batch[-1].entry]
    await cell.redis.delete(cell.keys.task("bad"))
