"""``register``: who is here, in which incarnation and term."""

from __future__ import annotations

import pytest

from coord.keys import encode_facet
from tests.scripts.cell import START, Cell


async def facet(cell: Cell, name: str, value: str) -> set[str]:
    """The agents that are indexed by a value of a facet."""
    return {one.decode() for one in await cell.redis.smembers(cell.keys.facet(name, value))}


@pytest.mark.on_fakeredis
async def test_a_new_agent_is_active_indexed_and_expected(cell: Cell) -> None:
    """A first registration makes a record, placeable, indexed, with rev 1 and term 1; the entry is consumed."""
    assert await cell.register(interval_ms=5_000, caller="c1", version="2") == "REGISTERED"

    agent = await cell.agent()
    assert (agent.status, agent.term, agent.rev, agent.health_score) == ("active", 1, 1, 1.0)
    assert (agent.incarnation, agent.heartbeat_interval, agent.capacity, agent.version) == ("i1", 5.0, 2, "2")
    assert await cell.redis.smembers(cell.keys.of("agents:active")) == {b"a1"}
    assert await cell.redis.smembers(cell.keys.of("agents:all")) == {b"a1"}
    assert await facet(cell, "capability", "echo") == await facet(cell, "status", "active") == {"a1"}
    assert await cell.redis.zscore(cell.keys.of("agents:expiry"), "a1") == START + 15_000
    assert await cell.logged("agents") == ["agent.registered"]
    assert await cell.last_answer() == "ok"
    assert await cell.is_consumed("in:registry")


async def test_without_an_interval_an_agent_has_the_long_patience(cell: Cell) -> None:
    """With no interval an agent is stale only after ``agent_timeout_s``; declaring none forgets an earlier one."""
    await cell.register(interval_ms=5_000)
    assert await cell.register() == "REFRESHED"

    agent = await cell.agent()
    assert agent.heartbeat_interval is None
    assert await cell.redis.zscore(cell.keys.of("agents:expiry"), "a1") == START + 300_000


@pytest.mark.parametrize("incarnation", ["i1", ""])
async def test_a_refresh_reclaims_nothing(cell: Cell, incarnation: str) -> None:
    """The same incarnation again, or none, keeps term, rev and tasks: a Redis blip must not re-run everything."""
    await cell.register()
    await cell.assign()
    before = await cell.agent()

    cell.now += 1_000
    assert await cell.register(incarnation=incarnation) == "REFRESHED"

    after = await cell.agent()
    assert (after.term, after.rev, after.incarnation) == (before.term, before.rev, "i1")
    assert after.registration_time == before.registration_time
    assert await cell.load() == 1
    assert await cell.stream("in:losses") == []
    assert await cell.logged("agents") == ["agent.registered"]


async def test_a_new_incarnation_ends_the_term(cell: Cell) -> None:
    """A new process takes the id: the term rises, what the old one had is announced as lost in the same script."""
    await cell.register()
    await cell.assign()

    assert await cell.register(incarnation="i2") == "REGISTERED"

    agent = await cell.agent()
    assert (agent.incarnation, agent.term, agent.rev) == ("i2", 2, 2)
    losses = await cell.stream("in:losses")
    assert [(one["type"], one["data"]) for one in losses] == [("agent.lost", '{"agent_id":"a1","term":1}')]
    assert await cell.redis.zscore(cell.keys.of("agents:lost"), "a1") == START + 5_000


async def test_a_new_incarnation_without_tasks_announces_nothing(cell: Cell) -> None:
    """The term rises all the same, but there is nothing to reclaim."""
    await cell.register()
    assert await cell.register(incarnation="i2") == "REGISTERED"

    agent = await cell.agent()
    assert agent.term == 2
    assert await cell.stream("in:losses") == []


async def test_superseded_incarnations_never_return(cell: Cell) -> None:
    """⚠ A process that was replaced is told so, and never becomes current again, not even after its successor left."""
    await cell.register(incarnation="i1")
    await cell.register(incarnation="i2")
    await cell.register(incarnation="i3")

    for old in ("i1", "i2"):
        assert await cell.register(incarnation=old, caller="c1") == "SUPERSEDED"
        assert await cell.last_answer() == "superseded"
    await cell.deregister(incarnation="i3")
    assert await cell.register(incarnation="i1") == "SUPERSEDED"

    agent = await cell.agent()
    assert (agent.incarnation, agent.status) == ("i3", "inactive")
    assert await cell.last_answer("a1") == "superseded"
    assert await cell.is_consumed("in:registry")


async def test_the_last_eight_incarnations_are_remembered(cell: Cell) -> None:
    """Eight are known by name; the list does not grow beyond that."""
    for n in range(12):
        await cell.register(incarnation=f"n{n}")

    remembered = await cell.redis.hget(cell.keys.agent("a1"), "incarnations")
    assert remembered == b"n10 n9 n8 n7 n6 n5 n4 n3"
    assert await cell.register(incarnation="n3") == "SUPERSEDED"


async def test_the_same_entry_twice_changes_nothing(cell: Cell) -> None:
    """A script that ran twice for one entry has one effect."""
    call = cell.scripts.register([await cell.registration(interval_ms=5_000)])
    assert await cell.word(call) == "REGISTERED"
    before = await cell.dump()

    assert await cell.word(call) == "GONE"

    assert await cell.dump() == before


