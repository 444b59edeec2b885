"""``settle``: what agents report, and what it does under which lease."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import Report


@pytest.mark.on_fakeredis
async def test_a_task_starts_and_completes(cell: Cell) -> None:
    """started, progressed, completed: recorded with their times; the outcome is told to whoever asked for it."""
    await cell.register()
    await cell.assign(caller="c1", notify=True)
    cell.now += 1_000

    assert await cell.report("started", started_ms_ago=200) == "OK"
    task = await cell.task()
    assert (task.state, task.started_at) == ("running", START + 800)
    assert await cell.report("progressed", data=b'{"done":0.5}') == "OK"
    assert (await cell.task()).progress == {"done": 0.5}
    assert await cell.complete(caller="a1") == "OK"

    task = await cell.task()
    assert (task.state, task.result, task.finished_at) == ("completed", {"ok": True}, START + 1_000)
    assert (task.attempt, task.failures, task.attempts) == (1, 0, ())
    assert await cell.load() == 0
    assert await cell.last_answer() == "task.completed"
    assert await cell.last_answer("a1") == "ok"
    kinds = ["task.queued", "task.assigned", "task.started", "task.completed"]
    assert await cell.logged() == kinds
    assert await cell.logged("progress") == ["task.progressed"]
    assert await cell.redis.zscore(cell.keys.of("tasks:terminal"), "t1") == START + 1_000
    assert await cell.is_consumed("in:reports")


async def test_a_short_task_reports_its_outcome_alone(cell: Cell) -> None:
    """Assigned → completed, with the moment at which it started."""
    await cell.register()
    await cell.assign()
    cell.now += 90
    assert await cell.complete(started_ms_ago=50) == "OK"
    task = await cell.task()
    assert (task.state, task.started_at) == ("completed", START + 40)


async def test_a_completed_task_that_nobody_claimed_leaves_no_entry(cell: Cell) -> None:
    """The inbox entry goes with the attempt, even if the agent did not delete it."""
    await cell.register()
    await cell.assign(claimed=False)
    assert await cell.complete() == "OK"
    assert await cell.stream("inbox:a1:normal") == []


async def test_loads_and_pools_are_answered(cell: Cell) -> None:
    """The answer tells the true load of each agent that it freed."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    answer = await cell.run(cell.scripts.settle([await cell.reported("completed", "t1")]))
    assert (answer.loads, answer.pools, answer.raised) == ({"a1": 1}, {}, 0)


@pytest.mark.parametrize("kind", ["completed", "failed", "released", "started", "progressed"])
async def test_the_same_report_again_gets_the_first_outcome(cell: Cell, kind: str) -> None:
    """⚠ Once under a lease: repeated entries change nothing more and are counted, repeated calls do nothing at all."""
    await cell.register()
    await cell.assign(caller="c1", notify=True)
    lease = await cell.lease()
    call = cell.scripts.settle([await cell.reported(kind, caller="a1", data=b"1", retryable=True)])
    assert await cell.word(call) == "OK"
    before = await cell.dump("counters")
    replies = await cell.answers()

    assert await cell.word(call) == "GONE"
    again = "OK" if kind in {"started", "progressed"} else "DUPLICATE"
    assert await cell.report(kind, lease=lease, caller="a1", data=b"1", retryable=True) == again

    assert await cell.dump("counters") == before
    assert await cell.answers() == replies
    assert await cell.last_answer("a1") == "ok"
    assert await cell.counter("reports_duplicate") == (again == "DUPLICATE")


async def test_an_outcome_is_recorded_once(cell: Cell) -> None:
    """Whatever comes after the first outcome under the same lease changes nothing."""
    await cell.register()
    await cell.assign()
    lease = await cell.lease()
    await cell.complete()
    for kind in ("completed", "failed", "released", "started", "progressed"):
        assert await cell.report(kind, lease=lease, data=b'"late"', retryable=True, caller="a1") == "DUPLICATE"
    assert len(await cell.answers("a1")) == 5, "each is answered"
    assert (await cell.task()).result == {"ok": True}
    assert await cell.counter("completed:normal") == 1


async def test_a_report_under_an_earlier_lease_changes_nothing(cell: Cell) -> None:
    """⚠ A zombie finishes what was given to another: its lease has settled, the new attempt goes on."""
    await cell.register("a1")
    await cell.register("a2")
    await cell.assign()
    old = await cell.lease()
    await cell.deregister("a1")
    await cell.reclaim()
    cell.now += 60_000
    await cell.run_alarms()
    await cell.dispatch("a2", pool="p-t1")

    assert await cell.complete(lease=old, caller="a1") == "DUPLICATE"

    assert await cell.last_answer("a1") == "ok"
    task = await cell.task()
    assert (task.state, task.agent_id) == ("assigned", "a2")
    assert await cell.counter("reports_duplicate") == 1
    assert await cell.complete() == "OK"


