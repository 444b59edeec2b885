"""``run_alarms`` forgets ended tasks beyond their age or number, and tombstones that nothing needs."""

from __future__ import annotations

import pytest

from tests.scripts.cell import DAY, START, Cell


@pytest.mark.parametrize("broken", ["tombstones", "in:tasks:low"])
async def test_what_cannot_be_forgotten_does_not_undo_what_was_due(cell: Cell, broken: str) -> None:
    """⚠ A broken key that only forgetting meets: what was due is done and counted before."""
    await cell.submit("t1", run_at=START + 1)
    await cell.append("in:tasks:low")
    await cell.cancel("unknown")
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")
    cell.now += 1

    assert await cell.run_alarms() == ["QUEUED"]

    assert await cell.counter("queued:normal") == 1
    await cell.redis.restore(cell.keys.of(broken), 0, kept, replace=True)


@pytest.mark.guarantee("retention")
async def test_ended_tasks_are_forgotten_by_count(cell: Cell) -> None:
    """The oldest go first; completed, failed and refused ones are bounded each for itself."""
    cell.change_settings(terminal_entries=2, refused_entries=1)
    cell.trimmed = True
    await cell.register(capacity=99)
    for n in range(4):
        cell.now += 1
        await cell.assign(f"c{n}")
        await cell.complete(f"c{n}")
        await cell.assign(f"f{n}")
        await cell.fail(f"f{n}", retryable=False)
        await cell.admit(await cell.submission(f"r{n}"), nearly_full=True)
    await cell.run_alarms()

    left = {name[5:] for name in await cell.dump() if name.startswith("task:")}
    assert left == {"c2", "c3", "f2", "f3", "r3"}
    assert await cell.counter("completed:normal") == 4


@pytest.mark.guarantee("retention")
async def test_ended_tasks_are_forgotten_by_age(cell: Cell) -> None:
    """Records and their places in the lists go together."""
    cell.trimmed = True
    await cell.register()
    await cell.assign("t1")
    await cell.complete("t1")
    await cell.assign("t2")
    await cell.fail("t2", retryable=False)
    await cell.admit(await cell.submission("t3"), nearly_full=True)
    ended = {"t3": ("tasks:refused", 3_600_000), "t1": ("tasks:terminal", DAY), "t2": ("tasks:dead", 7 * DAY)}
    for task, (index, kept_ms) in ended.items():
        cell.now = START + kept_ms - 1
        await cell.run_alarms()
        assert await cell.redis.zcard(cell.keys.of(index)) == 1
        assert await cell.redis.exists(cell.keys.task(task)) == 1
        cell.now += 1
        await cell.run_alarms()
        assert await cell.redis.zcard(cell.keys.of(index)) == 0
        assert await cell.redis.exists(cell.keys.task(task)) == 0


async def test_ended_tasks_are_forgotten_a_bounded_number_at_a_time(cell: Cell) -> None:
    """What is left is counted, so that ``run_alarms`` is called again at once: forgetting keeps up with what ends."""
    cell.trimmed = cell.broken = True
    await cell.redis.zadd(cell.keys.of("tasks:terminal"), {f"t{n}": START for n in range(1_500)})
    await cell.redis.hset(cell.keys.task("t1499"), "state", "completed")
    cell.now += DAY
    assert (await cell.run(cell.scripts.run_alarms())).due == 500
    assert (await cell.run(cell.scripts.run_alarms())).due == 0
    assert await cell.redis.zcard(cell.keys.of("tasks:terminal")) == 0
    assert await cell.redis.exists(cell.keys.task("t1499")) == 0


async def test_tombstones_wait_as_long_as_they_may_be_needed(cell: Cell) -> None:
    """As long as any stream of submissions holds an entry older than the cancel."""
    older = await cell.submission("other", priority="low")
    cell.now += 5
    assert await cell.cancel("t1") == "PENDING"
    await cell.submission("newer", priority="high", at=cell.now + 1)
    cell.now += 10
    await cell.run_alarms()
    assert await cell.redis.zcard(cell.keys.of("tombstones")) == 1

    await cell.admit(older)
    await cell.run_alarms()
    assert await cell.redis.zcard(cell.keys.of("tombstones")) == 0


@pytest.mark.guarantee("live-records-stay")
@pytest.mark.parametrize("state", ["queued", "scheduled", "assigned", "running", "completed", "failed"])
@pytest.mark.parametrize("index", ["tasks:terminal", "tasks:dead", "tasks:refused"])
async def test_a_record_that_is_no_longer_what_the_index_says_is_kept(cell: Cell, index: str, state: str) -> None:
    """⚠ The index names an earlier life of the id (its record ended otherwise, or a fail-over took it back)."""
    await cell.redis.zadd(cell.keys.of(index), {"t1": START - 8 * DAY})
    await cell.register()
    if state in {"queued", "scheduled"}:
        await cell.submit(run_at=START + DAY if state == "scheduled" else None)
    else:
        await cell.assign()
        if state == "running":
            await cell.report("started")
        elif state == "completed":
            await cell.complete()
        elif state == "failed":
            await cell.fail(retryable=False)

    await cell.run_alarms()

    assert await cell.state() == state


@pytest.mark.guarantee("live-records-stay")
async def test_a_refused_id_that_is_submitted_again_lives(cell: Cell) -> None:
    """⚠ Its refusal is forgotten on time, whenever that comes, and never the task that was admitted since."""
    cell.change_settings(refused_ttl_s=3.0)
    await cell.admit(await cell.submission(), nearly_full=True)
    assert await cell.redis.pttl(cell.keys.task("t1")) == -1  # no TTL may end the record before its place in the index
    cell.now += 2_999
    assert await cell.submit() == "QUEUED"
    for _ in range(3):
        cell.now += 3_000
        await cell.run_alarms()
    assert await cell.state() == "queued"
    assert await cell.redis.zcard(cell.keys.of("tasks:refused")) == 0


async def test_the_index_follows_a_record_that_ended_later(cell: Cell) -> None:
    """An entry that is too old for its record is set right instead of forgetting the record too early."""
    await cell.register()
    await cell.assign()
    await cell.complete()
    await cell.redis.zadd(cell.keys.of("tasks:terminal"), {"t1": START - 2 * DAY})
    await cell.run_alarms()
    assert await cell.redis.zscore(cell.keys.of("tasks:terminal"), "t1") == START
