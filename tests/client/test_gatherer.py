"""Submissions of many coroutines share entries and a round trip; each gets its own answer."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from coord.client.gatherer import Gathered, Gatherer
from coord.client.submission import checked_append
from coord.errors import FactInvalid, FactTooLarge, IdConflict, ResultTimeout, ServerUnavailable, TaskRefused
from coord.models.tasks import Priority, Requirements, TaskSubmitted
from tests.client.played_workers import PlayedWorkers
from tests.waiting import wait_until

MAX_BYTES = 1024 * 1024


@pytest.fixture
def gatherer(workers: PlayedWorkers) -> Gatherer:
    """Of a client whose workers the test plays."""
    return Gatherer(workers.client.connection)


def add(gatherer: Gatherer, task_id: str, *, answered: bool = True, priority: Priority = Priority.NORMAL) -> Gathered:
    """Submit a task."""
    caller = gatherer._connection.caller if answered else ""
    return gatherer.add(checked_append(priority, TaskSubmitted(task_id, "echo"), caller, MAX_BYTES))


async def entries(workers: PlayedWorkers, stream: str = "in:tasks:normal") -> dict[str, list[str]]:
    """Return the entries of a stream, with the ids of their tasks."""
    found: dict[str, list[str]] = {}
    read: Any = await workers.redis.xrange(workers.client.connection.keys.of(stream))
    for entry, fields in read:
        data: Any = msgspec.json.decode(fields[b"data"])
        found[entry.decode()] = [task["task_id"] for task in data.get("tasks", [data])]
    return found


async def appended(*gathered: Gathered) -> None:
    """Wait until Redis has these."""
    await wait_until(lambda: all(one.entry_id for one in gathered), "the tasks are appended")


async def test_tasks_of_one_turn_share_an_entry(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """Those with the same stream that want an answer, and those that do not; one answer is for all of its entry."""
    wanted = [add(gatherer, f"w{number}") for number in range(3)]
    others = [add(gatherer, f"o{number}", answered=False) for number in range(2)]
    high = add(gatherer, "h0", priority=Priority.HIGH)
    await asyncio.gather(*(one.future for one in others))
    await appended(*wanted, high)
    found = await entries(workers)
    assert sorted(found.values()) == [["o0", "o1"], ["w0", "w1", "w2"]]
    assert list((await entries(workers, "in:tasks:high")).values()) == [["h0"]]
    assert len({one.entry_id for one in wanted}) == 1
    assert not any(one.future.done() for one in (*wanted, high))
    await workers.answer(wanted[0].entry_id)
    await asyncio.gather(*(one.future for one in wanted))
    assert not high.future.done()


async def test_a_task_that_is_refused_is_refused_alone(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """An answer may name one task of its entry."""
    first, second = add(gatherer, "t1"), add(gatherer, "t2")
    await appended(first, second)
    assert first.entry_id == second.entry_id
    await workers.reply(
        type="fact.answered", stream="in:tasks:normal", fact=first.entry_id, ok="0", code="backlog_full",
        message="full", task_id="t2",
    )  # fmt: skip
    with pytest.raises(TaskRefused, match="full"):
        await second.future
    assert not first.future.done()
    await workers.reply(
        type="fact.answered", stream="in:tasks:normal", fact=first.entry_id, ok="1", task_id="t1"
    )  # fmt: skip
    await first.future


async def test_the_same_id_twice_makes_two_entries(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """So each submission gets its own answer."""
    first, second = add(gatherer, "t1"), add(gatherer, "t1")
    await appended(first, second)
    assert first.entry_id != second.entry_id
    await workers.answer(second.entry_id, "id_conflict")
    with pytest.raises(IdConflict):
        await second.future
    await workers.answer(first.entry_id)
    await first.future


async def test_a_submission_that_is_cancelled_in_time_is_withdrawn(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """The others of its turn are sent; one that is late is waited for until Redis has it."""
    cancelled, late = add(gatherer, "t1"), add(gatherer, "t2")
    cancelled.future.cancel()
    late.future.cancel()
    await late.appended()
    assert list((await entries(workers)).values()) == [["t2"]]
    assert late.entry_id
    assert not cancelled.entry_id


async def test_a_submission_that_was_withdrawn_says_so(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """A caller that asks too late for the append gets an error, and does not wait for ever."""
    withdrawn, sent = add(gatherer, "t1"), add(gatherer, "t2")
    withdrawn.future.cancel()
    await appended(sent)
    with pytest.raises(ServerUnavailable, match="nothing was appended"):
        await asyncio.wait_for(withdrawn.appended(), 20)


async def test_a_closed_gatherer_ends_every_wait(
    workers: PlayedWorkers, gatherer: Gatherer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each error says whether Redis has the task: answered by none, in flight, waiting, later."""
    unanswered = add(gatherer, "t1")
    await appended(unanswered)
    sending = asyncio.Event()

    async def append(_batch: Any) -> Any:
        sending.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(gatherer._connection, "append", append)
    in_flight = add(gatherer, "t2")
    await sending.wait()
    waiting = add(gatherer, "t3")
    await gatherer.close()
    later = add(gatherer, "t4")
    for gathered, kind, why in (
        (unanswered, ResultTimeout, "Redis has the task"),
        (in_flight, ServerUnavailable, "Redis may have the task"),
        (waiting, ServerUnavailable, "nothing was appended"),
        (later, ServerUnavailable, "nothing was appended"),
    ):
        with pytest.raises(kind, match=why):
            await asyncio.wait_for(gathered.future, 20)


async def test_waits_for_a_distributor_end_early(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """A gateway that shuts down does not wait for it; its answer is for nobody then, and later tasks wait again."""
    first = add(gatherer, "t1")
    await appended(first)
    gatherer.end_waits()
    with pytest.raises(ResultTimeout, match="Redis has the task"):
        await first.future
    second = add(gatherer, "t2")
    await appended(second)
    await workers.answer(first.entry_id)
    await workers.answer(second.entry_id)
    await asyncio.wait_for(second.future, 20)


async def test_without_redis_every_submission_fails(workers: PlayedWorkers, gatherer: Gatherer) -> None:
    """With the error of the connection."""
    await workers.client.close()
    late = add(gatherer, "t2")
    with pytest.raises(Exception, match="not open"):
        await late.future


def test_what_no_worker_would_take_is_refused() -> None:
    """Before anything is appended."""
    with pytest.raises(FactInvalid, match=r"requirements\.agent_type"):
        checked_append(
            Priority.NORMAL, TaskSubmitted("t", "echo", requirements=Requirements(agent_type="llm")), "", MAX_BYTES
        )
    with pytest.raises(FactInvalid, match="strategy"):
        checked_append(Priority.NORMAL, TaskSubmitted("t", "echo", strategy="best"), "", MAX_BYTES)
    with pytest.raises(FactTooLarge):
        checked_append(
            Priority.NORMAL, TaskSubmitted("t", "echo", payload=msgspec.Raw(b'"' + b"x" * 99 + b'"')), "", 99
        )
