"""Claiming: the deletion decides, a doubtful batch is given back, and never more runs than the capacity."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import hiredis
import msgspec
import pytest

from coord.codec import fact_of
from coord.config import MIB
from coord.keys import Keys
from coord.models.facts import TaskCompleted, TaskFailed, TaskReleased, TasksCompleted
from coord.sdk.attempt import Attempt
from coord.sdk.claims import Claims
from coord.sdk.link import Link
from coord.sdk.reports import Reports
from coord.sdk.wire import ConnectionLost
from tests.unit.sdk_wire import read_command

KEYS = Keys("t")


class FakeLink(Link):
    """Notes what is sent; the test answers."""

    def __init__(self) -> None:
        self.up = True
        self.sent: list[tuple[list[bytes], Callable[[Any, Any], None], Any]] = []

    @property
    def is_up(self) -> bool:
        """As the test says."""
        return self.up

    def send(self, packed: bytes, done: Callable[[Any, Any], None], about: Any = None) -> None:
        """Note it."""
        self.sent.append((read_command(packed), done, about))

    send_lasting = send

    def commands(self, name: bytes) -> list[list[bytes]]:
        """What was sent so far under that name."""
        return [command[1:] for command, _done, _about in self.sent if command[0] == name]

    def answer(self, answer: Any, index: int = -1) -> None:
        """Answer a command."""
        _command, done, about = self.sent.pop(index)
        done(about, answer)


class Desk:
    """Claims on a fake link."""

    def __init__(self, capacity: int) -> None:
        self.link = FakeLink()
        self.started: list[str] = []
        self.missed = 0
        self.reports = Reports(self.link, KEYS, 1_000_000)
        self.claims = Claims(
            "a", "me", capacity, link=self.link, keys=KEYS, reports=self.reports, start=self._start, missed=self._missed
        )

    def _start(self, attempt: Attempt) -> None:
        self.started.append(attempt.lease)

    def _missed(self) -> None:
        self.missed += 1

    async def completed(self, attempt: Attempt, result: Any) -> None:
        """An attempt ends well; what is told of it goes out with all that ends in the same turn of the loop."""
        self.reports.completed(attempt, result)
        await asyncio.sleep(0)

    def offer(self, *leases: str, lane: int = 2, incarnation: str = "me") -> None:
        """Assignments as they are read."""
        for lease in leases:
            fields = {b"task_id": b"t-" + lease.encode(), b"lease": lease.encode(), b"attempt": b"1", b"data": b"{}"}
            fields[b"incarnation"] = incarnation.encode()
            self.claims.offer(lane, f"{len(lease)}-{lease}".encode(), fields)


@pytest.fixture
async def desk() -> Desk:
    """One for two tasks at a time."""
    return Desk(2)


async def test_nothing_starts_before_its_entry_was_deleted(desk: Desk) -> None:
    """The claim is the deletion: handlers start when the server has confirmed it, and not earlier."""
    desk.offer("a", "b")
    desk.claims.claim()
    assert desk.started == []
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:normal", b"1-a", b"1-b"]]
    desk.link.answer(2)
    assert desk.started == ["a", "b"]


@pytest.mark.parametrize("answer", [1, 0, ConnectionLost(), hiredis.ReplyError("NOPERM")])
async def test_a_batch_that_was_not_deleted_whole_is_given_back_whole(desk: Desk, answer: Any) -> None:
    """One was recalled, or the command was repeated or lost: none of the batch starts, each lease is released."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.link.answer(answer)
    assert desk.started == []
    released = desk.link.commands(b"XADD")
    assert [one[3] for one in released] == [b"task.released"] * 2
    assert all(b"claim_in_doubt" in one[5] for one in released)
    assert desk.claims.leases == 2  # until the reports are answered
    desk.link.answer(b"1-1")
    desk.link.answer(b"1-2")
    assert (desk.claims.leases, desk.claims.busy) == (0, 0)


