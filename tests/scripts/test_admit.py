"""``admit``: submissions become records that wait, are refused, or were there already."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from msgspec.structs import replace

from coord import queries
from coord.models.tasks import HEAD_START_MS, Priority
from tests.scripts.cell import START, Cell
from workers.transitions import Submission

FAR = START + 3_600_000


@pytest.mark.on_fakeredis
async def test_a_task_is_queued(cell: Cell) -> None:
    """Recorded, queued under its aged score, counted, logged, answered; the entry is consumed."""
    assert await cell.submit(caller="c1", priority="high") == "QUEUED"

    task = await cell.task()
    assert (task.state, task.priority, task.task_type, task.payload) == ("queued", "high", "echo", {"n": 1})
    assert (task.submitted_at, task.attempt, task.pool) == (START, 0, "p1")
    score = await cell.redis.zscore(cell.keys.queue("p1"), "t1")
    assert score == START - HEAD_START_MS[Priority.HIGH]
    assert await cell.counter("submitted:high") == await cell.counter("queued:high") == 1
    assert await cell.logged() == ["task.queued"]
    assert await cell.last_answer() == "ok"
    assert await cell.is_consumed("in:tasks:high")


async def test_what_the_batch_answers(cell: Cell) -> None:
    """Words in order, the pools' lengths and heads, and by how much the table of pools moved."""
    batch = [await cell.submission("t1", pool="p1"), await cell.submission("t2", pool="p2", priority="urgent")]
    answer = await cell.run(cell.scripts.admit(batch, {"p1": b"{}", "p2": b"{}"}, nearly_full=False))

    assert answer.words == ["QUEUED", "QUEUED"]
    assert answer.pools == {"p1": (1, START - 60_000.0), "p2": (1, START - 600_000.0)}
    assert (answer.loads, answer.pools_rev, answer.raised) == ({}, 2, 2)
    again = await cell.run(cell.scripts.admit([await cell.submission("t3")], {"p1": b"{}"}, nearly_full=False))
    assert (again.pools["p1"][0], again.pools_rev, again.raised) == (2, 2, 0)


async def test_pools_are_told_with_their_definitions(cell: Cell) -> None:
    """The table of waiting pools names each pool with its definition and its head."""
    await cell.submit()
    rev, pools = await queries.list_waiting_pools(cell.redis, cell.keys, {})
    assert rev == 1
    assert [(one.pool, one.definition.task_type, one.length, one.head) for one in pools] == [
        ("p1", "echo", 1, START - 60_000.0)
    ]


async def test_a_task_with_a_run_time_is_scheduled(cell: Cell) -> None:
    """It waits for its alarm, not in a queue; a run time that has passed is none."""
    assert await cell.submit("t1", run_at=FAR) == "SCHEDULED"
    assert await cell.submit("t2", run_at=START) == "QUEUED"

    task = await cell.task("t1")
    assert (task.state, task.run_at) == ("scheduled", FAR)
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t1") == FAR
    assert (await cell.logged())[0] == "task.scheduled"


async def test_a_deadline_sets_an_alarm(cell: Cell) -> None:
    """The alarm is the earlier of run time and deadline; options are recorded as given."""
    await cell.submit("t1", deadline=START + 5, max_attempts=7, timeout=1_500)
    await cell.submit("t2", deadline=START + 5, run_at=FAR)
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t1") == START + 5
    assert await cell.redis.zscore(cell.keys.of("alarms"), "t2") == START + 5
    assert await cell.fields("t1", "max_attempts", "timeout") == ["7", "1500"]


async def test_the_same_submission_again_has_one_effect(cell: Cell) -> None:
    """The same id with the same content changes nothing and is answered ok; the same call twice does nothing at all."""
    call = cell.scripts.admit([await cell.submission(caller="c1")], {"p1": b"{}"}, nearly_full=False)
    assert await cell.word(call) == "QUEUED"
    before = await cell.dump()

    assert await cell.word(call) == "GONE"
    assert await cell.submit(caller="c1") == "DUPLICATE"

    assert await cell.dump() == before
    assert [one for _, one in await cell.answers()] == ["ok", "ok"]
    assert await cell.is_consumed("in:tasks:normal")