async def test_a_status_that_overtook_a_registration_holds_and_so_does_the_rest(cell: Cell) -> None:
    """⚠ Two registries: one handles the status first, the other then the registration that was sent before it."""
    await cell.register(incarnation="i1", digest="old", capacity=1)
    early = await cell.registration(incarnation="i1", digest="new", capacity=9)
    await cell.change_status(status="draining")

    assert await cell.word(cell.scripts.register([early])) == "REFRESHED"

    agent = await cell.agent()
    assert (agent.status, agent.capacity) == ("draining", 9)
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


async def test_a_registration_does_not_bring_back_who_left_after_it(cell: Cell) -> None:
    """A departure that was handled first is the last word."""
    await cell.register(incarnation="i1")
    early = await cell.registration(incarnation="i1", capacity=9)
    await cell.deregister()

    assert await cell.word(cell.scripts.register([early])) == "STALE"
    assert (await cell.agent()).status == "inactive"


async def test_an_earlier_registration_that_comes_later_changes_nothing(cell: Cell) -> None:
    """Facts are last-writer-wins by entry id, whichever worker was quicker."""
    early = await cell.registration(incarnation="i1", digest="old", caller="c1")
    await cell.register(incarnation="i1", digest="new", capacity=9)

    assert await cell.word(cell.scripts.register([early])) == "STALE"

    agent = await cell.agent()
    assert agent.capacity == 9
    assert await cell.last_answer() == "ok"


async def test_what_eligibility_sees_raises_rev(cell: Cell) -> None:
    """Other capabilities raise ``rev``, move the index and are logged; the same ones do not."""
    await cell.register()
    await cell.register()
    assert await cell.register(digest="d2", facets="type:worker capability:sum", capacity=5) == "REFRESHED"

    agent = await cell.agent()
    assert (agent.rev, agent.term, agent.capacity) == (2, 1, 5)
    assert await facet(cell, "capability", "echo") == set()
    assert await facet(cell, "capability", "sum") == await facet(cell, "type", "worker") == {"a1"}
    assert await cell.logged("agents") == ["agent.registered", "agent.changed"]


async def test_facets_with_odd_characters_are_key_names(cell: Cell) -> None:
    """Values are encoded, so that a colon, a brace or a blank cannot leave its key."""
    value = "a:b} c\n%"
    await cell.register(facets=f"capability:{encode_facet(value)}")
    assert await facet(cell, "capability", value) == {"a1"}


@pytest.mark.parametrize("leaves", [True, False])
async def test_an_agent_that_was_gone_returns(cell: Cell, leaves: bool) -> None:
    """Registering after leaving or turning stale makes it active again, with a higher rev; its term rose at its end."""
    await cell.register(interval_ms=5_000)
    if leaves:
        await cell.deregister()
    else:
        await expire_all(cell)
    gone = await cell.agent()

    assert await cell.register(interval_ms=5_000) == "REFRESHED"

    agent = await cell.agent()
    assert (agent.status, agent.term, agent.health_score) == ("active", 2, 1.0)
    assert agent.rev > gone.rev
    assert await cell.redis.zcard(cell.keys.of("agents:departed")) == 0
    assert await cell.redis.sismember(cell.keys.of("agents:active"), "a1")


async def test_a_refresh_keeps_a_status_that_was_set(cell: Cell) -> None:
    """An agent in maintenance that refreshes its registration stays in maintenance."""
    await cell.register()
    await cell.change_status(status="maintenance")
    await cell.register()

    agent = await cell.agent()
    assert agent.status == "maintenance"
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own entry, which stays pending; the others of the batch are registered."""
    await cell.redis.set(cell.keys.agent("bad"), "x")
    batch = [await cell.registration(name) for name in ("a1", "bad", "a2")]

    words = await cell.run(cell.scripts.register(batch))

    assert [word[:5] for word in words] == ["REGIS", "ERROR", "REGIS"]
    assert "WRONGTYPE" in words[1]
    assert await cell.left("in:registry") == [batch[1].entry]
    await cell.redis.delete(cell.keys.agent("bad"))


async def test_a_large_batch(cell: Cell) -> None:
    """256 registrations in one call."""
    batch = [await cell.registration(f"a{n}", version="x" * 64, interval_ms=5_000) for n in range(256)]
    assert await cell.run(cell.scripts.register(batch)) == ["REGISTERED"] * 256
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 256
    assert await cell.is_consumed("in:registry")


async def expire_all(cell: Cell) -> None:
    """Let the observed clock run until every agent with an interval is stale."""
    for _ in range(12):
        cell.now += 2_000
        await cell.run(cell.scripts.tick_liveness())


async def test_the_time_of_the_first_registration_is_kept(cell: Cell) -> None:
    """Through refreshes, new processes, silence and departure; until the record is removed."""
    await cell.register(interval_ms=1_000)
    cell.now += 5_000
    await cell.register(interval_ms=1_000, incarnation="i2")
    await cell.deregister(incarnation="i2")
    cell.now += 5_000
    await cell.register(interval_ms=1_000, incarnation="i3")
    assert (await cell.agent()).registration_time == START
