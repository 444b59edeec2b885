"""``worker_heartbeat``: which workers live, and what the gone ones leave."""

from __future__ import annotations

import pytest

from coord.keys import CONSUMES
from tests.scripts.cell import START, Cell
from workers.transitions import Call


def presence(cell: Cell, name: str = "w1") -> Call[list[str]]:
    """A distributor says that it lives."""
    fields: dict[str, str | int | float] = {"pid": 7, "host": "h", "lag_ms": 1.5}
    return cell.scripts.worker_heartbeat("distributor", name, fields, CONSUMES["distributor"])


@pytest.mark.on_fakeredis
async def test_a_worker_is_present(cell: Cell) -> None:
    """Its record ends by itself; everyone of its kind that is present is named."""
    assert await cell.run(presence(cell, "w1")) == ["w1"]
    cell.now += 1
    assert await cell.run(presence(cell, "w2")) == ["w1", "w2"]

    record = await cell.redis.hgetall(cell.keys.worker("distributor", "w1"))
    assert record == {b"pid": b"7", b"host": b"h", b"lag_ms": b"1.5", b"progress_at": str(START).encode()}
    assert 0 < await cell.redis.pttl(cell.keys.worker("distributor", "w1")) <= 15_000


async def test_saying_it_twice_changes_nothing(cell: Cell) -> None:
    """Presence is a state, not an event."""
    await cell.run(presence(cell))
    before = await cell.dump()
    assert await cell.run(presence(cell)) == ["w1"]
    assert await cell.dump() == before


async def test_a_worker_that_is_gone_is_named_no_more(cell: Cell) -> None:
    """After 15 s without a word."""
    await cell.run(presence(cell, "w1"))
    cell.now += 15_000
    assert await cell.run(presence(cell, "w2")) == ["w2"]


async def test_a_worker_that_leaves_is_named_no_more(cell: Cell) -> None:
    """At once; but not if another process has started under its name."""
    for name in ("w1", "w2"):
        await cell.run(presence(cell, name))
    leaving: dict[str, str | int | float] = {"pid": 7, "host": "h"}
    another = cell.scripts.worker_heartbeat("distributor", "w1", {"pid": 8, "host": "h"}, [], is_leaving=True)
    assert await cell.run(another) == []
    assert await cell.run(presence(cell, "w2")) == ["w1", "w2"]
    leaves = cell.scripts.worker_heartbeat("distributor", "w1", leaving, [], is_leaving=True)
    assert await cell.run(leaves) == []
    assert await cell.run(presence(cell, "w2")) == ["w2"]
    assert not await cell.redis.exists(cell.keys.worker("distributor", "w1"))


async def test_kinds_are_apart(cell: Cell) -> None:
    """A registry is no distributor."""
    await cell.run(presence(cell))
    assert await cell.run(cell.scripts.worker_heartbeat("registry", "r1", {}, CONSUMES["registry"])) == ["r1"]


async def test_consumers_of_the_gone_are_swept_out(cell: Cell) -> None:
    """Idle for too long, absent, and with nothing pending: deleted. One that still has an entry pending stays."""
    key = cell.keys.of("in:reports")
    for name in ("gone", "holds", "w1"):
        await cell.redis.xgroup_createconsumer(key, "distributor", name)
    await cell.redis.xadd(key, {"type": "x"})
    await cell.redis.xreadgroup("distributor", "holds", {key: ">"})

    assert await cell.run(presence(cell)) == ["w1"]
    assert await consumers(cell) == {"gone", "holds", "w1"}

    sweep = cell.scripts.worker_heartbeat("distributor", "w1", {}, ["in:reports", "in:unknown"])
    sweep.limits["consumer_idle_ms"] = -1  # instead of waiting for an hour
    assert await cell.run(sweep) == ["w1"]
    assert await consumers(cell) == {"holds", "w1"}


async def consumers(cell: Cell) -> set[str]:
    """The consumers of the distributors' group on in:reports."""
    found = await cell.redis.xinfo_consumers(cell.keys.of("in:reports"), "distributor")
    return {one["name"].decode() for one in found}
