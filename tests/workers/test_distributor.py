"""The distributor at work: a task's whole life, and what its callers are told."""

from __future__ import annotations

import asyncio
import time
from datetime import UTC, datetime, timedelta

import msgspec
import pytest

from coord import queries
from coord.models.facts import TaskCancelRequested
from coord.models.tasks import Lane, Priority, Requirements, Retry, TaskState
from tests.ledger import assert_keys_end, assert_ledger
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_count, await_quiet, await_state, buried, fleet, working


async def test_the_whole_life_of_a_task(cell: RunningCell, caller: Caller) -> None:
    """Submitted, queued, assigned, running, completed: each step is recorded, and the caller hears of the outcome."""
    (told,) = await caller.submit(notify=True, payload=msgspec.Raw(b'{"n":1}'))
    assert (await caller.answer(told.entry))["ok"] == "1"
    await await_state(cell, told.task_id, TaskState.QUEUED)
    (agent,) = await fleet(cell, 1)
    (one,) = await agent.await_inbox()
    assert (one.task_id, one.attempt, one.lane) == (told.task_id, 1, Lane.NORMAL)
    assert one.body["payload"] == {"n": 1}
    assert await agent.claim(one)
    await agent.start(one)
    record = await await_state(cell, told.task_id, TaskState.RUNNING)
    assert (record.agent_id, record.lease, record.started_at is not None) == ("a0", one.lease, True)
    await agent.complete(one, result={"n": 2})
    record = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert record.result == {"n": 2}
    assert record.placement is not None
    placement = dict(record.placement)
    placement.pop("waiting_reason", None)  # if the agent took a second to come
    assert placement == {"strategy": "least_connections", "eligible": 1}
    outcome = await caller.outcome(told.task_id)
    assert (outcome["type"], outcome["data"]) == ("task.completed", '{"n":2}')
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


async def test_the_same_id_twice_has_one_effect(cell: RunningCell, caller: Caller) -> None:
    """Submitting again changes nothing and is answered ok; with other content it is a conflict."""
    await caller.submit()
    first = await caller.raw("in:tasks:normal", {"type": "task.submitted", "data": _body("t1", 1), "caller": caller.id})
    again = await caller.raw("in:tasks:normal", {"type": "task.submitted", "data": _body("t1", 1), "caller": caller.id})
    other = await caller.raw("in:tasks:normal", {"type": "task.submitted", "data": _body("t1", 2), "caller": caller.id})
    assert (await caller.answer(first))["ok"] == "1"
    assert (await caller.answer(again))["ok"] == "1"
    assert (await caller.answer(other))["code"] == "id_conflict"
    assert queries.count_submitted(await queries.get_counters(cell.redis, cell.keys)) == 2
    await assert_ledger(cell.redis, cell.keys)


async def test_an_entry_may_tell_of_many_tasks(cell: RunningCell, caller: Caller) -> None:
    """More than a batch holds, in a few entries: all are completed, and the agent is answered once for each entry."""
    (agent,) = await fleet(cell, 1, capacity=600)
    told = await caller.submit(600)
    assignments = await agent.await_inbox(600)
    for at in range(0, 600, 50):  # each claim that runs has a connection of its own
        assert all(await asyncio.gather(*(agent.claim(one) for one in assignments[at : at + 50])))
    entries = [await agent.complete_together(*assignments[at : at + 200]) for at in range(0, 600, 200)]
    me = Caller(cell.redis, cell.keys, "a0")
    assert [(await me.answer(entry))["ok"] for entry in entries] == ["1"] * 3
    for one in told:
        await await_state(cell, one.task_id, TaskState.COMPLETED)
    await await_quiet(cell)
    await assert_ledger(cell.redis, cell.keys)