async def test_other_content_under_a_known_id_is_a_conflict(cell: Cell) -> None:
    """The first content stands; whoever sent the other is told."""
    await cell.submit()
    before = await cell.dump()
    assert await cell.submit(digest="d2", body=b'{"task_type":"other"}', caller="c1") == "CONFLICT"
    assert await cell.last_answer() == "id_conflict"
    assert await cell.dump() == before
    assert await cell.is_consumed("in:tasks:normal")


async def test_twice_in_one_batch_is_once(cell: Cell) -> None:
    """A client whose XADD was repeated sends two entries; they may come in one batch."""
    batch = [await cell.submission(), await cell.submission(), await cell.submission(digest="d2")]
    assert await cell.admit(*batch) == ["QUEUED", "DUPLICATE", "CONFLICT"]
    assert await cell.counter("submitted:normal") == 1


async def test_submitting_what_has_ended_tells_the_outcome_again(cell: Cell) -> None:
    """A client that was restarted and submits again with ``notify`` gets the recorded result, and nobody else."""
    await cell.register()
    await cell.assign(caller="c0", notify=True)
    await cell.complete()
    assert (await cell.answers("c0"))[-1] == ("t1", "task.completed")

    assert await cell.submit(pool="p-t1", caller="c1", notify=True) == "DUPLICATE"
    assert await cell.submit(pool="p-t1", caller="c2") == "DUPLICATE"
    assert [one["type"] for one in await cell.stream("replies:c2")] == ["fact.answered"]
    told = (await cell.stream("replies:c1"))[0]
    assert (told["type"], told["task_id"], told["data"]) == ("task.completed", "t1", '{"ok":true}')


@pytest.mark.guarantee("retention")
async def test_a_full_backlog_refuses(cell: Cell) -> None:
    """A refused task is a record without body that its index owns, counted apart; its caller is told."""
    cell.change_settings(max_backlog_tasks=2)
    assert await cell.submit("t1", priority="urgent") == "QUEUED"
    assert await cell.submit("t2", priority="urgent", run_at=FAR) == "SCHEDULED"

    assert await cell.submit("t3", priority="urgent", caller="c1") == "REFUSED"

    task = await cell.task("t3")
    assert task.state == "refused"
    assert task.error is not None
    assert task.error.code == "backlog_full"
    assert await cell.fields("t3", "body") == [None]
    assert await cell.redis.pttl(cell.keys.task("t3")) == -1
    assert await cell.redis.zscore(cell.keys.of("tasks:refused"), "t3") == cell.now
    assert await cell.counter("refused:urgent") == 1
    assert await cell.counter("submitted:urgent") == 2
    assert await cell.last_answer() == "backlog_full"
    assert (await cell.logged())[-1] == "task.refused"
    assert await cell.is_consumed("in:tasks:urgent")


async def test_a_full_backlog_counts_within_the_batch(cell: Cell) -> None:
    """The limit holds inside one call too."""
    cell.change_settings(max_backlog_tasks=3)
    batch = [await cell.submission(f"t{n}", priority="urgent") for n in range(5)]
    assert await cell.admit(*batch) == ["QUEUED"] * 3 + ["REFUSED"] * 2


async def test_the_backlog_is_limited_in_bytes(cell: Cell) -> None:
    """Bodies of waiting tasks are counted; one that would go over the limit is refused, a smaller one still fits."""
    cell.change_settings(max_backlog_bytes=1_024)
    assert await cell.submit("t1", priority="urgent", body=b"1" * 1_000) == "QUEUED"
    assert await cell.submit("t2", priority="urgent", body=b"1" * 25) == "REFUSED"
    assert await cell.submit("t3", priority="urgent", body=b"1" * 24) == "QUEUED"
    assert await cell.counter("backlog_bytes") == 1_024


