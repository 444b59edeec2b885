"""The loads that scripts share while several distributors are present."""

from __future__ import annotations

import pytest

from coord.models.ids import entry_order
from tests.scripts.cell import Cell


@pytest.mark.on_fakeredis
async def test_a_change_of_loads_is_shared_with_its_place(cell: Cell) -> None:
    """One entry for each batch, with the loads after it; the answer has the place of the entry."""
    await cell.register("a1")
    await cell.register("a2")
    await cell.submit("t1")
    await cell.submit("t2")
    await cell.submit("t3")
    cell.scripts.share_loads("d1")
    plan = [await cell.placement("a1"), await cell.placement("a2"), await cell.placement("a1")]
    placed = await cell.run(cell.scripts.dispatch(plan))
    settled = await cell.run(cell.scripts.settle([await cell.reported("completed", "t1")]))
    agent = (await cell.task("t1")).agent_id

    first, second = await cell.redis.xrange(cell.keys.of("log:loads"))
    assert first[1][b"by"] == b"d1"
    assert sorted(first[1][b"loads"].split()) == [b"1", b"2", b"a1", b"a2"]
    assert dict(zip(*[iter(first[1][b"loads"].decode().split())] * 2, strict=True)) == {"a1": "2", "a2": "1"}
    assert second[1][b"loads"].decode() == f"{agent} {placed.loads[agent] - 1}"
    assert (placed.loads_at, settled.loads_at) == (entry_order(first[0].decode()), entry_order(second[0].decode()))


async def test_what_changes_no_load_is_not_shared(cell: Cell) -> None:
    """Admission, a start, and the alarms; nor does anything that a single distributor does."""
    cell.scripts.share_loads("d1")
    await cell.register()
    await cell.submit()
    cell.scripts.share_loads("")
    assert await cell.dispatch() == "ASSIGNED"
    cell.scripts.share_loads("d1")
    started = await cell.run(cell.scripts.settle([await cell.reported("started")]))
    alarms = await cell.run(cell.scripts.run_alarms())
    assert (started.loads_at, alarms.loads_at) == (None, None)
    assert (alarms.due, alarms.timed_out) == (0, ())
    assert await cell.redis.exists(cell.keys.of("log:loads")) == 0


async def test_few_entries_are_kept(cell: Cell) -> None:
    """Some hundred, however many changes there are."""
    await cell.register()
    cell.scripts.share_loads("d1")
    for _ in range(8):
        await cell.scripts.run(*[cell.scripts.dispatch([await cell.placement()]) for _ in range(100)])
    assert 500 <= await cell.redis.xlen(cell.keys.of("log:loads")) < 700


async def test_loads_that_cannot_be_shared_stop_nothing(cell: Cell) -> None:
    """Another program's key in its place: the task is assigned all the same, once."""
    await cell.redis.set(cell.keys.of("log:loads"), "what?")
    cell.scripts.share_loads("d1")
    await cell.register()
    await cell.submit()
    answer = await cell.run(cell.scripts.dispatch([await cell.placement()]))
    assert (answer.words, answer.loads, answer.loads_at) == (["ASSIGNED"], {"a1": 1}, None)
    await cell.redis.delete(cell.keys.of("log:loads"))


async def test_refused_and_late_plans_are_counted(cell: Cell) -> None:
    """Refused: the agent has no room. Late: no task waits any more."""
    await cell.register(capacity=1)
    await cell.submit("t1")
    await cell.submit("t2")
    plan = [await cell.placement(), await cell.placement()]
    assert (await cell.run(cell.scripts.dispatch(plan))).words == ["ASSIGNED", "FULL"]
    assert (await cell.counter("plans_refused"), await cell.counter("plans_late")) == (1, 0)
    await cell.cancel("t2")
    await cell.complete("t1")
    assert await cell.dispatch() == "EMPTY"
    assert (await cell.counter("plans_refused"), await cell.counter("plans_late")) == (1, 1)