async def test_a_lease_is_held_from_before_its_deletion_until_its_report_is_answered(desk: Desk) -> None:
    """What a beat counts: nothing that is only remembered, everything that may count somewhere."""
    desk.offer("a", "b")
    assert desk.claims.leases == 0
    desk.claims.claim()
    desk.offer("c")
    desk.claims.claim()
    assert desk.claims.leases == 2
    desk.link.answer(2)
    attempt = desk.claims.known("a")
    assert attempt is not None
    await desk.completed(attempt, 1)
    assert desk.claims.leases == 2
    desk.link.answer(b"1-1")
    assert desk.claims.leases == 1


async def test_what_is_above_the_capacity_is_remembered_and_claimed_when_there_is_room(desk: Desk) -> None:
    """Two run, one is remembered, and claimed when one of the two has ended."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.link.answer(2)
    desk.offer("c")
    desk.claims.claim()
    assert desk.claims.busy == 2
    assert desk.link.sent == []
    desk.claims.ended()
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:normal", b"1-c"]]


async def test_higher_lanes_are_claimed_first(desk: Desk) -> None:
    """Whatever came first: one command for each lane, the critical one's first."""
    desk.offer("a", lane=3)
    desk.offer("c", lane=0)
    desk.claims.claim()
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:critical", b"1-c"], [b"{t}:inbox:a:low", b"1-a"]]


async def test_more_than_can_be_remembered_is_left_in_the_inbox_and_read_again(desk: Desk) -> None:
    """Never more than the capacity is remembered; the inbox is read from the beginning when there is room."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.link.answer(2)
    desk.offer("c", "d", "e")
    assert desk.claims.known("e") is None
    desk.claims.ended()
    desk.link.answer(1)
    assert desk.missed == 0
    desk.claims.ended()
    assert desk.missed == 1


async def test_an_assignment_of_another_process_is_left_alone(desk: Desk) -> None:
    """It names the incarnation that it is for."""
    desk.offer("a", incarnation="another")
    desk.claims.claim()
    assert desk.link.sent == []


async def test_an_assignment_that_is_read_twice_is_taken_once(desk: Desk) -> None:
    """After a reconnect the lanes are read from the beginning: what is held, remembered or unanswered is known."""
    desk.offer("a", "a")
    desk.claims.claim()
    desk.link.answer(1)
    desk.offer("a")
    attempt = desk.claims.known("a")
    assert attempt is not None
    await desk.completed(attempt, 1)
    desk.offer("a")
    desk.claims.claim()
    assert desk.started == ["a"]
    assert desk.link.commands(b"XDEL") == []


async def test_a_finished_assignment_that_comes_back_gets_the_same_outcome(desk: Desk) -> None:
    """A fail-over may bring it back: it is not run again, its outcome is told again, its entry deleted."""
    desk.offer("a")
    desk.claims.claim()
    desk.link.answer(1)
    attempt = desk.claims.known("a")
    assert attempt is not None
    await desk.completed(attempt, {"n": 1})
    (first,) = desk.link.commands(b"XADD")
    desk.link.answer(b"1-1")
    desk.offer("a")
    assert desk.link.commands(b"XADD") == [first]
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:normal", b"1-a"]]
    assert desk.started == ["a"]


async def test_nothing_is_claimed_while_redis_is_away(desk: Desk) -> None:
    """A claim that could not be sent would put the whole of it in doubt."""
    desk.link.up = False
    desk.offer("a")
    desk.claims.claim()
    assert desk.link.sent == []
    desk.link.up = True
    desk.claims.claim()
    assert len(desk.link.commands(b"XDEL")) == 1


async def test_a_draining_agent_gives_back_what_it_has_not_begun(desk: Desk) -> None:
    """What is remembered, what is being claimed, and what still arrives."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.offer("c")
    desk.claims.drain()
    desk.link.answer(2, 0)
    desk.offer("d")
    assert desk.started == []
    released = [one[5] for one in desk.link.commands(b"XADD")]
    assert [next(task for task in ("t-a", "t-b", "t-c", "t-d") if task.encode() in one) for one in released] == [
        "t-c",
        "t-a",
        "t-b",
        "t-d",
    ]


