"""``change_tasks``: many tasks in one request; each is changed as far as its state allows, and the audit says so."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coord.models.tasks import HEAD_START_MS, Priority
from tests.scripts.cell import START, Cell
from workers.transitions import TasksChange


async def change(cell: Cell, action: str, *ids: str, **options: Any) -> dict[str, Any]:
    """Change tasks; the answer."""
    entry = await cell.append("in:control:distributor", "tasks.change_requested")
    values = {"priority": "", "reason": "why", "before_ms": None, "note": b'{"action":"%s"' % action.encode()} | options
    await cell.run(cell.scripts.change_tasks([TasksChange(entry, "op", action, " ".join(ids), **values)]))
    assert await cell.is_consumed("in:control:distributor")
    answer = (await cell.stream("replies:op"))[-1]
    assert answer["ok"] == "1"
    found: dict[str, Any] = msgspec.json.decode(answer["data"])
    return found


async def states(cell: Cell, *ids: str) -> list[str]:
    """The states of tasks."""
    return [(await cell.task(task_id)).state for task_id in ids]


@pytest.mark.on_fakeredis
async def test_many_tasks_are_cancelled_in_one_request(cell: Cell) -> None:
    """⚠ Also those that an agent has, which are counted apart; what has ended, or does not exist, is skipped."""
    await cell.register(capacity=10)
    for name in ("done", "running"):
        await cell.assign(name)
    await cell.complete("done")
    await cell.report("started", "running")
    for name in ("q1", "q2"):
        await cell.submit(name)
    await cell.submit("s1", run_at=START + 60_000)
    found = await change(cell, "cancel", "q1", "q2", "s1", "running", "done", "ghost")
    assert found == {"done": 4, "stopping": 1, "skipped": {"task_finished": 1, "task_not_found": 1}}
    assert await states(cell, "q1", "q2", "s1", "running", "done") == [*["cancelled"] * 3, "running", "completed"]
    assert len(await cell.orders()) == 1
    again = await change(cell, "cancel", "q1", "s1", "running")
    assert again == {"done": 0, "stopping": 0, "skipped": {"unchanged": 3}}, "nothing is done twice"
    assert len(await cell.orders()) == 1


async def test_only_what_had_failed_by_then_is_replayed(cell: Cell) -> None:
    """⚠ A request that is repeated does not replay a task that has failed again since."""
    await cell.register(capacity=10)
    await cell.submit("waits")
    for name in ("f1", "f2"):
        await cell.assign(name)
        await cell.fail(name, retryable=False)
        cell.now += 1_000
    first_end = (await cell.task("f1")).finished_at
    found = await change(cell, "replay", "f1", "f2", "waits", before_ms=first_end)
    assert found == {"done": 1, "skipped": {"failed_later": 1, "task_not_dead": 1}}
    assert await states(cell, "f1", "f2") == ["queued", "failed"]
    assert (await change(cell, "replay", "f2"))["done"] == 1


@pytest.mark.on_fakeredis
@pytest.mark.parametrize("waits", ["queued", "scheduled"])
async def test_a_task_waits_as_if_submitted_with_its_new_priority(cell: Cell, waits: str) -> None:
    """Its place in the queue, and the counters, change with it; the total of submissions stays."""
    await cell.register(capacity=10)
    await cell.submit("t1", priority="low", run_at=START + 5_000 if waits == "scheduled" else None)
    await cell.assign("held")
    found = await change(cell, "prioritize", "t1", "held", priority="urgent")
    assert found == {"done": 1, "skipped": {"task_not_waiting": 1}}
    task = await cell.task("t1")
    assert (task.state, task.priority) == (waits, Priority.URGENT)
    numbers = [await cell.counter(f"{name}:{one}") for name in (waits, "submitted") for one in ("low", "urgent")]
    assert numbers == [0, 1, 1, 0]
    if waits == "queued":
        score = await cell.redis.zscore(cell.keys.queue("p1"), "t1")
        assert score == task.submitted_at - HEAD_START_MS[Priority.URGENT]
    assert (await cell.logged())[-1] == "task.prioritized"
    assert (await change(cell, "prioritize", "t1", priority="urgent"))["skipped"] == {"unchanged": 1}
    assert (await change(cell, "prioritize", "t1", priority="low"))["done"] == 1
    assert (await cell.task("t1")).priority is Priority.LOW


async def test_a_task_of_a_new_priority_goes_its_way(cell: Cell) -> None:
    """It is placed, run and ended under that priority, and is placed before others."""
    await cell.register(capacity=1)
    for name in ("first", "second"):
        await cell.submit(name, priority="normal")
    await change(cell, "prioritize", "second", priority="high")
    assert await cell.dispatch() == "ASSIGNED"
    assert await states(cell, "first", "second") == ["queued", "assigned"]
    await cell.report("started", "second")
    await cell.complete("second")
    assert await cell.counter("completed:high") == 1


Request = tuple[str, str]  #: action, priority or nothing

#: What is asked in one call of a waiting task of the priority normal -> its state and priority after it.
WAITING: dict[tuple[Request, ...], tuple[str, str]] = {
    (("prioritize", "urgent"), ("cancel", "")): ("cancelled", "urgent"),
    (("cancel", ""), ("prioritize", "urgent")): ("cancelled", "normal"),
    (("prioritize", "urgent"), ("prioritize", "low")): ("queued", "low"),
    (("prioritize", "low"), ("cancel", ""), ("prioritize", "high")): ("cancelled", "low"),
}
#: The same of a failed task.
FAILED: dict[tuple[Request, ...], tuple[str, str]] = {
    (("replay", ""), ("cancel", "")): ("cancelled", "normal"),
    (("replay", ""), ("prioritize", "urgent")): ("queued", "urgent"),
    (("replay", ""), ("prioritize", "urgent"), ("cancel", ""), ("replay", "")): ("cancelled", "urgent"),
    (("cancel", ""), ("replay", "")): ("queued", "normal"),
}


async def change_at_once(cell: Cell, requests: tuple[Request, ...], *ids: str) -> None:
    """Change the same tasks by several requests in one call."""
    changes = []
    for action, priority in requests:
        entry = await cell.append("in:control:distributor", "tasks.change_requested")
        changes.append(TasksChange(entry, "op", action, " ".join(ids), priority, "why", None, b'{"a":1'))
    answer = await cell.run(cell.scripts.change_tasks(changes))
    assert answer.words == ["OK"] * len(requests)


@pytest.mark.on_fakeredis
@pytest.mark.guarantee("bulk-operations")
@pytest.mark.parametrize("requests", [*WAITING, *FAILED])
async def test_several_requests_in_one_call_have_an_effect_in_their_order(
    cell: Cell, requests: tuple[Request, ...]
) -> None:
    """⚠ What is written to a queue together is in no order: a cancelled task must not stay in it."""
    ids = [f"t{n}" for n in range(8)]
    await cell.register(capacity=10)
    for task_id in ids:
        if requests in WAITING:
            await cell.submit(task_id, pool=f"p-{task_id}")
        else:
            await cell.assign(task_id)
            await cell.fail(task_id, retryable=False)
    await change_at_once(cell, requests, *ids)
    expected = (WAITING | FAILED)[requests]
    for task_id in ids:
        task = await cell.task(task_id)
        assert (task.state, task.priority) == expected
        score = await cell.redis.zscore(cell.keys.queue(f"p-{task_id}"), task_id)
        place = (await cell.fields(task_id, "score"))[0]
        assert score == (float(place or 0) if task.state == "queued" else None)


@pytest.mark.guarantee("bulk-operations")
async def test_the_same_request_again_changes_nothing(cell: Cell) -> None:
    """Its entry is gone: the word says so, and neither the tasks nor the audit change."""
    await cell.submit("t1")
    entry = await cell.append("in:control:distributor", "tasks.change_requested")
    call = cell.scripts.change_tasks([TasksChange(entry, "op", "cancel", "t1", "", "", None, b'{"a":1')])
    assert (await cell.run(call)).words == ["OK"]
    before = await cell.dump()
    assert (await cell.run(call)).words == ["GONE"]
    assert await cell.dump() == before


async def test_a_record_that_cannot_be_read_stops_no_other_task(cell: Cell) -> None:
    """It is counted as an error."""
    await cell.submit("t1")
    await cell.redis.set(cell.keys.task("bad"), "x")
    cell.broken = True
    assert await change(cell, "cancel", "bad", "t1") == {"done": 1, "stopping": 0, "skipped": {"error": 1}}


@pytest.mark.guarantee("audit")
async def test_the_audit_has_who_what_and_the_outcome(cell: Cell) -> None:
    """⚠ One entry for each request of an operator, written with the change; a client's own requests are not audited."""
    await cell.submit("t1")
    await cell.submit("t2")
    await change(cell, "cancel", "t1", "ghost")
    assert await cell.cancel("t2", caller="c1") == "CANCELLED"
    (entry,) = await cell.stream("log:audit")
    assert (entry["type"], entry["by"], entry["outcome"]) == ("tasks.change_requested", "client without an id", "ok")
    found = {"action": "cancel", "done": 1, "stopping": 0, "skipped": {"task_not_found": 1}}
    assert msgspec.json.decode(entry["data"]) == found