@pytest.mark.guarantee("lists-of-facts")
async def test_what_fails_in_an_entry_of_many_is_buried_with_it_and_nothing_else_is_lost(
    cell: RunningCell, caller: Caller
) -> None:
    """⚠ A record of a wrong type among three: two outcomes count once, the entry is buried after its tries."""
    (agent,) = await fleet(cell, 1, capacity=3)
    told = await caller.submit(3)
    assignments = {one.task_id: one for one in await agent.await_inbox(3)}
    assert all([await agent.claim(one) for one in assignments.values()])
    key = cell.keys.task(told[1].task_id)
    await cell.redis.delete(key)
    await cell.redis.set(key, "no record")
    entry = await agent.complete_together(*(assignments[one.task_id] for one in told))
    (dead,) = await wait_until(lambda: buried(cell), "the entry is buried")
    assert (dead["stream"], dead["id"], dead["code"]) == ("in:reports", entry, "entry_buried")
    for one in (told[0], told[2]):
        assert (await await_state(cell, one.task_id, TaskState.COMPLETED)).attempt == 1
    counters = await queries.get_counters(cell.redis, cell.keys)
    assert counters["completed:normal"] == 2


async def test_a_failed_attempt_is_tried_again_elsewhere(cell: RunningCell, caller: Caller) -> None:
    """A retryable failure counts an attempt and the task runs again; its story is kept; the last failure is its end."""
    (agent,) = await fleet(cell, 1)
    (told,) = await caller.submit(retry=Retry(max_attempts=2, backoff=0.01), notify=True)
    for attempt in (1, 2):
        (one,) = await agent.await_inbox()
        assert one.attempt == attempt
        assert await agent.claim(one)
        await agent.fail(one, message=f"no {attempt}")
    record = await await_state(cell, told.task_id, TaskState.FAILED)
    assert [(one.attempt, one.message) for one in record.attempts] == [(1, "no 1"), (2, "no 2")]
    assert (await caller.outcome(told.task_id))["type"] == "task.failed"
    await assert_ledger(cell.redis, cell.keys)


async def test_a_released_task_goes_elsewhere_and_counts_no_attempt(cell: RunningCell, caller: Caller) -> None:
    """What an agent gives back is placed again without counting as a failure."""
    (agent,) = await fleet(cell, 1)
    (told,) = await caller.submit(retry=Retry(max_attempts=1))
    (one,) = await agent.await_inbox()
    assert await agent.claim(one)
    await agent.release(one)
    await agent.await_inbox()
    await agent.work_once()
    record = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert (record.releases, record.failures, record.attempt) == (0, 0, 2)


async def test_a_stale_lease_changes_nothing(cell: RunningCell, caller: Caller) -> None:
    """A report with a lease that is not the task's is told so and counted; the task goes on."""
    (agent,) = await fleet(cell, 1)
    (told,) = await caller.submit()
    (one,) = await agent.await_inbox()
    await agent.complete(one._replace(lease="0" * 16), result="forged")
    as_agent = Caller(cell.redis, cell.keys, "a0")
    await await_quiet(cell)
    assert [reply["code"] for reply in await as_agent.replies() if "code" in reply] == ["stale_lease"]
    await agent.work_once()
    record = await await_state(cell, told.task_id, TaskState.COMPLETED)
    assert record.result == {"by": "a0"}


async def test_cancel_before_and_after_the_claim(cell: RunningCell, caller: Caller) -> None:
    """An unclaimed task is cancelled at once; a claimed one's agent is told on its critical lane; none is not found."""
    (agent,) = await fleet(cell, 1, capacity=2)
    claimed, unclaimed = await caller.submit(2)
    entries = {one.task_id: one for one in await agent.await_inbox(2)}
    assert await agent.claim(entries[claimed.task_id])
    first = await caller.tell("in:requests", TaskCancelRequested(task_id=unclaimed.task_id))
    second = await caller.tell("in:requests", TaskCancelRequested(task_id=claimed.task_id, reason="enough"))
    third = await caller.tell("in:requests", TaskCancelRequested(task_id="nobody-knows"))
    assert [(await caller.answer(one))["ok"] for one in (first, second)] == ["1", "1"]
    assert (await caller.answer(third))["code"] == "task_not_found"
    await await_state(cell, unclaimed.task_id, TaskState.CANCELLED)
    (told,) = await agent.told()
    assert (told["order"], told["task_id"], told["lease"]) == (
        "stop_task",
        claimed.task_id,
        entries[claimed.task_id].lease,
    )
    await agent.fail(entries[claimed.task_id], retryable=True, message="stopped")
    await await_state(cell, claimed.task_id, TaskState.CANCELLED)
    await assert_ledger(cell.redis, cell.keys)


