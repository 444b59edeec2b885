"""``hold_lanes``, and what a router may deliver: one router for each lane, the oldest message first."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coord.models.tasks import Lane
from tests.scripts.cell import Cell
from workers.transitions import LaneShare
from workers.transitions.scripts import LANE_LEASE_MS, LANE_STEP_MS

ALL = {lane.value for lane in Lane}


@pytest.fixture
async def idle(cell: Cell) -> Cell:
    """A cell of which nobody holds a lane."""
    await cell.redis.delete(cell.keys.of("lanes"))
    return cell


async def hold(cell: Cell, router: str, *, give: Sequence[str] = (), mode: str = "") -> LaneShare:
    """One call of a router, of which the process is named like the router unless it says so."""
    name = router if "#" in router else f"{router}#{router}"
    share: LaneShare = await cell.run(cell.scripts.hold_lanes(name, mode=mode, give=give))  # type: ignore[arg-type]
    return share


async def settle(cell: Cell, *routers: str, rounds: int = 6) -> dict[str, set[str]]:
    """Let routers call in turn, and give up what they should; the lanes of each. They are disjoint at any moment."""
    held: dict[str, set[str]] = {}
    for _ in range(rounds):
        for router in routers:
            cell.now += 100
            share = await hold(cell, router)
            if share.excess:
                share = await hold(cell, router, give=share.excess)
            held[router] = set(share.leases)
        assert sum(len(lanes) for lanes in held.values()) <= 4
    return held


async def test_one_router_holds_all_lanes(idle: Cell) -> None:
    """From its first call on, under leases that stay the same; each lane that it took is an event."""
    first = await hold(idle, "r1", mode="started")
    assert first.leases == dict.fromkeys(ALL, "1/r1#r1")
    idle.now += LANE_LEASE_MS
    assert (await hold(idle, "r1")).leases == first.leases
    assert await idle.logged("control") == ["lane.taken"] * 4


@pytest.mark.guarantee("shared-lanes")
@pytest.mark.parametrize(("count", "shares"), [(2, [2, 2]), (3, [1, 1, 2]), (4, [1] * 4), (6, [0, 0, 1, 1, 1, 1])])
async def test_routers_share_the_lanes_evenly(idle: Cell, count: int, shares: list[int]) -> None:
    """Those that hold more than their share give up lanes; then nothing changes any more."""
    assert set((await hold(idle, "r0")).leases) == ALL
    routers = [f"r{n}" for n in range(count)]
    held = await settle(idle, *routers)
    assert sorted(len(lanes) for lanes in held.values()) == shares
    assert set.union(*held.values()) == ALL
    assert await settle(idle, *routers) == held


async def test_who_leaves_is_replaced_at_once(idle: Cell) -> None:
    """Those that stand by take its lanes with their next call."""
    held = await settle(idle, "r1", "r2")
    assert await hold(idle, "r1", mode="leaves") == LaneShare({})
    assert set((await hold(idle, "r2")).leases) == ALL > held["r2"]
    assert await idle.redis.zcard(idle.keys.of("lanes:routers")) == 1


@pytest.mark.guarantee("shared-lanes")
async def test_a_silent_router_loses_its_lanes(idle: Cell) -> None:
    """Not before the time of its lease has passed, in which another one has called; its own next call says so."""
    lost = (await hold(idle, "r1")).leases
    assert (await hold(idle, "r2")).leases == {}
    for _ in range(LANE_LEASE_MS // LANE_STEP_MS):
        assert (await hold(idle, "r2")).leases == {}
        idle.now += LANE_STEP_MS
    taken = (await hold(idle, "r2")).leases
    assert taken == dict.fromkeys(lost, "2/r2#r2")
    assert (await hold(idle, "r1")).leases == {}


@pytest.mark.guarantee("shared-lanes")
@pytest.mark.parametrize("change", [3_600_000, -3_600_000])
async def test_no_lane_is_lost_while_nobody_can_call(idle: Cell, change: int) -> None:
    """The clock stands still while Redis is away and when the server's time is changed: there is time to call again."""
    leases = (await hold(idle, "r1")).leases
    await hold(idle, "r2")
    idle.now += change
    assert (await hold(idle, "r2")).leases == {}
    idle.now += 400
    assert (await hold(idle, "r1")).leases == leases


