"""``check_leases``: the leases that an agent lists beside those that the records say it holds."""

from __future__ import annotations

import pytest

from tests.scripts.cell import Cell
from workers.transitions import LeaseList, LeaseLoss


async def listed(cell: Cell, *leases: tuple[str, str], ask: str | None = None, incarnation: str = "i1") -> str:
    """The agent lists (task, lease) pairs in answer to the latest question; the word."""
    if ask is None:
        ask = await question(cell)
    entry = await cell.append("in:registry", "agent.leases_listed")
    pairs = {lease: task for task, lease in leases}
    return await cell.word(cell.scripts.check_leases([LeaseList(entry, "a1", incarnation, ask, pairs)]))


async def question(cell: Cell) -> str:
    """The ask of the last question in the agent's inbox."""
    asked = [one for one in await cell.stream("inbox:a1:critical") if one.get("order") == "list_leases"]
    assert asked
    return asked[-1]["ask"]


async def questions(cell: Cell) -> int:
    """How often the agent was asked."""
    return sum(one.get("order") == "list_leases" for one in await cell.stream("inbox:a1:critical"))


async def losses(cell: Cell) -> list[str]:
    """The types of the losses that were announced."""
    return [one["type"] for one in await cell.stream("in:losses")]


async def holding(cell: Cell) -> str:
    """An agent that has claimed t1, a moment ago; its lease."""
    await cell.register(interval_ms=5_000)
    lease = (await cell.assign()).lease
    assert lease
    cell.now += 1_000
    return lease


@pytest.mark.on_fakeredis
async def test_a_beat_with_the_right_number_asks_nothing(cell: Cell) -> None:
    """Nobody is asked as long as the numbers agree."""
    await holding(cell)
    assert await cell.heartbeat(leases=1) == "OK"
    assert await questions(cell) == 0


async def test_a_beat_with_another_number_asks_once_an_interval(cell: Cell) -> None:
    """A mismatch asks for the list; the next beats do not ask again before an interval has passed."""
    await holding(cell)
    assert await cell.heartbeat(leases=0) == "OK"
    assert await cell.heartbeat(leases=0) == "OK"
    assert await questions(cell) == 1
    cell.now += 5_000
    assert await cell.heartbeat(leases=0) == "OK"
    assert await questions(cell) == 2


async def test_an_agent_that_lists_none_is_never_asked(cell: Cell) -> None:
    """One whose beats carry no number (a shell script) is left to its attempts' timeout."""
    await holding(cell)
    assert await cell.heartbeat() == "OK"
    assert await questions(cell) == 0


async def test_a_lease_missing_from_two_lists_is_lost(cell: Cell) -> None:
    """The first list that lacks it makes a second question; the second list that lacks it announces the loss."""
    lease = await holding(cell)
    await cell.heartbeat(leases=0)
    assert await listed(cell) == "SUSPECTED"
    assert await losses(cell) == []
    assert await questions(cell) == 2
    assert await listed(cell) == "LOST"
    assert await losses(cell) == ["lease.lost"]

    entry = (await cell.left("in:losses"))[0]
    await cell.redis.xreadgroup("distributor", "w1", {cell.keys.of("in:losses"): ">"})
    assert await cell.word(cell.scripts.reclaim_lease([LeaseLoss(entry, "a1", "t1", lease)])) == "OK"

    task = await cell.task()
    assert (task.state, task.failures, task.attempts[0].how) == ("scheduled", 1, "lease_lost")
    assert await cell.is_consumed("in:losses")
    assert await cell.is_consumed("in:registry")


async def test_a_lease_that_the_second_list_has_is_kept(cell: Cell) -> None:
    """One that was claimed while the first list was on its way is on the second, and nothing is lost."""
    lease = await holding(cell)
    await cell.heartbeat(leases=0)
    assert await listed(cell) == "SUSPECTED"
    assert await listed(cell, ("t1", lease)) == "OK"
    await cell.heartbeat(leases=0)
    assert await losses(cell) == []


async def test_the_same_list_twice_loses_nothing(cell: Cell) -> None:
    """⚠ The second list must have been asked for after the first was judged: a repeated first one is none."""
    await holding(cell)
    await cell.heartbeat(leases=0)
    first = await question(cell)
    assert await listed(cell, ask=first) == "SUSPECTED"
    again = await cell.append("in:registry", "agent.leases_listed")
    stale = LeaseList(again, "a1", "i1", "1-1", {})
    assert await cell.word(cell.scripts.check_leases([stale])) == "OUTDATED"
    assert await losses(cell) == []


