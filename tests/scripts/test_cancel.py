"""``cancel``: what a client's request does in every state of its task."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import CancelRequest


@pytest.mark.on_fakeredis
@pytest.mark.parametrize("state", ["scheduled", "queued", "assigned"])
async def test_what_nobody_has_claimed_is_cancelled_at_once(cell: Cell, state: str) -> None:
    """⚠ Deleting the inbox entry is the claim: with it the agent never saw the task and is not told."""
    await cell.register()
    told: dict[str, Any] = {"caller": "c0", "notify": True}
    if state == "assigned":
        await cell.assign(claimed=False, **told)
    else:
        await cell.submit(run_at=START + 5_000 if state == "scheduled" else None, **told)

    assert await cell.cancel(caller="c1") == "CANCELLED"

    task = await cell.task()
    assert task.error is not None
    assert (task.state, task.error.code, task.error.message) == ("cancelled", "task_cancelled", "not needed")
    assert await cell.last_answer() == "ok"
    assert await cell.last_answer("c0") == "task.cancelled"
    assert await cell.stream("inbox:a1:normal") == []
    assert await cell.orders() == []
    assert await cell.counter("backlog_bytes") == 0
    assert (await cell.logged())[-1] == "task.cancelled"
    assert await cell.is_consumed("in:requests")


@pytest.mark.parametrize("running", [True, False])
async def test_an_agent_that_claimed_it_is_told(cell: Cell, running: bool) -> None:
    """Its task keeps its state until the agent stops it, or the grace has passed."""
    await cell.register()
    await cell.assign(priority="low")
    if running:
        await cell.report("started")

    assert await cell.cancel(caller="c1") == "STOPPING"

    task = await cell.task()
    assert (task.state, task.cancel_requested_at) == ("running" if running else "assigned", START)
    assert await cell.orders() == [("t1", task.lease)]
    (order,) = await cell.stream("inbox:a1:critical")
    assert (order["message_type"], order["reason"]) == ("coordination", "not needed")
    assert await cell.redis.zscore(cell.keys.of("limits"), "t1") == START + 10_000
    assert await cell.last_answer() == "ok"
    assert (await cell.logged())[-1] == "task.cancel_requested"


async def test_cancelling_twice_is_cancelling_once(cell: Cell) -> None:
    """The same call again, or another request, changes nothing: one order, one grace."""
    await cell.register()
    await cell.assign("t1")
    await cell.submit("t2")
    batch = [CancelRequest(await cell.append("in:requests"), name, "", "why") for name in ("t1", "t2")]
    call = cell.scripts.cancel(batch)
    assert (await cell.run(call)).words == ["STOPPING", "CANCELLED"]
    before = await cell.dump()

    cell.now += 5_000
    assert (await cell.run(call)).words == ["GONE", "GONE"]
    assert await cell.cancel("t1") == "STOPPING"
    assert await cell.cancel("t2", caller="c1") == "CANCELLED"

    assert await cell.dump() == before
    assert await cell.last_answer() == "ok"


@pytest.mark.parametrize("state", ["completed", "failed", "expired"])
async def test_what_has_another_outcome_keeps_it(cell: Cell, state: str) -> None:
    """The caller is told that the task has finished."""
    await cell.register()
    if state == "expired":
        await cell.submit(deadline=START)
        await cell.run_alarms()
    else:
        await cell.assign()
        await (cell.complete() if state == "completed" else cell.fail(retryable=False))
    before = await cell.dump()

    assert await cell.cancel(caller="c1") == "FINISHED"

    assert await cell.last_answer() == "task_finished"
    assert await cell.dump() == before
    assert await cell.is_consumed("in:requests")


async def test_of_nothing(cell: Cell) -> None:
    """With no older submission under way the answer is ``task_not_found``, and nothing is kept."""
    await cell.submission("later", at=START + 1)
    before = await cell.dump("in:requests")
    assert await cell.cancel(caller="c1") == "NOT_FOUND"
    assert await cell.last_answer() == "task_not_found"
    assert await cell.dump("in:requests") == before


@pytest.mark.parametrize("priority", ["urgent", "low"])
async def test_of_what_may_still_be_on_its_way(cell: Cell, priority: str) -> None:
    """An older submission waits in some stream, which may be this one: the answer is ``pending``, a tombstone waits."""
    older = await cell.submission("t1", priority=priority)
    assert await cell.cancel("t1", caller="c1") == "PENDING"
    assert await cell.last_answer() == "pending"
    assert await cell.redis.zscore(cell.keys.of("tombstones"), "t1") == START
    assert await cell.admit(older) == ["CANCELLED"]


async def test_of_a_refused_task(cell: Cell) -> None:
    """A refused task never began: there is nothing to cancel."""
    await cell.admit(await cell.submission(), nearly_full=True)
    assert await cell.cancel(caller="c1") == "NOT_FOUND"
    assert await cell.state() == "refused"


async def test_a_forced_cancel_comes_with_the_deadline_at_the_latest(cell: Cell) -> None:
    """Each has its own index, and the earlier one ends the task."""
    await cell.register()
    await cell.assign(deadline=START + 3_000)
    await cell.cancel()
    assert await cell.redis.zscore(cell.keys.of("deadlines"), "t1") == START + 3_000
    assert await cell.redis.zscore(cell.keys.of("limits"), "t1") == START + 10_000
    cell.now += 3_000
    assert await cell.run_alarms() == ["EXPIRED"]


async def test_capacity_is_free_at_once(cell: Cell) -> None:
    """The answer tells the loads of the agents and the pools that it touched."""
    await cell.register()
    await cell.assign("t1", claimed=False)
    await cell.submit("t2")
    batch = [CancelRequest(await cell.append("in:requests"), name, "", "why") for name in ("t1", "t2")]
    answer = await cell.run(cell.scripts.cancel(batch))
    assert (answer.loads, answer.pools, answer.raised) == ({"a1": 0}, {"p1": (0, 0.0)}, 1)


async def test_a_cancel_that_fails_leaves_the_assignment(cell: Cell) -> None:
    """⚠ The inbox entry is deleted only where the attempt can be ended, or an agent would be told for nothing."""
    await cell.register()
    await cell.assign(claimed=False)
    kept = await cell.redis.dump(cell.keys.inflight("a1"))
    await cell.redis.set(cell.keys.inflight("a1"), "x")
    call = cell.scripts.cancel([CancelRequest(await cell.append("in:requests"), "t1", "", "not needed")])
    assert (await cell.word(call)).startswith("ERROR ")
    assert [one["task_id"] for one in await cell.stream("inbox:a1:normal")] == ["t1"]
    await cell.redis.restore(cell.keys.inflight("a1"), 0, kept, replace=True)
    assert await cell.word(call) == "CANCELLED"


@pytest.mark.parametrize("broken", ["task:t1", "inbox:a2:normal", "queue:bad"])
async def test_a_broken_key_fails_its_own_request_only(cell: Cell, broken: str) -> None:
    """⚠ A wrong type in the middle of a batch: the others are cancelled and counted, the failing one stays pending."""
    await cell.register("a2")
    if broken == "inbox:a2:normal":
        await cell.assign("t1", "a2", claimed=True)
    else:
        await cell.submit("t1", pool="bad")
    await cell.submit("t0")
    await cell.submit("t2")
    kept = await cell.redis.dump(cell.keys.of(broken))
    await cell.redis.set(cell.keys.of(broken), "x")
    batch = [CancelRequest(await cell.append("in:requests"), f"t{n}", "c1", "why") for n in range(3)]

    answer = await cell.run(cell.scripts.cancel(batch))

    assert [word[:6] for word in answer.words] == ["CANCEL", "ERROR ", "CANCEL"]
    assert await cell.counter("cancelled:normal") == 2
    assert [fact for fact, _ in await cell.answers()] == [batch[0].entry, batch[2].entry]
    assert await cell.left("in:requests") == [batch[1].entry]
    await cell.redis.delete(cell.keys.of(broken))
    if kept:
        await cell.redis.restore(cell.keys.of(broken), 0, kept)


async def test_a_large_batch(cell: Cell) -> None:
    """256 requests in one call."""
    await cell.admit(*[await cell.submission(f"t{n}", caller=f"c{n}", notify=True) for n in range(256)])
    batch = [CancelRequest(await cell.append("in:requests"), f"t{n}", "c1", "w" * 1_000) for n in range(256)]
    assert (await cell.run(cell.scripts.cancel(batch))).words == ["CANCELLED"] * 256
    assert await cell.is_consumed("in:requests")


@pytest.mark.on_fakeredis
@pytest.mark.guarantee("audit")
async def test_only_the_cancels_of_operators_are_audited(cell: Cell) -> None:
    """⚠ A client may write any name into its request: it neither names others in the audit nor fills it."""
    await cell.submit("t1")
    await cell.submit("t2")
    assert await cell.cancel("t1", caller="c1", by="ann@host") == "CANCELLED"
    assert await cell.cancel("ghost", caller="c1", by="ann@host") == "NOT_FOUND"
    assert await cell.stream("log:audit") == []
    assert await cell.cancel("t2", caller="op", is_operators=True, by="ann@host") == "CANCELLED"
    assert await cell.cancel("t2", caller="op", is_operators=True, by="ann@host") == "CANCELLED"
    await cell.append("in:tasks:low", at=cell.now - 1)
    assert await cell.cancel("later", caller="op", is_operators=True, by="ann@host") == "PENDING"
    assert await cell.is_consumed("in:control:distributor")
    found = [(one["type"], one["by"], one["outcome"]) for one in await cell.stream("log:audit")]
    assert found == [("task.cancel_requested", "ann@host", word) for word in ("cancelled", "cancelled", "pending")]
    answers = await cell.stream("replies:op")
    assert {one["stream"] for one in answers} == {"in:control:distributor"}
    assert answers[-1]["code"] == "pending"
