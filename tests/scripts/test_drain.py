"""``drain``, and an operator's ``deregister``: what an operator says of an agent stands over what it says of itself."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import Departure, DrainRequest


async def word_of(cell: Cell, agent_id: str, *, begins: bool) -> DrainRequest:
    """An operator's word, appended."""
    kind = "agent.drained" if begins else "agent.resumed"
    return DrainRequest(await cell.append("in:control:registry", kind), "op", agent_id, "draining" if begins else "")


async def drain(cell: Cell, agent_id: str = "a1") -> str:
    """Drain an agent; the word."""
    return await cell.word(cell.scripts.drain([await word_of(cell, agent_id, begins=True)]))


async def resume(cell: Cell, agent_id: str = "a1") -> str:
    """End that; the word."""
    return await cell.word(cell.scripts.drain([await word_of(cell, agent_id, begins=False)]))


async def remove(cell: Cell, agent_id: str = "a1") -> str:
    """Deregister an agent as an operator; the word."""
    entry = await cell.append("in:control:registry", "agent.removed")
    return await cell.word(cell.scripts.deregister([Departure(entry, "op", agent_id, "")], by_operator=True))


async def told(cell: Cell) -> str:
    """What the operator was told last besides ok: JSON."""
    return (await cell.stream("replies:op"))[-1]["data"]


async def is_placeable(cell: Cell) -> bool:
    """Whether the agent may be given work."""
    return bool(await cell.redis.sismember(cell.keys.of("agents:active"), "a1"))


@pytest.mark.on_fakeredis
async def test_a_drained_agent_finishes_what_it_has_and_gets_nothing_new(cell: Cell) -> None:
    """Out of ``agents:active`` and told to everybody at once; what it has in flight is left to it."""
    await cell.register()
    await cell.assign()

    assert await drain(cell) == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.drained_from, agent.rev, agent.load) == ("draining", "active", 2, 1)
    assert not await is_placeable(cell)
    assert await cell.redis.smembers(cell.keys.facet("status", "draining")) == {b"a1"}
    assert (await cell.logged("agents"))[-1] == "agent.changed"
    assert await told(cell) == '{"status":"draining"}'
    assert await cell.stream("in:losses") == []
    assert await cell.is_consumed("in:control:registry")
    await cell.submit("t2", pool="p2")
    assert await cell.dispatch(pool="p2") == "INACTIVE"
    assert await cell.complete() == "OK"

    assert await resume(cell) == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.drained_from, agent.rev) == ("active", "", 3)
    assert await told(cell) == '{"status":"active"}'
    assert await cell.dispatch(pool="p2") == "ASSIGNED"


async def test_it_stays_drained_whatever_it_says_of_itself(cell: Cell) -> None:
    """Beats, refreshes, its own statuses and a new process change nothing; what it said last holds afterwards."""
    await cell.register(interval_ms=5_000)
    await drain(cell)
    await cell.heartbeat()
    assert await cell.register(interval_ms=5_000) == "REFRESHED"
    assert await cell.change_status(status="active") == "OK"
    assert await cell.register(interval_ms=5_000, incarnation="i2") == "REGISTERED"
    agent = await cell.agent()
    assert (agent.status, agent.drained_from) == ("draining", "active")
    assert not await is_placeable(cell)

    assert await cell.change_status(status="maintenance", incarnation="i2") == "OK"
    assert (await cell.agent()).status == "draining"
    assert await resume(cell) == "OK"
    assert (await cell.agent()).status == "maintenance"
    assert await told(cell) == '{"status":"maintenance"}'


async def test_one_that_falls_silent_drains_on_when_it_is_back(cell: Cell) -> None:
    """An operator's word is no sign of life: who is stale stays so, and stays drained when it beats again."""
    await cell.register(interval_ms=1_000)
    await drain(cell)
    await fall_silent(cell)
    assert (await cell.agent()).status == "stale"
    assert await cell.heartbeat() == "OK"
    assert (await cell.agent()).status == "draining"

    await fall_silent(cell)
    assert await resume(cell) == "OK"
    assert await told(cell) == '{"status":"stale"}'
    assert (await cell.agent()).status == "stale"
    assert await cell.redis.zcard(cell.keys.of("agents:expiry")) == 0
    assert await cell.heartbeat() == "OK"
    assert (await cell.agent()).status == "active"


async def test_one_that_is_silent_already_is_drained_when_it_is_back(cell: Cell) -> None:
    """It stays stale until then."""
    await cell.register(interval_ms=1_000)
    await fall_silent(cell)
    assert await drain(cell) == "OK"
    assert await told(cell) == '{"status":"stale"}'
    assert await cell.register(interval_ms=1_000) == "REFRESHED"
    agent = await cell.agent()
    assert (agent.status, agent.drained_from) == ("draining", "active")


async def fall_silent(cell: Cell) -> None:
    """Let the agent miss its beats."""
    for _ in range(4):
        cell.now += 1_000
        await cell.run(cell.scripts.tick_liveness())


async def test_leaving_ends_the_draining(cell: Cell) -> None:
    """A drained agent that has stopped cleanly is a usual one when it is started again."""
    await cell.register()
    await drain(cell)
    await cell.deregister()
    assert (await cell.agent()).drained_from == ""
    await cell.register()
    assert (await cell.agent()).status == "active"


async def test_draining_twice_is_draining_once(cell: Cell) -> None:
    """A second word, and the same word repeated, change nothing but which came last."""
    await cell.register()
    call = cell.scripts.drain([await word_of(cell, "a1", begins=True)])
    assert await cell.word(call) == "OK"
    before = await cell.dump()
    assert await cell.word(call) == "GONE"
    assert await cell.dump() == before
    assert await drain(cell) == "OK"
    agent = await cell.agent()
    assert (agent.drained_from, agent.rev) == ("active", 2)


