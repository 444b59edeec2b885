"""``count_waiting``: one process adds up the waiting tasks by reason, and records them with their exact total."""

from __future__ import annotations

import pytest

from coord import queries
from coord.models.explanations import WaitingCounts, WaitingReason
from tests.scripts.cell import Cell
from workers.transitions import WaitingCount
from workers.transitions.scripts import COUNTER_SILENCE_MS, WAITING_KEPT_MS

R = WaitingReason
FULL = {R.ALL_FULL: ["p1", "p1.named"], R.NO_TAG: ["p2"]}


async def count(
    cell: Cell,
    queues: dict[WaitingReason, list[str]],
    before: dict[WaitingReason, int] | None = None,
    *,
    by: str = "d1",
    is_last: bool = True,
) -> WaitingCount:
    """One call."""
    answer = await cell.run(cell.scripts.count_waiting(by, before or {}, queues, is_last=is_last))
    assert isinstance(answer, WaitingCount)
    return answer


async def recorded(cell: Cell) -> WaitingCounts | None:
    """The numbers as readers get them, without the zeros."""
    found = await queries.get_waiting_counts(cell.redis, cell.keys)
    if found is None:
        return None
    assert list(found.reasons) == list(WaitingReason)
    assert sum(found.reasons.values()) + found.uncounted == found.total
    return found


def some(found: WaitingCounts | None) -> dict[WaitingReason, int]:
    """The reasons for which tasks wait."""
    assert found is not None
    return {reason: number for reason, number in found.reasons.items() if number}


@pytest.mark.on_fakeredis
async def test_tasks_are_added_up_by_reason(cell: Cell) -> None:
    """Over both queues of a pool, with the scheduled tasks, of every priority; the sum is the exact total."""
    for number, priority in enumerate(("urgent", "normal", "low")):
        await cell.submit(f"t{number}", priority=priority, pool="p1")
    await cell.submit("named", pool="p1.named", preferences=b'{"affinity_key":"k"}')
    await cell.submit("tagged", pool="p2")
    await cell.submit("later", run_at=cell.now + 60_000)
    answer = await count(cell, FULL)
    assert answer == WaitingCount({R.NO_TAG: 1, R.ALL_FULL: 4})
    found = await recorded(cell)
    assert some(found) == {R.SCHEDULED: 1, R.NO_TAG: 1, R.ALL_FULL: 4}
    assert found is not None
    assert (found.total, found.uncounted, found.counted_at) == (6, 0, cell.now)


async def test_what_is_over_is_zero(cell: Cell) -> None:
    """The next count replaces all numbers of the one before it, also those of reasons that no longer hold."""
    await cell.submit("t1", pool="p2")
    await count(cell, FULL)
    assert some(await recorded(cell)) == {R.NO_TAG: 1}
    await cell.cancel("t1")
    await count(cell, {})
    found = await recorded(cell)
    assert some(found) == {}
    assert found is not None
    assert found.total == 0


async def test_a_difference_to_the_total_is_recorded(cell: Cell) -> None:
    """Tasks of a pool that the process does not know yet, and tasks that left between two calls of a count."""
    await cell.submit("t1", pool="p1")
    await cell.submit("t2", pool="p3")
    await count(cell, FULL)
    found = await recorded(cell)
    assert found is not None
    assert (found.total, found.uncounted, some(found)) == (2, 1, {R.ALL_FULL: 1})
    first = await count(cell, FULL, is_last=False)
    assert (await recorded(cell)) == found, "only the last call records"
    await cell.cancel("t1")
    await count(cell, {R.NO_AGENT_TYPE: ["p3"]}, first.counts)
    found = await recorded(cell)
    assert found is not None
    assert (found.total, found.uncounted) == (1, -1)
    assert some(found) == {R.NO_AGENT_TYPE: 1, R.ALL_FULL: 1}


async def test_one_process_counts_until_it_is_silent(cell: Cell) -> None:
    """Another one learns how long it has to wait, and changes nothing; any call is a sign of life."""
    await cell.submit("t1", pool="p1")
    await count(cell, FULL)
    cell.now += COUNTER_SILENCE_MS - 1
    await count(cell, {}, is_last=False)
    cell.now += 1_000
    assert (await count(cell, {R.NO_TAG: ["p1"]}, by="d2")).other_ms == COUNTER_SILENCE_MS - 1_000
    assert some(await recorded(cell)) == {R.ALL_FULL: 1}
    cell.now += COUNTER_SILENCE_MS - 1_000
    assert (await count(cell, {R.NO_TAG: ["p1"]}, by="d2")).other_ms is None
    assert some(await recorded(cell)) == {R.NO_TAG: 1}
    assert (await count(cell, FULL)).other_ms == COUNTER_SILENCE_MS


async def test_a_clock_that_was_set_back_does_not_stop_the_counts(cell: Cell) -> None:
    """A sign of life from the future counts for nothing."""
    await count(cell, {})
    cell.now -= 3_600_000
    assert (await count(cell, {}, by="d2")).other_ms is None


async def test_the_numbers_are_not_kept_forever(cell: Cell) -> None:
    """Without a distributor they end, so nobody takes an old number for a new one."""
    assert await recorded(cell) is None
    await count(cell, {}, is_last=False)
    assert await recorded(cell) is None, "nothing was counted yet"
    await count(cell, {})
    left = await cell.redis.pttl(cell.keys.of("waiting"))
    assert WAITING_KEPT_MS - 60_000 < left <= WAITING_KEPT_MS
