"""The end of an attempt, one body for every script that can end one; here it is ``settle`` that does."""

from __future__ import annotations

import json

import pytest

from coord.models.tasks import TaskError
from tests.scripts.cell import START, Cell


async def test_a_failure_is_retried_after_a_rest(cell: Cell) -> None:
    """It waits out a backoff with full jitter as scheduled; the attempt's story is kept."""
    await cell.register()
    await cell.assign()
    lease = await cell.lease()
    cell.now += 500

    assert await cell.fail(started_ms_ago=400) == "OK"

    task = await cell.task()
    assert (task.state, task.failures, task.releases, task.agent_id, task.lease) == ("scheduled", 1, 0, None, None)
    (attempt,) = task.attempts
    assert (attempt.attempt, attempt.agent_id, attempt.lease, attempt.how) == (1, "a1", lease, "failed")
    assert (attempt.code, attempt.message) == ("boom", "it broke")
    assert (attempt.assigned_at, attempt.started_at, attempt.ended_at) == (START, START + 100, START + 500)
    assert await cell.counter("retried") == 1
    assert (await cell.logged())[-1] == "task.retried"


@pytest.mark.guarantee("retry-elsewhere")
@pytest.mark.parametrize("end", ["fail", "time out", "lose"])
async def test_a_retry_avoids_the_agents_of_the_failed_attempts(cell: Cell, end: str) -> None:
    """The last one first, each once, at most eight; the task waits in the named queue of its pool."""
    for number in range(10):
        await cell.register(f"a{number}", capacity=9)
    await cell.submit(pool="p-t1", max_attempts=99, timeout=1_000, backoff_max_ms=1)
    assert await cell.fields("t1", "avoid") == [None]
    for agent in (*[f"a{number}" for number in range(10)], "a5"):
        await cell.dispatch(agent, pool="p-t1")
        await cell.claim()
        if end == "fail":
            await cell.fail()
        elif end == "lose":
            await cell.reclaim(agent)
        else:
            cell.now += 1_001
            await cell.run_alarms()
        assert await cell.state() == "scheduled"
        assert (await cell.task()).pool == "p-t1.named"
        cell.now += 60_000
        await cell.run_alarms()
        assert await cell.redis.zcard(cell.keys.queue("p-t1.named")) == 1
    assert (await cell.task()).avoid == ("a5", "a9", "a8", "a7", "a6", "a4", "a3", "a2")


async def test_a_task_that_avoids_an_agent_and_is_refused_stays_named(cell: Cell) -> None:
    """⚠ It goes to another pool, and a plan must go on seeing whom it avoids."""
    await cell.register("a1", capacity=9)
    await cell.submit(pool="p-t1", max_attempts=99, backoff_max_ms=1)
    await cell.dispatch("a1", pool="p-t1")
    await cell.claim()
    await cell.fail()
    cell.now += 60_000
    await cell.run_alarms()
    await cell.dispatch("a1", pool="p-t1.named")
    await cell.claim()
    report = await cell.reported("refused", code="no_handler", message="none", pool="p-t2", definition=b"{}")
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    record = await cell.task()
    assert (record.pool, record.avoid) == ("p-t2.named", ("a1",))


@pytest.mark.parametrize("end", ["release", "recall"])
async def test_a_returned_task_avoids_nobody(cell: Cell, end: str) -> None:
    """Its agent did not fail; and the task stays interchangeable."""
    await cell.register()
    await cell.assign(claimed=end == "release")
    if end == "release":
        await cell.report("released", code="released", message="later")
    else:
        cell.now += 60_001
        await cell.run_alarms()
    task = await cell.task()
    assert (task.state, task.pool, task.avoid) == ("scheduled", "p-t1", ())


async def test_the_backoff_doubles_within_its_bounds(cell: Cell) -> None:
    """Full jitter: between 0 and backoff * 2^(n-1), at most the ceiling, and not always the same."""
    await cell.register(capacity=100)
    waits: dict[int, list[int]] = {1: [], 2: [], 3: []}
    for n in range(12):
        name = f"t{n}"
        await cell.assign(name, max_attempts=9, backoff_ms=1_000, backoff_max_ms=3_000)
        for waited in waits.values():
            await cell.fail(name)
            run_at = (await cell.task(name)).run_at
            assert run_at is not None
            waited.append(run_at - cell.now)
            cell.now += 3_000
            await cell.run_alarms()
            await cell.dispatch(pool=f"p-{name}")
            assert await cell.claim(name)
    ceilings = {1: 1_000, 2: 2_000, 3: 3_000}
    for failures, waited in waits.items():
        assert all(0 <= wait < ceilings[failures] for wait in waited)
        assert len(set(waited)) > 3
    assert max(waits[3]) > 1_000


