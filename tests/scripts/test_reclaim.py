"""``reclaim``: what a lost agent had goes to others, term by term."""

from __future__ import annotations

import msgspec
import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import Loss


async def announced(cell: Cell) -> list[Loss]:
    """The losses that the registry's scripts have announced, as a distributor would read them."""
    entries = await cell.redis.xrange(cell.keys.of("in:losses"))
    told = [(entry.decode(), msgspec.json.decode(fields[b"data"])) for entry, fields in entries]
    return [Loss(entry, data["agent_id"], data["term"]) for entry, data in told]


@pytest.mark.on_fakeredis
async def test_a_lost_agents_tasks_are_tried_again(cell: Cell) -> None:
    """Assigned and running ones: a failed attempt each, scheduled after a backoff; unclaimed entries are deleted."""
    await cell.register(capacity=9)
    await cell.assign("t1", claimed=False)
    await cell.assign("t2")
    await cell.report("started", "t2")
    await cell.deregister()

    (loss,) = await announced(cell)
    answer = await cell.run(cell.scripts.reclaim([loss]))

    assert (answer.words, answer.loads) == (["OK"], {"a1": 0})
    for name in ("t1", "t2"):
        task = await cell.task(name)
        assert (task.state, task.failures, task.attempts[0].how) == ("scheduled", 1, "agent_lost")
    assert await cell.stream("inbox:a1:normal") == []
    assert await cell.is_consumed("in:losses")


async def test_its_agent_is_told_of_what_it_had_claimed(cell: Cell) -> None:
    """Should it still live, it stops: told on the critical lane, with the lease, and only of what it claimed."""
    await cell.register()
    await cell.assign("t1", claimed=False)
    await cell.assign("t2")
    lease = await cell.lease("t2")
    await cell.reclaim()
    assert await cell.orders() == [("t2", lease)]


async def test_losing_twice_is_losing_once(cell: Cell) -> None:
    """The same loss again, or announced again, takes nothing more."""
    await cell.register()
    await cell.assign()
    call = cell.scripts.reclaim([await cell.loss()])
    assert await cell.word(call) == "OK"
    before = await cell.dump()
    assert await cell.word(call) == "GONE"
    assert await cell.dump() == before
    assert await cell.reclaim() == "OK"
    assert (await cell.task()).failures == 1


async def test_a_late_loss_leaves_the_next_term_alone(cell: Cell) -> None:
    """⚠ What the agent got after it came back is not taken by the loss of its earlier term."""
    await cell.register(incarnation="i1")
    await cell.assign("t1")
    await cell.register(incarnation="i2")
    await cell.assign("t2")
    (loss,) = await announced(cell)
    assert loss.term == 1

    assert await cell.word(cell.scripts.reclaim([loss])) == "OK"

    assert await cell.state("t1") == "scheduled"
    assert await cell.state("t2") == "assigned"
    assert await cell.load() == 1


async def test_a_loss_takes_earlier_terms_too(cell: Cell) -> None:
    """Should an earlier announcement be lost, the next one does its work."""
    await cell.register(incarnation="i1")
    await cell.assign("t1")
    await cell.register(incarnation="i2")
    await cell.assign("t2")
    assert await cell.reclaim(term=2) == "OK"
    assert await cell.load() == 0


async def test_it_waits_for_older_reports(cell: Cell) -> None:
    """⚠ A report appended before the loss may tell of finished work, which is not run again."""
    await cell.register()
    await cell.assign()
    report = await cell.reported("completed", data=b"1")
    cell.now += 1
    loss = await cell.loss()

    assert await cell.word(cell.scripts.reclaim([loss])) == "WAIT"
    assert await cell.state() == "assigned"
    assert await cell.redis.xlen(cell.keys.of("in:losses")) == 1

    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.word(cell.scripts.reclaim([loss])) == "OK"
    assert await cell.state() == "completed"
    assert await cell.is_consumed("in:losses")


async def test_it_waits_for_reports_of_the_same_millisecond(cell: Cell) -> None:
    """⚠ Ids of two streams within one ms cannot be ordered: whatever their sequence, the report may have come first."""
    await cell.register()
    await cell.assign()
    loss = await cell.loss()
    report = await cell.reported("completed", data=b"1")
    assert report.entry.partition("-")[0] == loss.entry.partition("-")[0]
    assert await cell.word(cell.scripts.reclaim([loss])) == "WAIT"
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.word(cell.scripts.reclaim([loss])) == "OK"
    assert await cell.state() == "completed"


async def test_it_does_not_wait_for_newer_reports(cell: Cell) -> None:
    """Reports keep coming; only those from before the loss matter."""
    await cell.register()
    await cell.assign("t1")
    await cell.assign("t2")
    loss = await cell.loss()
    cell.now += 1
    newer = await cell.reported("completed", "t2", data=b"1")
    assert await cell.word(cell.scripts.reclaim([loss])) == "OK"
    assert await cell.word(cell.scripts.settle([newer])) == "DUPLICATE"


