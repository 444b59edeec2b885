"""The table of waiting pools, followed by its changes: none is missed, and all of it is read only when that must be."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from coord import queries
from coord.models.agents import FleetAgent
from tests.scripts.cell import START, Cell
from workers import pool_table
from workers.planner import Planner
from workers.pool_table import PoolTable
from workers.transitions import TaskBatch
from workers.view import View

BUSY = FleetAgent(agent_id="a1", agent_type="worker", capacity=1, load=1)


class Following:
    """A planner and its table, and what they read of the server."""

    def __init__(self, cell: Cell, monkeypatch: pytest.MonkeyPatch, *fleet: FleetAgent) -> None:
        view = View(0.5, "least_connections", Random(1))
        view.replace({agent.agent_id: agent for agent in fleet})
        self.planner = Planner(view)
        self.table = PoolTable(cell.redis, cell.keys, self.planner)
        self.scans = 0
        self.measured: list[str] = []
        scan_pools, pool_lengths = queries.scan_pools, queries.get_pool_lengths

        def scan(*args: Any) -> Any:
            self.scans += 1
            return scan_pools(*args)

        async def lengths(redis: Any, keys: Any, pools: list[str]) -> Any:
            self.measured += pools
            return await pool_lengths(redis, keys, pools)

        monkeypatch.setattr(queries, "scan_pools", scan)
        monkeypatch.setattr(queries, "get_pool_lengths", lengths)

    async def look(self) -> set[str]:
        """Look; the waiting pools that are known, and that the table was not read whole again."""
        before = self.scans
        await self.table.look()
        assert self.scans == before
        return set(self.planner.waiting)


@pytest.fixture
async def following(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> Following:
    """A table that has been read, with one pool in it; a full agent fits all of them."""
    monkeypatch.setattr(pool_table, "CHUNK", 2)
    await cell.register(capacity=9)
    await cell.submit("t0", pool="p0")
    made = Following(cell, monkeypatch, BUSY)
    await made.table.look()
    assert (made.scans, set(made.planner.waiting), made.planner.is_stale) == (1, {"p0"}, False)
    return made


async def test_what_begins_and_ends_is_followed(cell: Cell, following: Following) -> None:
    """Many pools begin, some end, one ends and begins again: only what has changed is read."""
    for number in range(1, 8):
        await cell.submit(f"t{number}", pool=f"p{number}")
    assert await following.look() == {f"p{number}" for number in range(8)}
    for number in range(4):
        assert await cell.dispatch(pool=f"p{number}") == "ASSIGNED"
    await cell.submit("t9", pool="p1")
    following.measured.clear()
    assert await following.look() == {"p1", "p4", "p5", "p6", "p7"}
    assert following.measured == []
    assert following.planner.pools_rev == 13
    assert await following.look() == {"p1", "p4", "p5", "p6", "p7"}


async def test_a_script_notes_when_each_pool_last_changed(cell: Cell) -> None:
    """One entry for each pool, at the revision of its last change; nothing is noted when none begins or ends."""
    await cell.register(capacity=9)
    await cell.admit(*[await cell.submission(f"t{number}", pool=f"p{number}") for number in range(3)])
    await cell.submit("t9", pool="p1")
    changed = await cell.redis.zrange(cell.keys.of("pools:changed"), 0, -1, withscores=True)
    assert {pool.decode(): score for pool, score in changed} == {"p0": 3, "p1": 3, "p2": 3}
    await cell.dispatch(pool="p0")
    assert await cell.redis.zscore(cell.keys.of("pools:changed"), "p0") == 4
    assert await cell.counter("pools_rev") == 4


async def test_the_newest_changes_are_kept(cell: Cell) -> None:
    """Ten thousand of them: what is older is removed once in a while."""
    changed = cell.keys.of("pools:changed")
    await cell.redis.zadd(changed, {f"old{number}": number for number in range(10_100)})
    await cell.redis.hset(cell.keys.of("counters"), "pools_rev", 256 * 40 - 1)
    await cell.submit()
    assert await cell.redis.zcard(changed) == 10_000
    assert await cell.redis.zscore(changed, "p1") == 256 * 40
    assert await cell.redis.zscore(changed, "old100") is None


@pytest.mark.parametrize("cause", ["trimmed", "not noted", "lost", "wrong type", "rewound"])
async def test_changes_that_are_not_known_have_the_whole_table_read(
    cell: Cell, following: Following, cause: str
) -> None:
    """Whatever keeps the changes from being known, no pool is missed, and none that has ended stays."""
    changed, counters = cell.keys.of("pools:changed"), cell.keys.of("counters")
    for number in range(1, 6):
        await cell.submit(f"t{number}", pool=f"p{number}")
    await cell.dispatch(pool="p0")
    if cause == "trimmed":
        await cell.redis.zremrangebyrank(changed, 0, -2)
    elif cause == "not noted":  # by another release
        await cell.redis.hincrby(counters, "pools_rev", 1)
    elif cause == "lost":
        await cell.redis.delete(changed)
    elif cause == "wrong type":
        await cell.redis.set(changed, "no set")
        await cell.submit("t6", pool="p1")
    else:
        await cell.redis.hset(counters, "pools_rev", 0)
    await following.table.look()
    assert following.scans == 2
    assert set(following.planner.waiting) == {"p1", "p2", "p3", "p4", "p5"}
    assert not following.planner.is_stale
    if cause == "wrong type":
        await cell.redis.delete(changed)


async def test_lengths_are_read_of_pools_that_can_be_served(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Those of the others wait until an agent fits."""
    for number in range(5):
        await cell.submit(f"t{number}", pool=f"p{number % 3}")
    following = Following(cell, monkeypatch)
    await following.table.look()
    assert (following.measured, following.planner.is_ready()) == ([], False)
    following.planner.view.update(["a1"], {"a1": FleetAgent(agent_id="a1", agent_type="worker", capacity=9)})
    assert not following.planner.is_ready()
    await following.table.read_lengths()
    assert following.planner.is_ready()
    assert {pool: one.length for pool, one in following.planner.waiting.items()} == {"p0": 2, "p1": 2, "p2": 1}
    assert len(following.planner.plan(100)) == 5