def finished(desk: Desk, *results: Any) -> None:
    """So many attempts end in one turn."""
    for n, result in enumerate(results):
        desk.reports.completed(Attempt(f"t{n}", f"{n:016x}", 1, lane=2, entry=b"1-1", raw=b""), result)


async def test_what_is_completed_in_one_turn_is_told_together(desk: Desk) -> None:
    """At most 256 in an entry, one by itself as ever; each is answered when its entry is."""
    finished(desk, *range(513))
    await asyncio.sleep(0)
    told = desk.link.commands(b"XADD")
    assert [one[3] for one in told] == [b"tasks.completed", b"tasks.completed", b"task.completed"]
    facts = [fact_of("in:reports", {b"type": one[3], b"data": one[5]}, MIB) for one in told]
    lists = [fact.completed if isinstance(fact, TasksCompleted) else (fact,) for fact in facts]
    assert [len(one) for one in lists] == [256, 256, 1]
    assert [one.task_id for some in lists for one in some if isinstance(one, TaskCompleted)] == [
        f"t{n}" for n in range(513)
    ]
    assert desk.reports.unanswered == 513
    desk.link.answer(b"1-1", 0)
    assert desk.reports.unanswered == 257
    desk.link.answer(b"1-2")
    assert desk.reports.unanswered == 256
    desk.link.answer(b"1-3")
    assert await desk.reports.flushed(1)


async def test_what_is_long_or_no_success_is_told_alone(desk: Desk) -> None:
    """A long result does not hold up the others, and a failure is a fact of another kind."""
    finished(desk, "x" * 1_024, 1, msgspec.Raw(b"{"), 2, msgspec.Raw(b'"\xff"'), {1, object()})
    await asyncio.sleep(0)
    told = desk.link.commands(b"XADD")
    kinds = [b"task.completed", *[b"task.failed"] * 3, b"tasks.completed"]
    assert [one[3] for one in told] == kinds
    assert all(b"result_invalid" in one[5] for one in told[1:4])
    together = fact_of("in:reports", {b"type": b"tasks.completed", b"data": told[4][5]}, MIB)
    assert isinstance(together, TasksCompleted)
    assert [one.task_id for one in together.completed] == ["t1", "t3"]


async def test_an_entry_that_is_refused_ends_the_wait_of_all_in_it(desk: Desk) -> None:
    """No repeating mends it; nobody waits for it for ever."""
    finished(desk, 1, 2)
    await asyncio.sleep(0)
    desk.link.answer(hiredis.ReplyError("NOPERM"))
    assert await desk.reports.flushed(1)


@pytest.mark.parametrize("how", ["completed", "failed", "released"])
async def test_the_outcome_that_is_told_again_is_of_its_kind(desk: Desk, how: str) -> None:
    """Alone, however it was told the first time."""
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b"")
    if how == "completed":
        finished(desk, 1)
        desk.reports.completed(attempt, 2)
    elif how == "failed":
        desk.reports.failed(attempt, "boom", "it broke", retryable=True)
    else:
        desk.reports.released(attempt, "full")
    await asyncio.sleep(0)
    before = len(desk.link.sent)
    assert desk.reports.tell_again("f" * 16)
    (again,) = desk.link.commands(b"XADD")[before:]
    assert again[3] == f"task.{how}".encode()
    fact = fact_of("in:reports", {b"type": again[3], b"data": again[5]}, MIB)
    assert isinstance(fact, TaskCompleted | TaskFailed | TaskReleased)
    assert (fact.task_id, fact.lease) == ("t", "f" * 16)


async def test_outcomes_are_remembered_within_bounds(desk: Desk) -> None:
    """The last thousand of them: memory does not grow with the work done."""
    for n in range(1_005):
        desk.reports.completed(Attempt("t", f"{n}", 1, lane=2, entry=b"1-1", raw=b""), n)
    assert not desk.reports.tell_again("4")
    assert desk.reports.tell_again("5")