async def test_a_cancel_in_the_same_batch_as_its_task_wins(cell: RunningCell, caller: Caller) -> None:
    """A cancel that is handled before the submission it follows leaves a tombstone, and the task never runs."""
    (distributor,) = cell.of_kind("distributor")
    await distributor.stop()
    await fleet(cell, 1)
    (told,) = await caller.submit()
    request = await caller.tell("in:requests", TaskCancelRequested(task_id=told.task_id))
    await cell.add("distributor")
    assert (await caller.answer(request))["code"] == "pending"
    await await_state(cell, told.task_id, TaskState.CANCELLED)
    await assert_ledger(cell.redis, cell.keys)


async def test_a_delayed_task_waits_and_an_overdue_one_expires(cell: RunningCell, caller: Caller) -> None:
    """A delay keeps a task scheduled until then; a deadline ends one that nobody took."""
    (delayed,) = await caller.submit(delay=2.0)
    (late,) = await caller.submit(
        requirements=Requirements(capabilities=("nobody-has",)),
        deadline=datetime.now(UTC) + timedelta(seconds=0.2),
        notify=True,
    )
    record = await await_state(cell, delayed.task_id, TaskState.SCHEDULED)
    await await_state(cell, late.task_id, TaskState.EXPIRED)
    assert (await caller.outcome(late.task_id))["type"] == "task.expired"
    await await_state(cell, delayed.task_id, TaskState.QUEUED)
    assert record.run_at is not None
    assert time.time() * 1000 >= record.run_at - 50
    await assert_ledger(cell.redis, cell.keys)


async def test_urgent_tasks_come_first_and_on_their_lane(cell: RunningCell, caller: Caller) -> None:
    """Waiting tasks are placed by priority, each on the lane of its own."""
    order = [Priority.LOW, Priority.NORMAL, Priority.HIGH, Priority.CRITICAL, Priority.URGENT]
    ids = {priority: (await caller.submit(1, priority))[0].task_id for priority in order}
    await await_count(cell, TaskState.QUEUED, 5)
    (agent,) = await fleet(cell, 1)
    got: list[tuple[str, str]] = []
    while len(got) < 5:
        (one,) = await agent.await_inbox()
        got.append((one.task_id, one.lane))
        await agent.work_once()
    lanes = [Lane.CRITICAL, Lane.CRITICAL, Lane.HIGH, Lane.NORMAL, Lane.LOW]
    assert got == [(ids[priority], lane) for priority, lane in zip(reversed(order), lanes, strict=True)]


async def test_a_thousand_tasks_of_many_kinds_all_end(cell: RunningCell, caller: Caller) -> None:
    """Every task of a mixed load is completed once, whatever its pool; afterwards nothing is in flight."""
    agents = await fleet(cell, 5, capacity=8)
    async with working(agents):
        for number in range(40):
            await caller.submit(25, list(Priority)[number % 5], task_type=f"kind-{number}")
        await await_count(cell, TaskState.COMPLETED, 1000)
    await await_quiet(cell)
    done = [one.task_id for agent in agents for one in agent.done]
    assert len(done) == len(set(done)) == 1000
    await assert_ledger(cell.redis, cell.keys)
    await assert_keys_end(cell.redis, cell.keys)


async def test_a_full_backlog_refuses_and_says_so(cell: RunningCell, caller: Caller) -> None:
    """What does not fit is refused with a record that can be found, and may be submitted again."""
    (worker,) = cell.of_kind("distributor")
    await worker.stop()
    cell.settings = msgspec.structs.replace(cell.settings, max_backlog_tasks=4)
    await cell.add("distributor")
    told = await caller.submit(6, Priority.URGENT)
    codes = [(await caller.answer(one.entry)).get("code") for one in told]
    assert codes == [None] * 4 + ["backlog_full"] * 2
    await await_state(cell, told[-1].task_id, TaskState.REFUSED)
    await assert_ledger(cell.redis, cell.keys)


def _body(task_id: str, number: int) -> bytes:
    return msgspec.json.encode({"task_id": task_id, "task_type": "echo", "payload": {"n": number}})