@pytest.mark.parametrize(
    ("priority", "room"), [("low", 80), ("normal", 85), ("high", 90), ("critical", 95), ("urgent", 100)]
)
async def test_each_priority_has_its_share(cell: Cell, priority: str, room: int) -> None:
    """Low ones are refused at 80 % of the backlog, urgent ones at 100 %: the pressing ones find room for longest."""
    cell.change_settings(max_backlog_tasks=100)
    await cell.admit(*[await cell.submission(f"u{n}", priority="urgent") for n in range(room - 1)])
    assert await cell.submit("last", priority=priority) == "QUEUED"
    assert await cell.submit("over", priority=priority) == "REFUSED"


async def test_a_nearly_full_server_refuses_everything(cell: Cell) -> None:
    """Emptying the ingress is what makes room for reports: the entry is consumed, the record is small."""
    words = await cell.admit(await cell.submission(priority="urgent", caller="c1"), nearly_full=True)
    assert words == ["REFUSED"]
    assert await cell.is_consumed("in:tasks:urgent")


@pytest.mark.parametrize("digest", ["d1", "d2"])
async def test_a_refused_task_may_be_submitted_again(cell: Cell, digest: str) -> None:
    """It begins anew, with whatever content; nothing of the refusal is left."""
    await cell.admit(await cell.submission(), nearly_full=True)
    assert await cell.submit(digest=digest) == "QUEUED"

    assert await cell.redis.pttl(cell.keys.task("t1")) == -1
    assert await cell.fields("t1", "error") == [None]
    assert await cell.redis.zcard(cell.keys.of("tasks:refused")) == 0


async def test_a_refused_task_may_be_refused_again(cell: Cell) -> None:
    """Another submission that finds no room counts as another refusal, the same entry does not."""
    submission = await cell.submission(caller="c1")
    assert await cell.admit(submission, nearly_full=True) == ["REFUSED"]
    before = await cell.dump()
    assert await cell.admit(submission) == ["GONE"]
    assert await cell.dump() == before
    assert await cell.last_answer() == "backlog_full"

    assert await cell.admit(await cell.submission(), nearly_full=True) == ["REFUSED"]
    assert await cell.counter("refused:normal") == 2


@pytest.mark.parametrize("deadline", [None, START + 1])
async def test_a_cancel_that_came_first_wins(cell: Cell, deadline: int | None) -> None:
    """A cancel handled before its task's submission waits as a tombstone and ends the task on admission."""
    options: dict[str, Any] = {} if deadline is None else {"deadline": deadline}
    submission = await cell.submission(caller="c1", notify=True, **options)
    cell.now += 1
    assert await cell.cancel(caller="c2") == "PENDING"

    assert await cell.admit(submission) == ["CANCELLED"]

    assert await cell.state() == "cancelled"
    assert await cell.redis.zcard(cell.keys.of("tombstones")) == 0
    assert await cell.answers() == [("t1", "task.cancelled"), (submission.entry, "ok")]
    assert await cell.admit(submission) == ["GONE"]


@pytest.mark.guarantee("no-task-past-its-deadline")
@pytest.mark.parametrize("run_at", [None, FAR])
@pytest.mark.parametrize("was_refused", [False, True])
async def test_a_deadline_that_has_passed_ends_it_at_once(cell: Cell, was_refused: bool, run_at: int | None) -> None:
    """Nobody may be given it, not even for a moment; its caller is told both."""
    options: dict[str, Any] = {"caller": "c1", "notify": True, "run_at": run_at, "deadline": START + 10}
    if was_refused:
        await cell.admit(await cell.submission(**options), nearly_full=True)
    cell.now += 10
    submission = await cell.submission(**options)

    assert await cell.admit(submission) == ["EXPIRED"]

    assert await cell.state() == "expired"
    assert await cell.redis.exists(cell.keys.of("queue:p1"), cell.keys.of("alarms"), cell.keys.of("tasks:refused")) == 0
    assert (await cell.answers())[-2:] == [("t1", "task.expired"), (submission.entry, "ok")]
    assert (await cell.logged())[-1] == "task.expired"
    assert await cell.admit(submission) == ["GONE"]


