"""The clock of attempts: work that finished in time is never judged for an absence of the coordinator's."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.cell import START, Cell

#: No distributor is at work for so long, in ms.
AWAY = 8_000


async def held(cell: Cell, **options: Any) -> None:
    """A task that its agent has claimed and started; the clock runs."""
    await cell.register()
    await cell.assign(**options)
    await cell.report("started")
    await cell.run_alarms()


@pytest.mark.guarantee("work-in-time-counts")
@pytest.mark.parametrize("limit", ["timeout", "deadline", "cancel"])
@pytest.mark.parametrize("read", [False, True])
async def test_a_result_that_waits_is_read_first(cell: Cell, limit: str, read: bool) -> None:
    """⚠ Reported in time, unread or read by a distributor that died: the task is completed when it is settled."""
    options = {"timeout": 4_000} if limit == "timeout" else {"deadline": START + 4_000} if limit == "deadline" else {}
    await held(cell, **options)
    if limit == "cancel":
        await cell.cancel()
    cell.now += 1_000
    report = await cell.reported("completed", data=b"1")
    if read:
        await cell.redis.xclaim(cell.keys.of("in:reports"), "distributor", "dead", 0, [report.entry])
    cell.now += AWAY

    for _ in range(120):
        assert "TIMED_OUT" not in await cell.run_alarms(absent=True)
        cell.now += 100

    assert await cell.state() == "running"
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.state() == "completed"


async def test_the_clock_stands_still_while_no_distributor_is_at_work(cell: Cell) -> None:
    """⚠ After an absence of 8 s an attempt of 4 s has at least the time that it had left, and then it is over."""
    await held(cell, timeout=4_000)
    cell.now += 100
    await cell.run_alarms(absent=True)
    cell.now += AWAY
    left = 0
    while "TIMED_OUT" not in await cell.run_alarms(absent=True):
        cell.now += 100
        left += 100
    assert 3_400 <= left <= 5_600
    assert await cell.state() == "scheduled"


async def test_agents_that_come_back_late_are_waited_for(cell: Cell) -> None:
    """⚠ Redis was away: who worked meanwhile connects again within a second or so, and reports then."""
    await held(cell, timeout=2_000)
    cell.now += 1_000
    await cell.run_alarms(absent=True)
    cell.now += 5_000
    for _ in range(12):
        assert await cell.run_alarms(absent=True) == []
        cell.now += 100
    assert await cell.complete() == "OK"
    assert await cell.state() == "completed"


async def test_an_attempt_ends_in_time_while_the_distributor_is_at_work(cell: Cell) -> None:
    """Neither early nor late by more than one call, also when reports of others are always on their way."""
    await held(cell, timeout=4_000)
    await cell.submit("other", pool="p2")
    passed = 0
    while True:
        cell.now += 100
        passed += 100
        late = await cell.append("in:reports", "task.started")  # it waits for its distributor when run_alarms comes
        words = await cell.run_alarms(absent=True)
        await cell.redis.xack(cell.keys.of("in:reports"), "distributor", late)
        await cell.redis.xdel(cell.keys.of("in:reports"), late)
        if "TIMED_OUT" in words:
            break
    assert 4_000 <= passed <= 4_300


@pytest.mark.guarantee("work-in-time-counts")
@pytest.mark.parametrize("jump", [3_600_000, -3_600_000])
async def test_a_jump_of_the_servers_clock_ends_no_attempt(cell: Cell, jump: int) -> None:
    """⚠ And limits still hold afterwards: timeouts, claims, the grace of a cancel."""
    await held(cell, timeout=4_000)
    cell.now += jump
    assert await cell.run_alarms(absent=True) == []
    for _ in range(20):
        cell.now += 100
        assert await cell.run_alarms(absent=True) == []
    for _ in range(60):
        cell.now += 100
        if "TIMED_OUT" in await cell.run_alarms(absent=True):
            return
    raise AssertionError("the attempt has no end any more")


@pytest.mark.guarantee("deadline-of-results")
@pytest.mark.parametrize(("late", "state"), [(0, "completed"), (1, "expired")])
async def test_a_deadline_is_judged_by_the_entry_of_the_report(cell: Cell, late: int, state: str) -> None:
    """⚠ At the deadline a result still counts, a millisecond later it does not, whenever it is read."""
    await cell.register()
    await cell.assign(deadline=START + 1_000, caller="c1", notify=True)
    cell.now = START + 1_000 + late
    report = await cell.reported("completed", data=b"1", caller="a1")
    cell.now += AWAY
    if not late:
        await cell.run_alarms(absent=True)
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.state() == state
    assert [kind for _, kind in await cell.answers()][-1] == f"task.{state}"
    assert await cell.last_answer("a1") == "ok"


async def test_a_held_task_expires_once_older_reports_are_read(cell: Cell) -> None:
    """A report of another task holds it up for as long as it waits, and no longer."""
    await cell.register(capacity=2)
    await cell.assign("t1", deadline=START + 1_000)
    await cell.assign("t2")
    cell.now += 999
    report = await cell.reported("completed", "t2", data=b"1")
    cell.now += 5_000
    assert await cell.run_alarms(absent=True) == []
    await cell.run(cell.scripts.settle([report]))
    assert await cell.run_alarms(absent=True) == ["EXPIRED"]


async def test_an_idle_cell_writes_its_clock_a_few_times_a_second(cell: Cell) -> None:
    """Ticks in short intervals add up without a write each."""
    await cell.run_alarms(absent=True)
    begun = await cell.redis.hget(cell.keys.of("clock"), "attempts")
    seen = set()
    for _ in range(20):
        cell.now += 100
        await cell.run_alarms(absent=True)
        seen.add(await cell.redis.hget(cell.keys.of("clock"), "attempts"))
    assert len(seen) <= 8
    assert int(max(seen)) - int(begun) >= 1_700
