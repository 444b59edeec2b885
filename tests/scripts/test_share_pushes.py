"""``share_pushes``: the shards of pushed agents are shared evenly among the push workers, each by one at a time."""

from __future__ import annotations

from tests.scripts.cell import Cell
from workers.transitions import PushShare
from workers.transitions.scripts import PUSH_LEASE_MS, PUSH_SHARDS

ALL = frozenset(range(PUSH_SHARDS))


async def share(cell: Cell, worker: str, *, give: int = 0, leaves: bool = False) -> PushShare:
    """One call of a worker, which gives up so many of the shards that it holds."""
    held = await cell.redis.hgetall(cell.keys.of("pushes"))
    own = sorted(int(shard) for shard, holder in held.items() if holder == worker.encode())
    found: PushShare = await cell.run(cell.scripts.share_pushes(worker, give=own[:give], leaves=leaves))
    return found


async def test_a_lone_worker_holds_all_and_shares_them_with_the_next(cell: Cell) -> None:
    """The second one gets what the first gives up; then each has half, and neither has too many."""
    assert (await share(cell, "p1#a")) == PushShare(ALL, 0)
    assert (await share(cell, "p2#b")) == PushShare(frozenset(), 0)
    first = await share(cell, "p1#a")
    assert (first.held, first.excess) == (ALL, PUSH_SHARDS // 2)
    first = await share(cell, "p1#a", give=first.excess)
    second = await share(cell, "p2#b")
    assert len(first.held) == len(second.held) == PUSH_SHARDS // 2
    assert first.held | second.held == ALL
    assert (await share(cell, "p1#a")).excess == second.excess == 0


async def test_one_that_is_silent_loses_its_shards_and_one_that_leaves_at_once(cell: Cell) -> None:
    """⚠ Not before its lease has ended: two must not push one task."""
    await share(cell, "p1#a")
    cell.now += PUSH_LEASE_MS // 3
    assert (await share(cell, "p2#b")).held == frozenset()
    for _ in range(3):
        cell.now += PUSH_LEASE_MS // 3
        await share(cell, "p2#b")
    assert (await share(cell, "p2#b")).held == ALL
    assert (await share(cell, "p2#b", leaves=True)).held == frozenset()
    assert (await share(cell, "p3#c")).held == ALL


async def test_no_lease_ends_while_nobody_calls(cell: Cell) -> None:
    """Redis was away for an hour: the worker that held the shards has them still."""
    await share(cell, "p1#a")
    cell.now += 3_600_000
    assert (await share(cell, "p2#b")).held == frozenset()
    assert (await share(cell, "p1#a")).held == ALL
