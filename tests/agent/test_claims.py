"""Claiming: the deletion decides, a doubtful batch is given back, and never more runs than the capacity."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest

from coord.redis_protocol import ConnectionLost
from tests.agent.desk import Desk


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
    """What a beat counts and a list names: nothing that is only remembered, all that may count somewhere."""
    desk.offer("a", "b")
    assert (desk.claims.leases, desk.claims.listed()) == (0, {})
    desk.claims.claim()
    desk.offer("c")
    desk.claims.claim()
    assert (desk.claims.leases, desk.claims.listed()) == (2, {"a": "t-a", "b": "t-b"})
    desk.link.answer(2)
    attempt = desk.claims.known("a")
    assert attempt is not None
    await desk.completed(attempt, 1)
    assert (desk.claims.leases, desk.claims.listed()) == (2, {"a": "t-a", "b": "t-b"})
    desk.link.answer(b"1-1")
    assert (desk.claims.leases, desk.claims.listed()) == (1, {"b": "t-b"})


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


async def test_the_capacity_is_one_for_all_lanes(desk: Desk) -> None:
    """There is room for one, and two lanes have one each: the higher one's is claimed, the other has to wait."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.link.answer(2)
    desk.offer("d", lane=3)
    desk.offer("c", lane=0)
    desk.claims.ended()
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:critical", b"1-c"]]
    assert desk.claims.busy == 2
    desk.link.answer(1)
    assert desk.started == ["a", "b", "c"]
    desk.claims.ended()
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:low", b"1-d"]]


async def test_after_a_batch_in_doubt_the_next_is_claimed(desk: Desk) -> None:
    """What was given back leaves its room to what is remembered, which nothing else might wake."""
    desk.offer("a", "b")
    desk.claims.claim()
    desk.offer("c")
    desk.link.answer(1)
    assert desk.link.commands(b"XDEL") == [[b"{t}:inbox:a:normal", b"1-c"]]


async def test_what_is_told_to_stop_while_it_is_being_claimed_does_not_start(desk: Desk) -> None:
    """Its handler never runs: it is given back with the reason of the stop; the other one of its batch starts."""
    desk.offer("a", "b")
    desk.claims.claim()
    attempt = desk.claims.known("a")
    assert attempt is not None
    attempt.stop_reason = "its deadline passed"
    desk.link.answer(2)
    assert desk.started == ["b"]
    (released,) = desk.link.commands(b"XADD")
    assert released[3] == b"task.released"
    assert b"its deadline passed" in released[5]
    assert desk.claims.busy == 1


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
    """A fail-over may restore it: it is not run again, its outcome is reported again, its entry deleted."""
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