async def test_attempts_are_used_up(cell: Cell) -> None:
    """After ``max_attempts`` failures the task is a dead letter, kept seven days, with every attempt's story."""
    await cell.register()
    await cell.assign(caller="c1", notify=True, max_attempts=2)
    await cell.fail()
    cell.now += 60_000
    await cell.run_alarms()
    await cell.dispatch(pool="p-t1")
    assert await cell.fail() == "OK"

    task = await cell.task()
    assert task.error is not None
    assert (task.state, task.failures, task.error.code, task.error.message) == ("failed", 2, "boom", "it broke")
    assert [one.attempt for one in task.attempts] == [1, 2]
    assert await cell.last_answer() == "task.failed"
    assert (await cell.logged())[-1] == "task.failed"


async def test_the_default_number_of_attempts(cell: Cell) -> None:
    """Three, where the task names none."""
    await cell.register()
    await cell.assign()
    for _ in range(2):
        await cell.fail()
        assert await cell.state() == "scheduled"
        cell.now += 60_000
        await cell.run_alarms()
        await cell.dispatch(pool="p-t1")
    await cell.fail()
    assert await cell.state() == "failed"


async def test_a_failure_that_no_retry_mends(cell: Cell) -> None:
    """``retryable`` false ends the task whatever attempts are left."""
    await cell.register()
    await cell.assign(max_attempts=9)
    await cell.fail(retryable=False)
    assert await cell.state() == "failed"


async def test_a_failure_keeps_its_detail(cell: Cell) -> None:
    """As it was reported, in the record and in the outcome that its caller gets; a release has none."""
    await cell.register()
    await cell.assign(caller="c1", notify=True, max_attempts=1)
    await cell.fail(data=b'{"page": 13}')
    error = (await cell.task()).error
    assert error == TaskError("boom", "it broke", {"page": 13})
    (reply,) = [one for one in await cell.stream("replies:c1") if one["type"] == "task.failed"]
    assert json.loads(reply["data"]) == {"code": "boom", "message": "it broke", "detail": {"page": 13}}


async def test_every_attempt_keeps_its_detail_and_its_placement(cell: Cell) -> None:
    """And when it was queued."""
    await cell.register()
    await cell.assign(max_attempts=3)
    first = await cell.task()
    await cell.fail(data=b'{"page": 13, "line": "a\\nb"}')
    cell.now += 300_000
    await cell.run_alarms()
    queued_at = cell.now
    cell.now += 1_000
    await cell.dispatch(pool="p-t1.named")
    await cell.fail()
    one, two = (await cell.task()).attempts
    assert (one.attempt, one.detail, one.queued_at) == (1, {"page": 13, "line": "a\nb"}, None)
    assert (two.attempt, two.detail, two.queued_at) == (2, None, queued_at)
    assert first.placement
    assert one.placement == two.placement == first.placement


async def test_the_history_of_attempts_is_bounded_in_bytes(cell: Cell) -> None:
    """Large details push out the oldest attempts, never the last one."""
    await cell.register()
    await cell.assign(max_attempts=1_000, backoff_ms=1)
    for _ in range(12):
        await cell.fail(data=b'"' + b"x" * 4_000 + b'"')
        cell.now += 300_000
        await cell.run_alarms()
        await cell.dispatch(pool="p-t1.named")
    raw = await cell.redis.hget(cell.keys.task("t1"), "attempts")
    assert raw is not None
    assert 28_000 < len(raw) <= 32_768 + 20
    assert [one.attempt for one in (await cell.task()).attempts] == list(range(6, 13))