async def test_the_next_process_of_a_name_takes_over_at_once(idle: Cell) -> None:
    """Under a new lease: the earlier process is fenced, and takes nothing back."""
    await hold(idle, "r1#old", mode="started")
    assert (await hold(idle, "r1#new", mode="started")).leases == dict.fromkeys(ALL, "2/r1#new")
    assert (await hold(idle, "r1#old")).leases == {}
    assert await settle(idle, "r1#new", rounds=30) == {"r1#new": ALL}


async def test_lanes_are_held_again_after_a_flush(idle: Cell) -> None:
    """Only the hash is gone: who called before does not count as present for ever."""
    await settle(idle, "r1", "r2")
    await idle.redis.delete(idle.keys.of("lanes"))
    held = await settle(idle, "r1")
    assert held == {"r1": ALL}


@pytest.mark.guarantee("order-over-routers")
async def test_a_batch_under_a_lost_lease_changes_nothing(cell: Cell) -> None:
    """⚠ A router that stood still while another one took the lane: NOT_HELD for each message, and all are left."""
    await cell.register()
    batch = [await cell.delivery(f"m{n}", caller="c1") for n in range(3)]
    cell.scripts.leases = (await hold(cell, "r2")).leases
    other, cell.scripts.leases = cell.scripts.leases, {"normal": "1/w1#test"}
    before = await cell.dump()
    assert await cell.run(cell.scripts.deliver(batch)) == ["NOT_HELD"] * 3
    cell.scripts.leases = {}
    assert await cell.run(cell.scripts.deliver(batch)) == ["NOT_HELD"] * 3
    assert await cell.dump() == before
    cell.scripts.leases = other
    assert await cell.run(cell.scripts.deliver(batch)) == ["DELIVERED"] * 3


async def test_only_the_lanes_of_the_router_are_delivered(cell: Cell) -> None:
    """A batch over two lanes, of which one was lost."""
    await cell.register()
    batch = [await cell.delivery(f"m{n}", lane=lane) for n, lane in enumerate(["high", "low", "high", "low"])]
    del cell.scripts.leases["low"]
    assert await cell.run(cell.scripts.deliver(batch)) == ["DELIVERED", "NOT_HELD", "DELIVERED", "NOT_HELD"]
    assert await cell.left("in:messages:low") == [batch[1].entry, batch[3].entry]
    assert await cell.is_consumed("in:messages:high")


async def test_no_message_overtakes_an_older_one(cell: Cell) -> None:
    """⚠ A router that no longer holds the lane has read the oldest message: the others wait for it, in their order."""
    await cell.register()
    stolen, second, third = [await cell.delivery(f"m{n}") for n in range(3)]
    before = await cell.dump()
    assert await cell.run(cell.scripts.deliver([second, third])) == ["BEHIND"] * 2
    assert await cell.dump() == before
    assert await cell.run(cell.scripts.deliver([stolen, second])) == ["DELIVERED"] * 2
    assert await cell.run(cell.scripts.deliver([stolen, third])) == ["GONE", "DELIVERED"]


async def test_entries_that_another_router_has_read_are_noticed(idle: Cell) -> None:
    """The router of the lane learns of them when it renews its leases."""
    await hold(idle, "r1")
    await idle.append("in:messages:high")  # w1 reads it
    assert (await hold(idle, "r1")).behind == ("high",)
    await idle.redis.xclaim(idle.keys.of("in:messages:high"), "router", "r1", 0, (await idle.left("in:messages:high")))
    assert (await hold(idle, "r1")).behind == ()
