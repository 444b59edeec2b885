"""``deregister``: an agent leaves."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import Departure


@pytest.mark.on_fakeredis
async def test_an_agent_that_leaves_gets_nothing_new_and_loses_what_it_has(cell: Cell) -> None:
    """Out of ``agents:active`` at once; its tasks are announced as lost in the same script; its record stays."""
    await cell.register(interval_ms=5_000)
    await cell.assign()

    assert await cell.deregister(caller="c1") == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.term, agent.rev, agent.load) == ("inactive", 2, 2, 1)
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0
    assert await cell.redis.zcard(cell.keys.of("agents:expiry")) == 0
    assert await cell.redis.zscore(cell.keys.of("agents:departed"), "a1") == START
    assert await cell.redis.smembers(cell.keys.facet("status", "inactive")) == {b"a1"}
    assert [one["data"] for one in await cell.stream("in:losses")] == ['{"agent_id":"a1","term":1}']
    assert (await cell.logged("agents"))[-1] == "agent.deregistered"
    assert await cell.last_answer() == "ok"
    assert await cell.is_consumed("in:registry")


async def test_leaving_twice_is_leaving_once(cell: Cell) -> None:
    """The same entry again, or another one of an agent that left, changes nothing."""
    await cell.register()
    await cell.assign()
    call = cell.scripts.deregister([Departure(await cell.append("in:registry"), "", "a1", "i1")])
    assert await cell.word(call) == "OK"
    before = await cell.dump()

    assert await cell.word(call) == "GONE"
    assert await cell.dump() == before
    assert await cell.deregister() == "OK"
    after = await cell.dump()
    assert after == before


async def test_nobody_leaves(cell: Cell) -> None:
    """An unknown agent's departure is answered ``agent_not_found``."""
    assert await cell.deregister("ghost", caller="c1") == "UNKNOWN"
    assert await cell.last_answer() == "agent_not_found"
    assert await cell.is_consumed("in:registry")


async def test_a_replaced_process_does_not_take_its_successor_along(cell: Cell) -> None:
    """The old process, draining after it was superseded, deregisters nobody."""
    await cell.register(incarnation="i1")
    await cell.register(incarnation="i2")
    assert await cell.deregister(incarnation="i1", caller="c1") == "SUPERSEDED"
    assert await cell.last_answer() == "superseded"
    agent = await cell.agent()
    assert agent.status == "active"


async def test_an_earlier_departure_that_comes_later_changes_nothing(cell: Cell) -> None:
    """Who left and came back stays, whichever entry was handled first."""
    await cell.register()
    early = Departure(await cell.append("in:registry"), "c1", "a1", "i1")
    await cell.register()
    assert await cell.word(cell.scripts.deregister([early])) == "STALE"
    assert await cell.last_answer() == "ok"
    agent = await cell.agent()
    assert agent.status == "active"


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own entry, which stays pending; 255 others leave."""
    names = [f"a{n}" for n in range(255)]
    await cell.run(cell.scripts.register([await cell.registration(name) for name in names]))
    await cell.redis.set(cell.keys.agent("bad"), "x")
    batch = [Departure(await cell.append("in:registry"), "", name, "") for name in ["bad", *names]]

    words = await cell.run(cell.scripts.deregister(batch))

    assert words[1:] == ["OK"] * 255
    assert words[0].startswith("ERROR ")
    assert await cell.redis.xlen(cell.keys.of("in:registry")) == 1
    await cell.redis.delete(cell.keys.agent("bad"))