async def test_an_earlier_word_that_comes_later_changes_nothing(cell: Cell) -> None:
    """A worker died with it; a sibling takes it up after the operator resumed the agent."""
    await cell.register()
    early = await word_of(cell, "a1", begins=True)
    cell.now += 1
    assert await resume(cell) == "OK"
    assert await cell.word(cell.scripts.drain([early])) == "STALE"
    assert await told(cell) == '{"status":"active"}'
    assert await is_placeable(cell)


async def test_an_agent_that_drains_by_itself_is_not_resumed(cell: Cell) -> None:
    """It is about to stop; only an operator's word is taken back by one, and the answer says how it is."""
    await cell.register()
    await cell.change_status(status="draining")
    assert await resume(cell) == "OK"
    assert await told(cell) == '{"status":"draining"}'
    assert not await is_placeable(cell)


@pytest.mark.parametrize("has_left", [True, False])
async def test_nobody_to_drain(cell: Cell, has_left: bool) -> None:
    """Of an agent that left or never was, both words are answered ``agent_not_found``."""
    if has_left:
        await cell.register()
        await cell.deregister()
    assert await drain(cell) == "UNKNOWN"
    assert await resume(cell) == "UNKNOWN"
    assert [one for _, one in await cell.answers("op")] == ["agent_not_found"] * 2


async def test_an_operator_removes_an_agent(cell: Cell) -> None:
    """As if it had left by itself: what it has is announced as lost, its record stays for a while."""
    await cell.register(interval_ms=5_000)
    await cell.assign()
    assert await remove(cell) == "OK"
    agent = await cell.agent()
    assert (agent.status, agent.term, agent.load) == ("inactive", 2, 1)
    assert [one["data"] for one in await cell.stream("in:losses")] == ['{"agent_id":"a1","term":1}']
    assert await cell.redis.zscore(cell.keys.of("agents:departed"), "a1") == START
    assert await cell.last_answer("op") == "ok"
    assert await cell.is_consumed("in:control:registry")
    assert await cell.heartbeat() == "UNKNOWN"
    assert await cell.reclaim() == "OK"
    assert await cell.state() == "scheduled"


async def test_removing_nobody(cell: Cell) -> None:
    """An unknown agent is not found; one that left already is removed."""
    assert await remove(cell) == "UNKNOWN"
    assert await cell.last_answer("op") == "agent_not_found"
    await cell.register()
    await cell.deregister()
    assert await remove(cell) == "OK"


async def test_a_word_of_the_same_ms_as_the_agents_own_is_the_later_one(cell: Cell) -> None:
    """Ids of two streams within one ms cannot be ordered; what was answered ok has been done."""
    entry = f"{cell.now}-0"
    await cell.redis.xadd(cell.keys.of("in:control:registry"), {"type": "agent.removed", "data": "{}"}, id=entry)
    await cell.register()
    call = cell.scripts.deregister([Departure(entry, "op", "a1", "")], by_operator=True)
    assert await cell.word(call) == "OK"
    assert (await cell.agent()).status == "inactive"


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own word, which stays pending; the others are drained."""
    names = [f"a{n}" for n in range(100)]
    await cell.run(cell.scripts.register([await cell.registration(name) for name in names]))
    await cell.redis.set(cell.keys.agent("bad"), "x")
    batch = [await word_of(cell, name, begins=True) for name in [*names, "bad"]]
    words = await cell.run(cell.scripts.drain(batch))
    assert words[:-1] == ["OK"] * 100
    assert words[-1].startswith("ERROR ")
    assert await cell.left("in:control:registry") == [batch[-1].entry]
    await cell.redis.delete(cell.keys.agent("bad"))


async def test_maintenance_is_a_drain_with_a_status_of_its_own(cell: Cell) -> None:
    """The last request of an operator counts; what the agent reports is kept, and applies afterwards."""
    await cell.register(interval_ms=5_000)
    await impose(cell, "maintenance")
    agent = await cell.agent()
    assert (agent.status, agent.drained_from, agent.health_score) == ("maintenance", "active", 0.8)
    assert agent.health is not None
    assert agent.health.status_penalty == 0.2
    assert not await is_placeable(cell)
    await cell.change_status(status="busy")
    assert await cell.register(interval_ms=5_000, incarnation="i2") == "REGISTERED"
    assert (await cell.agent()).status == "maintenance"

    await impose(cell, "draining")
    assert (await cell.agent()).status == "draining"
    await impose(cell, "maintenance")
    assert await told(cell) == '{"status":"maintenance"}'
    assert await resume(cell) == "OK"
    agent = await cell.agent()
    assert (agent.status, agent.drained_from) == ("active", "")
    assert not await cell.redis.hexists(cell.keys.agent("a1"), "imposed")


async def test_one_in_maintenance_that_falls_silent_is_in_maintenance_when_it_is_back(cell: Cell) -> None:
    """As a drain; and leaving ends it."""
    await cell.register(interval_ms=1_000)
    await impose(cell, "maintenance")
    await fall_silent(cell)
    assert (await cell.agent()).status == "stale"
    await cell.heartbeat()
    assert (await cell.agent()).status == "maintenance"
    await cell.deregister()
    await cell.register(interval_ms=1_000)
    assert (await cell.agent()).status == "active"


async def impose(cell: Cell, status: str) -> None:
    """Impose a status as an operator."""
    entry = await cell.append("in:control:registry", "agent.maintenance_begun")
    assert await cell.word(cell.scripts.drain([DrainRequest(entry, "op", "a1", status)])) == "OK"