@pytest.mark.parametrize("state", ["unknown", "queued", "assigned", "completed", "refused"])
async def test_an_unknown_lease_changes_nothing(cell: Cell, state: str) -> None:
    """⚠ Forged or foreign: STALE in every state, counted, answered, consumed."""
    await cell.register()
    if state == "queued":
        await cell.submit()
    elif state == "refused":
        await cell.admit(await cell.submission(), nearly_full=True)
    elif state != "unknown":
        await cell.assign()
    if state == "completed":
        await cell.complete()
    before = await cell.dump("counters")

    assert await cell.complete(lease="f" * 16, caller="c1") == "STALE"

    assert await cell.dump("counters") == before
    assert await cell.counter("reports_stale") == 1
    assert await cell.last_answer() == "stale_lease"
    assert await cell.is_consumed("in:reports")


async def test_a_lease_is_good_for_its_own_task_only(cell: Cell) -> None:
    """The lease of one task does not settle another."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    assert await cell.complete("t2", lease=await cell.lease("t1")) == "STALE"
    assert await cell.state("t2") == "assigned"


async def test_a_started_task_without_timeout_has_no_alarm(cell: Cell) -> None:
    """Nothing is due by the clock for a claimed task: its lease follows heartbeats."""
    await cell.register()
    await cell.assign()
    await cell.report("started", started_ms_ago=None)
    assert await cell.redis.zcard(cell.keys.of("alarms")) == 0
    assert (await cell.task()).started_at == START


async def test_a_late_report_revives_no_agent(cell: Cell) -> None:
    """⚠ A report of an agent that was given up leaves its load at zero, never below, and does not make it active."""
    await cell.register()
    await cell.assign()
    lease = await cell.lease()
    await cell.deregister()
    await cell.reclaim()
    assert await cell.complete(lease=lease) == "DUPLICATE"
    assert await cell.load() == 0
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


async def test_a_report_before_the_loss_is_read_revives_no_agent(cell: Cell) -> None:
    """⚠ It counts, for the work is done; the agent has left all the same."""
    await cell.register()
    await cell.assign()
    await cell.deregister()
    assert await cell.complete() == "OK"
    assert await cell.reclaim() == "OK"
    assert await cell.state() == "completed"
    assert (await cell.load(), (await cell.agent()).status) == (0, "inactive")
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


@pytest.mark.parametrize("broken", ["task:t1", "inbox:a2:normal", "inflight:a2"])
async def test_a_broken_key_fails_its_own_report_only(cell: Cell, broken: str) -> None:
    """⚠ A wrong type in the middle of a batch: three finished, three counted; the failing entry stays pending."""
    await cell.register("a1", capacity=9)
    await cell.register("a2")
    for name in ("t0", "t2", "t3"):
        await cell.assign(name, "a1")
    await cell.assign("t1", "a2")
    batch = [await cell.reported("completed", f"t{n}", data=b"1", caller="c1") for n in range(4)]
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")

    answer = await cell.run(cell.scripts.settle(batch))

    assert [word[:6] for word in answer.words] == ["OK", "ERROR ", "OK", "OK"]
    assert await cell.counter("completed:normal") == 3
    assert answer.loads["a1"] == 0
    assert len(await cell.answers()) == 3
    assert await cell.left("in:reports") == [batch[1].entry]
    # Mended, the same entry is settled.
    await cell.redis.delete(cell.keys.of(broken))
    if kept:
        await cell.redis.restore(cell.keys.of(broken), 0, kept)
    assert await cell.word(cell.scripts.settle([batch[1]])) == "OK"


async def test_a_stream_that_broke_meanwhile_loses_no_report(cell: Cell) -> None:
    """⚠ Nothing is done for an entry that cannot be seen in its stream; it is settled once the stream is whole."""
    await cell.register()
    await cell.assign()
    report = await cell.reported("completed", data=b"1")
    kept = await cell.redis.dump(cell.keys.of("in:reports"))
    await cell.redis.set(cell.keys.of("in:reports"), "x")

    assert "WRONGTYPE" in await cell.word(cell.scripts.settle([report]))

    assert (await cell.state(), await cell.load(), await cell.counter("completed:normal")) == ("assigned", 1, 0)
    await cell.redis.restore(cell.keys.of("in:reports"), 0, kept, replace=True)
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.is_consumed("in:reports")


async def test_a_broken_caller_does_not_undo_the_outcome(cell: Cell) -> None:
    """⚠ An answer that cannot be written fails nothing: the record is the truth."""
    await cell.register()
    await cell.assign(caller="c1", notify=True)
    await cell.redis.set(cell.keys.replies("c1"), "x")
    assert await cell.complete(caller="c1") == "OK"
    assert await cell.state() == "completed"


async def test_a_large_batch(cell: Cell) -> None:
    """256 reports in one call, of every kind."""
    await cell.register(capacity=256)
    await cell.admit(*[await cell.submission(f"t{n}") for n in range(256)])
    await cell.run(cell.scripts.dispatch([await cell.placement(rev=1) for _ in range(256)]))
    kinds = ["completed", "failed", "released", "started"]
    leases = {one: (await cell.fields(one, "lease"))[0] for one in (f"t{n}" for n in range(256))}
    batch: list[Report] = []
    for n in range(256):
        name = f"t{n}"
        batch.append(
            await cell.reported(kinds[n % 4], name, leases[name], data=b"x" * 1_000, message="m", retryable=True)
        )
    answer = await cell.run(cell.scripts.settle(batch))
    assert answer.words == ["OK"] * 256
    assert answer.loads == {"a1": 64}
    assert await cell.is_consumed("in:reports")


async def told_together(cell: Cell, *tasks: str, caller: str = "a1") -> list[Report]:
    """One entry that tells of several tasks as completed, appended."""
    entry = await cell.append("in:reports", "tasks.completed")
    return [Report(entry, "completed", one, await cell.lease(one), caller, data=b"1") for one in tasks]


async def test_several_tasks_in_one_entry(cell: Cell) -> None:
    """Each is settled as by itself; the entry is consumed and answered once, among others of the batch."""
    await cell.register(capacity=4)
    for task in ("t1", "t2", "t3", "t4"):
        await cell.assign(task)
    before, after = await cell.reported("started", "t1", caller="a1"), await cell.reported("failed", "t4", code="boom")
    together = await told_together(cell, "t1", "t2", "t3")

    answer = await cell.run(cell.scripts.settle([before, *together, after]))

    assert answer.words == ["OK"] * 5
    assert [(await cell.task(one)).state for one in ("t1", "t2", "t3")] == ["completed"] * 3
    assert (await cell.task("t4")).failures == 1
    assert await cell.is_consumed("in:reports")
    assert await cell.answers("a1") == [(before.entry, "ok"), (together[0].entry, "ok")]


async def test_a_stale_lease_among_several_changes_nothing(cell: Cell) -> None:
    """It is counted; the others are settled, and the entry is taken."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    one, two = await told_together(cell, "t1", "t2")
    stale = Report(one.entry, "completed", "t2", "f" * 16, "a1", data=b"2")

    assert (await cell.run(cell.scripts.settle([one, stale, two]))).words == ["OK", "STALE", "OK"]

    assert (await cell.task("t2")).result == 1
    assert await cell.counter("reports_stale") == 1
    assert await cell.is_consumed("in:reports")
    assert await cell.last_answer("a1") == "ok"


@pytest.mark.guarantee("lists-of-facts")
async def test_an_entry_of_which_one_fails_is_not_consumed(cell: Cell) -> None:
    """⚠ The others are settled, once: tried again, they are duplicates, and the entry goes when all of it is done."""
    await cell.register(capacity=3)
    for task in ("t1", "t2", "t3"):
        await cell.assign(task)
    together = await told_together(cell, "t1", "t2", "t3")
    key = cell.keys.task("t2")
    kept = await cell.redis.hgetall(key)
    await cell.redis.delete(key)
    await cell.redis.set(key, "no record")

    words = (await cell.run(cell.scripts.settle(together))).words
    assert [word.split()[0] for word in words] == ["OK", "ERROR", "OK"]
    assert await cell.left("in:reports") == [together[0].entry]
    assert await cell.answers("a1") == []

    await cell.redis.delete(key)
    await cell.redis.hset(key, mapping=kept)
    assert (await cell.run(cell.scripts.settle(together))).words == ["DUPLICATE", "OK", "DUPLICATE"]
    assert await cell.is_consumed("in:reports")
    assert await cell.last_answer("a1") == "ok"
    assert await cell.counter("completed:normal") == 3
