"""Reports: together where possible, of their own kind, and repeated for as long as they are kept."""

from __future__ import annotations

import asyncio
from typing import Any

import hiredis
import msgspec
import pytest

from coord.agent.reports import REMEMBERED_S
from coord.agent.task import Attempt
from coord.codec import decode_fact
from coord.config import MIB
from coord.models.facts import TaskCompleted, TaskFailed, TaskReleased, TasksCompleted
from tests.agent.desk import Desk


def finished(desk: Desk, *results: Any) -> None:
    """So many attempts end in one turn."""
    for n, result in enumerate(results):
        desk.reports.completed(Attempt(f"t{n}", f"{n:016x}", 1, lane=2, entry=b"1-1", raw=b""), result)


async def test_what_is_completed_in_one_turn_is_told_together(desk: Desk) -> None:
    """At most 256 in an entry, one by itself as ever; each is answered when its entry is."""
    finished(desk, *range(513))
    await asyncio.sleep(0)
    sent = desk.link.commands(b"XADD")
    assert [one[3] for one in sent] == [b"tasks.completed", b"tasks.completed", b"task.completed"]
    facts = [decode_fact("in:reports", {b"type": one[3], b"data": one[5]}, MIB) for one in sent]
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
    odd = [msgspec.Raw(b"{"), msgspec.Raw(b'"\xff"'), msgspec.Raw(b'1,"lease":"0000000000000000"')]
    finished(desk, "x" * 1_024, 1, odd[0], 2, *odd[1:], {1, object()}, msgspec.Raw(b" 3\n"))
    await asyncio.sleep(0)
    sent = desk.link.commands(b"XADD")
    kinds = [b"task.completed", *[b"task.failed"] * 4, b"tasks.completed"]
    assert [one[3] for one in sent] == kinds
    assert all(b"result_invalid" in one[5] for one in sent[1:5])
    together = decode_fact("in:reports", {b"type": b"tasks.completed", b"data": sent[5][5]}, MIB)
    assert isinstance(together, TasksCompleted)
    results = {one.task_id: bytes(one.result) for one in together.completed}
    assert results == {"t1": b"1", "t3": b"2", "t7": b"3"}


async def test_progress_that_is_no_json_is_not_told(desk: Desk) -> None:
    """The distributor could not read it, or would read something else."""
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b"")
    for raw in (b"{", b'"\xff"', b'1,"lease":"0000000000000000"', b'"' + b"x" * MIB + b'"'):
        assert not desk.reports.progressed(attempt, raw, lambda _about, _answer: None)
    assert not desk.link.commands(b"XADD")
    assert desk.reports.progressed(attempt, b'{"half":true}', lambda _about, _answer: None)


async def test_an_entry_that_is_refused_ends_the_wait_of_all_in_it(desk: Desk) -> None:
    """No retry can fix it, and no waiter waits for ever."""
    finished(desk, 1, 2)
    await asyncio.sleep(0)
    desk.link.answer(hiredis.ReplyError("NOPERM"))
    assert await desk.reports.flushed(1)


@pytest.mark.parametrize("how", ["completed", "failed", "released"])
async def test_the_outcome_that_is_told_again_is_of_its_kind(desk: Desk, how: str) -> None:
    """Alone, however it was reported the first time."""
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
    assert desk.reports.repeat("f" * 16)
    (again,) = desk.link.commands(b"XADD")[before:]
    assert again[3] == f"task.{how}".encode()
    fact = decode_fact("in:reports", {b"type": again[3], b"data": again[5]}, MIB)
    assert isinstance(fact, TaskCompleted | TaskFailed | TaskReleased)
    assert (fact.task_id, fact.lease) == ("t", "f" * 16)


async def test_outcomes_are_remembered_within_bounds(desk: Desk) -> None:
    """The last thousand of them: memory does not grow with the work done."""
    for n in range(1_005):
        desk.reports.completed(Attempt("t", f"{n}", 1, lane=2, entry=b"1-1", raw=b""), n)
    assert not desk.reports.repeat("4")
    assert desk.reports.repeat("5")


async def test_outcomes_are_remembered_for_a_while(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """An outcome is forgotten when another one is reported five minutes later, however few there are."""
    loop = asyncio.get_running_loop()
    desk.reports.completed(Attempt("t", "old", 1, lane=2, entry=b"1-1", raw=b""), 1)
    later = loop.time() + REMEMBERED_S
    with monkeypatch.context() as patched:
        patched.setattr(loop, "time", lambda: later)
        desk.reports.completed(Attempt("t", "new", 1, lane=2, entry=b"1-2", raw=b""), 2)
    assert not desk.reports.repeat("old")
    assert desk.reports.repeat("new")