async def test_a_requeued_pool_is_defined_by_its_first_task(cell: Cell, following: Following) -> None:
    """Its row says nothing; one whose first task says nothing either is tried again in the next look."""
    await cell.submit("t1", pool="p1", run_at=START + 1)
    await cell.submit("t2", pool="p2", run_at=START + 1)
    cell.now += 1
    assert await cell.run_alarms() == ["QUEUED", "QUEUED"]
    body = await cell.redis.hget(cell.keys.task("t2"), "body")
    await cell.redis.hset(cell.keys.task("t2"), "body", "{")
    assert await following.look() == {"p0", "p1"}
    assert following.planner.waiting["p1"].definition.task_type == "echo"
    await cell.redis.hset(cell.keys.task("t2"), "body", body or b"")
    assert await following.look() == {"p0", "p1", "p2"}


async def test_what_is_heard_while_the_table_is_read_is_newer(
    cell: Cell, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ A pool that begins after its row was read, by an answer that comes before that is known, is not forgotten.

    The same the other way round: one that ends is not taken for waiting.
    """
    planner, pool_rows = following.planner, queries.get_pool_rows
    await cell.submit("t1", pool="p1")
    await cell.dispatch(pool="p1")
    await cell.submit("t2", pool="p2")

    async def slow(*args: Any) -> Any:
        rows = await pool_rows(*args)
        monkeypatch.setattr(queries, "get_pool_rows", pool_rows)
        planner.define("p1", planner.waiting["p0"].definition)
        for task, pool, raised in (("t3", "p1", 1), ("", "p2", 1)):
            if task:
                await cell.submit(task, pool=pool)
            else:
                await cell.dispatch(pool=pool)
            rev = await cell.counter("pools_rev")
            planner.apply(TaskBatch([], {}, {pool: (1, 5.0) if task else (0, 0.0)}, rev, raised))
        return rows

    monkeypatch.setattr(queries, "get_pool_rows", slow)
    assert await following.look() == {"p0", "p1"}
    assert planner.is_stale
    assert await following.look() == {"p0", "p1"}
    assert (planner.is_stale, planner.pools_rev) == (False, 6)


async def test_an_answer_that_comes_while_all_is_read_leaves_what_it_does_not_tell(
    cell: Cell, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ A revision that rose by others' doing during the reading is read once more."""
    planner, scan_pools = following.planner, queries.scan_pools
    await cell.redis.delete(cell.keys.of("pools:changed"))
    await cell.submit("t1", pool="p1")
    await cell.redis.zremrangebyrank(cell.keys.of("pools:changed"), 0, -2)

    async def slow(*args: Any) -> Any:
        async for rows in scan_pools(*args):
            yield rows
        await cell.submit("t2", pool="p2")
        await cell.submit("t3", pool="p3")
        planner.apply(TaskBatch([], {}, {"p3": (1, 5.0)}, await cell.counter("pools_rev"), 1))

    monkeypatch.setattr(queries, "scan_pools", slow)
    await following.table.look()
    assert (set(planner.waiting), planner.is_stale) == ({"p0", "p1"}, True)
    await following.table.look()
    assert (set(planner.waiting), planner.is_stale) == ({"p0", "p1", "p2", "p3"}, False)


@pytest.mark.parametrize("query", ["get_pool_changes", "get_pool_rows", "get_pool_definitions", "get_pool_lengths"])
async def test_a_look_that_fails_is_made_again(
    cell: Cell, following: Following, monkeypatch: pytest.MonkeyPatch, query: str
) -> None:
    """Wherever it fails, the next one misses nothing."""
    await cell.submit("t1", pool="p1")
    following.planner.unknown.add("p0")

    async def fail(*_: Any) -> Any:
        raise ConnectionError("away")

    with monkeypatch.context() as patched:
        patched.setattr(queries, query, fail)
        with pytest.raises(ConnectionError):
            await following.table.look()
    assert following.planner.is_stale
    await following.table.look()
    assert set(following.planner.waiting) == {"p0", "p1"}
    while following.planner.unread:
        await following.table.read_lengths()
    assert following.planner.waiting["p1"].length == 1
    assert not following.planner.is_stale


async def test_a_table_that_is_forgotten_while_it_is_read_is_read_again(
    cell: Cell, following: Following, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ What was read for the table of before does not count as having read this one."""
    planner, pool_rows = following.planner, queries.get_pool_rows
    await cell.submit("t1", pool="p1")

    async def forgetting(*args: Any) -> Any:
        rows = await pool_rows(*args)
        planner.forget()
        return rows

    with monkeypatch.context() as patched:
        patched.setattr(queries, "get_pool_rows", forgetting)
        await following.table.look()
    assert (planner.is_stale, planner.pools_rev) == (True, -1)
    await following.table.look()
    assert set(planner.waiting) == {"p0", "p1"}


async def test_a_pool_that_nothing_tells_of_is_found_after_some_looks(cell: Cell, following: Following) -> None:
    """The number of pools in the table is the net; rows without tasks do not have all of it read again and again."""
    cell.broken = True
    definition = b'{"task_type":"echo"}'
    await cell.redis.zadd(cell.keys.queue("hidden"), {"t1": 5})
    await cell.redis.hset(cell.keys.of("pools"), "hidden", definition)
    for _ in range(pool_table.LOOKS_OFF + 1):
        await following.table.check()
    assert "hidden" in following.planner.waiting
    assert following.scans == 2
    await cell.redis.hset(cell.keys.of("pools"), "orphan", definition)
    for _ in range(10 * pool_table.LOOKS_OFF):
        await following.table.check()
    assert "orphan" not in following.planner.waiting
    assert following.scans == 3


async def test_a_safety_look_refreshes_what_others_have_added(cell: Cell, following: Following) -> None:
    """A more pressing task in a pool that waits already: no pool has begun, and the order of pools changes."""
    await cell.submit("t1", pool="p1")
    await following.look()
    await cell.submit("t2", pool="p1", priority="urgent")
    await following.table.check()
    waiting = following.planner.waiting
    assert (waiting["p1"].length, waiting["p1"].head < waiting["p0"].head) == (2, True)
    assert following.scans == 1