async def test_a_question_that_was_answered_well_is_answered(cell: Cell) -> None:
    """⚠ The list once more (a client repeats what it had no answer to) is judged no more: it is older than it says."""
    lease = await holding(cell)
    await cell.heartbeat(leases=2)
    first = await question(cell)
    assert await listed(cell, ("t1", lease), ask=first) == "OK"
    assert await listed(cell, ask=first) == "OUTDATED"
    assert await questions(cell) == 1


async def test_a_list_that_crossed_a_report_waits(cell: Cell) -> None:
    """⚠ A finished task is on no list any more; its report, which is older than the list, is read first."""
    lease = await holding(cell)
    await cell.heartbeat(leases=0)
    report = await cell.reported("completed", lease=lease, data=b"1")
    ask = await question(cell)
    entry = await cell.append("in:registry", "agent.leases_listed")
    told = cell.scripts.check_leases([LeaseList(entry, "a1", "i1", ask, {})])
    assert await cell.word(told) == "WAIT"
    assert await cell.left("in:registry") == [entry]

    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.word(told) == "OK"
    assert await losses(cell) == []


async def test_what_was_assigned_after_the_list_was_made_is_not_missing(cell: Cell) -> None:
    """A list cannot have what did not exist when it was made."""
    await cell.register(interval_ms=5_000)
    await cell.heartbeat(leases=3)
    ask = await question(cell)
    entry = await cell.append("in:registry", "agent.leases_listed")
    await cell.assign()
    assert await cell.word(cell.scripts.check_leases([LeaseList(entry, "a1", "i1", ask, {})])) == "OK"


async def test_what_an_earlier_term_left_is_not_missing(cell: Cell) -> None:
    """A new process lists nothing of what the one before held: that is reclaimed as lost with its term."""
    await holding(cell)
    await cell.register(incarnation="i2", interval_ms=5_000)
    cell.now += 1_000
    await cell.heartbeat(incarnation="i2", leases=0)
    assert await listed(cell, incarnation="i2") == "OK"
    assert await losses(cell) == ["agent.lost"]


async def test_what_is_not_claimed_is_not_missing(cell: Cell) -> None:
    """An assignment that lies in the inbox is nobody's lease yet; only its start timeout takes it back."""
    await cell.register(interval_ms=5_000)
    await cell.assign(claimed=False)
    cell.now += 1_000
    await cell.heartbeat(leases=0)
    assert await listed(cell) == "OK"


async def test_a_lease_that_no_record_knows_is_named_back(cell: Cell) -> None:
    """A coordinator that lost a task (flushed, or a fail-over) tells the agent to stop what nobody waits for."""
    lease = await holding(cell)
    await cell.heartbeat(leases=2)
    assert await listed(cell, ("t1", lease), ("gone", "f" * 16)) == "OK"
    assert await cell.orders() == [("gone", "f" * 16)]


async def test_a_list_of_another_process_counts_for_nothing(cell: Cell) -> None:
    """Neither an older process nor a newer one speaks for the one that was asked."""
    await holding(cell)
    await cell.heartbeat(leases=0)
    assert await listed(cell, incarnation="i0") == "OUTDATED"
    assert await losses(cell) == []
    assert await cell.is_consumed("in:registry")


async def test_a_loss_of_an_earlier_lease_leaves_the_next_attempt_alone(cell: Cell) -> None:
    """The task came back to the same agent, which holds it under another lease now."""
    lease = await holding(cell)
    await cell.report("released", message="not now")
    cell.now += 1_000
    await cell.run_alarms()
    assert await cell.dispatch(pool="p-t1") == "ASSIGNED"
    entry = await cell.append("in:losses", "lease.lost")
    assert await cell.word(cell.scripts.reclaim_lease([LeaseLoss(entry, "a1", "t1", lease)])) == "STALE"
    assert (await cell.task()).state == "assigned"


@pytest.mark.on_fakeredis
async def test_a_forfeited_lease_that_was_settled_meanwhile_changes_nothing(cell: Cell) -> None:
    """The lease is the fence: a loss that comes after the outcome is stale, and one behind older reports waits."""
    lease = await holding(cell)
    report = await cell.reported("completed", lease=lease, data=b"1")
    entry = await cell.append("in:losses", "lease.lost")
    loss = cell.scripts.reclaim_lease([LeaseLoss(entry, "a1", "t1", lease)])
    assert await cell.word(loss) == "WAIT"
    assert await cell.word(cell.scripts.settle([report])) == "OK"
    assert await cell.word(loss) == "STALE"
    assert (await cell.task()).state == "completed"
    assert await cell.is_consumed("in:losses")