async def test_a_cancel_takes_a_refused_task_that_is_submitted_again(cell: Cell) -> None:
    """The second submission is on its way while the cancel comes: cancelled, and refused no more."""
    await cell.admit(await cell.submission(), nearly_full=True)
    again = await cell.submission()
    assert await cell.cancel() == "PENDING"
    assert await cell.admit(again) == ["CANCELLED"]
    assert await cell.redis.zcard(cell.keys.of("tasks:refused")) == 0


async def test_a_cancel_does_not_take_what_is_submitted_after_it(cell: Cell) -> None:
    """The tombstone is for older submissions; one that came after the cancel was meant."""
    other = await cell.submission("other")
    cell.now += 1
    assert await cell.cancel("t1") == "PENDING"
    cell.now += 1
    assert await cell.submit("t1") == "QUEUED"
    await cell.admit(other)


async def test_a_broken_queue_fails_its_own_entries_only(cell: Cell) -> None:
    """⚠ A wrong type in the middle of a batch: the others are admitted and counted, the failing one stays pending."""
    await cell.redis.set(cell.keys.queue("bad"), "x")
    batch = [await cell.submission(f"t{n}", pool="bad" if n == 1 else "p1") for n in range(3)]

    words = await cell.admit(*batch)

    assert [word[:6] for word in words] == ["QUEUED", "ERROR ", "QUEUED"]
    assert "WRONGTYPE" in words[1]
    assert await cell.counter("submitted:normal") == await cell.counter("queued:normal") == 2
    assert await cell.left("in:tasks:normal") == [batch[1].entry]
    await cell.redis.delete(cell.keys.queue("bad"))


async def test_a_refusal_survives_a_failed_second_try(cell: Cell) -> None:
    """A submission that fails half-way leaves the record of the earlier refusal."""
    await cell.admit(await cell.submission(pool="bad"), nearly_full=True)
    await cell.redis.set(cell.keys.queue("bad"), "x")
    (word,) = await cell.admit(await cell.submission(pool="bad"))
    assert word.startswith("ERROR ")
    assert await cell.state() == "refused"
    await cell.redis.delete(cell.keys.queue("bad"))


async def test_a_large_batch(cell: Cell) -> None:
    """256 submissions of five priorities with every option in one call."""
    priorities = [priority.value for priority in Priority]
    batch = [
        await cell.submission(
            f"t{n}", priority=priorities[n % 5], pool=f"p{n % 7}", caller=f"c{n % 3}", notify=True, body=b"x" * 4_096,
            deadline=FAR, timeout=1, max_attempts=2, backoff_ms=1, backoff_max_ms=2,
        )
        for n in range(256)
    ]  # fmt: skip
    assert await cell.admit(*batch) == ["QUEUED"] * 256
    for priority in priorities:
        assert await cell.is_consumed(f"in:tasks:{priority}")


async def submitted_together(cell: Cell, *tasks: str, **options: Any) -> list[Submission]:
    """One entry that submits several tasks, appended."""
    first = await cell.submission(tasks[0], **options)
    return [replace(first, task_id=task) for task in tasks]