async def test_very_much_is_taken_back_in_parts(cell: Cell) -> None:
    """A thousand tasks a call and loss: MORE leaves the entry, the next call goes on."""
    await cell.register(capacity=2_000)
    for part in range(5):
        await cell.admit(*[await cell.submission(f"t{part}-{n}") for n in range(210)])
        await cell.run(cell.scripts.dispatch([await cell.placement(rev=1) for _ in range(210)]))
    loss = await cell.loss()

    answer = await cell.run(cell.scripts.reclaim([loss]))
    assert (answer.words, answer.loads) == (["MORE"], {"a1": 50})
    assert not await cell.is_consumed("in:losses")
    assert await cell.word(cell.scripts.reclaim([loss])) == "OK"
    assert await cell.load() == 0
    assert await cell.is_consumed("in:losses")


async def test_losses_count_as_attempts(cell: Cell) -> None:
    """A task that takes its agents down ends as a dead letter."""
    await cell.register()
    await cell.assign(max_attempts=1, caller="c1", notify=True)
    await cell.reclaim()
    task = await cell.task()
    assert task.error is not None
    assert (task.state, task.error.code) == ("failed", "agent_lost")
    assert await cell.last_answer() == "task.failed"


async def test_a_task_that_was_being_cancelled_is_cancelled(cell: Cell) -> None:
    """Its agent is gone, so nobody runs it any more."""
    await cell.register()
    await cell.assign()
    await cell.cancel()
    await cell.reclaim()
    assert await cell.state() == "cancelled"


async def test_of_an_agent_without_tasks(cell: Cell) -> None:
    """Nothing to take; also of an agent that is not known."""
    assert await cell.reclaim("ghost") == "OK"
    assert await cell.is_consumed("in:losses")


async def test_a_name_without_a_record_is_counted_no_more(cell: Cell) -> None:
    """A fail-over may leave a name in flight whose task is gone or elsewhere: the load must not stay above zero."""
    await cell.register("a1")
    await cell.register("a2")
    await cell.assign("t1", "a2")
    await cell.redis.sadd(cell.keys.inflight("a1"), "ghost", "t1")
    answer = await cell.run(cell.scripts.reclaim([await cell.loss("a1", 9)]))
    assert (answer.words, answer.loads) == (["OK"], {"a1": 0})
    assert await cell.state("t1") == "assigned"


async def test_the_tick_stops_announcing_what_was_taken(cell: Cell) -> None:
    """With its last task the loss is off the list, unless a later loss still waits."""
    lost = cell.keys.of("agents:lost")
    await cell.register(incarnation="i1")
    await cell.assign("t1")
    await cell.register(incarnation="i2")
    await cell.assign("t2")
    await cell.register(incarnation="i3")
    assert await cell.reclaim(term=1) == "OK"
    assert await cell.redis.zscore(lost, "a1") == START + 5_000
    assert await cell.reclaim(term=2) == "OK"
    assert await cell.redis.zcard(lost) == 0


@pytest.mark.parametrize("broken", ["task:t1", "inbox:a1:high"])
async def test_a_broken_task_does_not_keep_the_others(cell: Cell, broken: str) -> None:
    """⚠ One task of a lost agent that cannot be taken back: the others are, and are counted; the loss stays pending."""
    await cell.register("a1", capacity=9)
    await cell.register("a2")
    for n in range(4):
        await cell.assign(f"t{n}", "a1", priority="high" if n == 1 else "normal")
    await cell.assign("t9", "a2")
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")
    losses = [await cell.loss("a1"), await cell.loss("a2")]

    answer = await cell.run(cell.scripts.reclaim(losses))

    assert answer.words[0].startswith("ERROR ")
    assert (answer.words[1], answer.loads) == ("OK", {"a1": 1, "a2": 0})
    assert await cell.counter("scheduled:normal") == 4
    assert not await cell.is_consumed("in:losses")
    await cell.redis.delete(cell.keys.of(broken))
    if kept:
        await cell.redis.restore(cell.keys.of(broken), 0, kept)
    assert await cell.word(cell.scripts.reclaim(losses[:1])) == "OK"
    assert await cell.load() == 0


async def test_a_large_batch(cell: Cell) -> None:
    """256 losses in one call."""
    names = [f"a{n}" for n in range(256)]
    await cell.run(cell.scripts.register([await cell.registration(name) for name in names]))
    await cell.admit(*[await cell.submission(f"t{n}") for n in range(256)])
    await cell.run(cell.scripts.dispatch([await cell.placement(name, rev=1) for name in names]))
    answer = await cell.run(cell.scripts.reclaim([await cell.loss(name) for name in names]))
    assert answer.words == ["OK"] * 256
    assert set(answer.loads.values()) == {0}
    assert await cell.is_consumed("in:losses")