async def test_released_work_does_not_count_as_an_attempt(cell: Cell) -> None:
    """Given back after its start: soon placed again, bounded by ``max_releases``, then a dead letter."""
    cell.change_settings(max_releases=2)
    await cell.register()
    await cell.assign(max_attempts=1)
    for releases in (1, 2):
        assert await cell.report("released", message="no room", started_ms_ago=5) == "OK"
        task = await cell.task()
        assert (task.state, task.releases, task.failures) == ("scheduled", releases, 0)
        assert task.run_at == cell.now + 100 * 2 ** (releases - 1)
        cell.now += 5_000
        await cell.run_alarms()
        await cell.dispatch(pool="p-t1")
    await cell.report("started")
    assert await cell.report("released", message="no room") == "OK"

    task = await cell.task()
    assert task.error is not None
    assert (task.state, task.error.code) == ("failed", "released_too_often")
    assert [one.how for one in task.attempts] == ["released"] * 3


@pytest.mark.guarantee("returns-never-fail-a-task")
async def test_what_was_not_started_never_fails_for_its_returns(cell: Cell) -> None:
    """⚠ A release by an agent that did not start the task counts for nothing but the wait before the next one."""
    cell.change_settings(max_releases=2)
    await cell.register()
    await cell.assign(max_attempts=1)
    for _ in range(12):
        assert await cell.report("released", message="not now") == "OK"
        task = await cell.task()
        assert (task.state, task.releases, task.failures) == ("scheduled", 0, 0)
        cell.now += 5_000
        await cell.run_alarms()
        assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
    assert await cell.claim()
    assert await cell.complete() == "OK"


async def test_what_is_given_back_rests_a_little_longer_each_time(cell: Cell) -> None:
    """0.1 s, doubling up to 5 s: so that a task that nobody wants does not go round and round."""
    await cell.register()
    await cell.assign()
    rests = []
    for _ in range(8):
        await cell.report("released", message="not now")
        run_at = (await cell.task()).run_at
        assert run_at is not None
        rests.append(run_at - cell.now)
        cell.now = run_at
        await cell.run_alarms()
        await cell.dispatch(pool="p-t1")
        assert await cell.claim()
    assert rests == [100, 200, 400, 800, 1_600, 3_200, 5_000, 5_000]


async def test_progress_is_of_one_attempt(cell: Cell) -> None:
    """The next attempt begins without what the one before had told."""
    await cell.register()
    await cell.assign()
    await cell.report("started")
    await cell.report("progressed", data=b'{"done":0.5}')
    assert (await cell.task()).progress is not None
    await cell.fail()
    assert (await cell.task()).progress is None


async def test_the_story_is_bounded(cell: Cell) -> None:
    """The last twenty attempts are told."""
    await cell.register()
    await cell.assign(max_attempts=1_000, backoff_ms=1)
    for _ in range(25):
        await cell.fail()
        cell.now += 300_000
        await cell.run_alarms()
        await cell.dispatch(pool="p-t1")
    attempts = (await cell.task()).attempts
    assert [one.attempt for one in attempts] == list(range(6, 26))


async def test_any_message_is_told_as_it_was(cell: Cell) -> None:
    """Line ends of every kind, quotes and emoji in an error survive in the story of attempts."""
    message = 'a\nb\r\u2028c\u0085d\x1ce"f\\g/ü😀'
    await cell.register()
    await cell.assign()
    await cell.report("failed", code="x", message=message, retryable=True)
    assert (await cell.task()).attempts[0].message == message


async def test_a_start_restarts_the_timeout(cell: Cell) -> None:
    """An attempt's timeout runs from its start, however late that is reported; the start timeout is over."""
    await cell.register()
    await cell.assign(timeout=30_000)
    await cell.run_alarms()
    cell.now += 20_000
    await cell.run_alarms()
    await cell.report("started", started_ms_ago=400)
    assert await cell.redis.zscore(cell.keys.of("limits"), "t1") == START + 49_600


async def test_a_started_task_is_not_recalled(cell: Cell) -> None:
    """What runs without a timeout has nothing due any more."""
    await cell.register(incarnation="i1")
    await cell.assign()
    await cell.report("started")
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t1") is None


@pytest.mark.parametrize("kind", ["failed", "released"])
async def test_a_task_that_is_being_cancelled_is_not_tried_again(cell: Cell, kind: str) -> None:
    """Its agent stopped it as told: cancelled. One that completed all the same is completed."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    assert await cell.cancel("t1") == await cell.cancel("t2") == "STOPPING"
    assert await cell.report(kind, "t1", retryable=True) == "OK"
    assert await cell.complete("t2") == "OK"
    assert await cell.state("t1") == "cancelled"
    assert await cell.state("t2") == "completed"