async def test_several_tasks_in_one_entry(cell: Cell) -> None:
    """Each is recorded as by itself; the entry is consumed and answered once, among others of the batch."""
    before = await cell.submission("t0", caller="c1")
    together = await submitted_together(cell, "t1", "t2", "t3", caller="c1")
    after = await cell.submission("t4", caller="c1", run_at=FAR)

    assert await cell.admit(before, *together, after) == [*["QUEUED"] * 4, "SCHEDULED"]

    assert [(await cell.task(one.task_id)).state for one in together] == ["queued"] * 3
    assert await cell.counter("submitted:normal") == 5
    assert await cell.is_consumed("in:tasks:normal")
    assert await cell.answers() == [(one, "ok") for one in (before.entry, together[0].entry, after.entry)]


async def test_those_of_an_entry_that_are_turned_down_are_named(cell: Cell) -> None:
    """Another content under a known id, and no room in the backlog: each is told of its task, the others are taken."""
    cell.change_settings(max_backlog_tasks=4)
    await cell.submit("known", digest="other")
    together = await submitted_together(cell, "known", "t1", "t2", "t3", caller="c1")

    assert await cell.admit(*together) == ["CONFLICT", "QUEUED", "QUEUED", "REFUSED"]

    told = [(one["ok"], one.get("code", ""), one.get("task_id", "")) for one in await cell.stream("replies:c1")]
    assert told == [("0", "id_conflict", "known"), ("0", "backlog_full", "t3"), ("1", "", "")]
    assert await cell.is_consumed("in:tasks:normal")


async def test_an_entry_that_is_turned_down_whole_is_not_answered_ok(cell: Cell) -> None:
    """Each of its tasks is told why, and that is all."""
    together = await submitted_together(cell, "t1", "t2", caller="c1")
    assert await cell.admit(*together, nearly_full=True) == ["REFUSED"] * 2
    assert [one for _, one in await cell.answers()] == ["backlog_full"] * 2
    assert await cell.is_consumed("in:tasks:normal")


@pytest.mark.guarantee("lists-of-facts")
async def test_an_entry_of_which_one_fails_is_not_consumed(cell: Cell) -> None:
    """⚠ The others are admitted, once: tried again, they are duplicates, and the entry goes when all of it is done."""
    together = await submitted_together(cell, "t1", "t2", "t3", caller="c1")
    await cell.redis.set(cell.keys.task("t2"), "no record")

    words = await cell.admit(*together)
    assert [word.split()[0] for word in words] == ["QUEUED", "ERROR", "QUEUED"]
    assert await cell.left("in:tasks:normal") == [together[0].entry]
    assert await cell.answers() == []

    await cell.redis.delete(cell.keys.task("t2"))
    assert await cell.admit(*together) == ["DUPLICATE", "QUEUED", "DUPLICATE"]
    assert await cell.is_consumed("in:tasks:normal")
    assert [one for _, one in await cell.answers()] == ["ok"]
    assert await cell.counter("submitted:normal") == 3


async def test_entries_of_two_streams_may_have_one_id(cell: Cell) -> None:
    """⚠ Appended in one millisecond, each is consumed and answered by itself, and one that fails fails alone."""

    async def submission(task_id: str, priority: str) -> Submission:
        cell._sequence = itertools.count(7)
        return await cell.submission(task_id, priority=priority, caller="c1")

    low, high, urgent = [await submission(*one) for one in (("t1", "low"), ("t2", "high"), ("t3", "urgent"))]
    assert low.entry == high.entry == urgent.entry
    await cell.redis.set(cell.keys.task("t2"), "no record")

    words = await cell.admit(low, high, urgent)

    assert [word.split()[0] for word in words] == ["QUEUED", "ERROR", "QUEUED"]
    assert await cell.left("in:tasks:high") == [high.entry]
    assert await cell.is_consumed("in:tasks:low")
    assert await cell.is_consumed("in:tasks:urgent")
    assert await cell.answers() == [(low.entry, "ok")] * 2
    await cell.redis.delete(cell.keys.task("t2"))
    assert await cell.admit(high) == ["QUEUED"]
    assert await cell.is_consumed("in:tasks:high")
