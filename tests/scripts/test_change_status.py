"""``change_status``: an agent's status, set by itself or for it."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import StatusChange


@pytest.mark.on_fakeredis
@pytest.mark.parametrize(("status", "health"), [("busy", 0.9), ("maintenance", 0.8), ("error", 0.5), ("draining", 1.0)])
async def test_only_an_active_agent_is_placeable(cell: Cell, status: str, health: float) -> None:
    """Any other status takes the agent out of ``agents:active``, lowers its health by its penalty and raises rev."""
    await cell.register()

    assert await cell.change_status(status=status, caller="c1", cpu=0.5) == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.rev, agent.health_score, agent.load_metrics) == (status, 2, health, {"cpu": 0.5})
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0
    assert await cell.redis.smembers(cell.keys.facet("status", status)) == {b"a1"}
    assert await cell.redis.scard(cell.keys.facet("status", "active")) == 0
    assert await cell.last_answer() == "ok"
    assert await cell.is_consumed("in:registry")

    assert await cell.change_status(status="active") == "OK"
    agent = await cell.agent()
    assert (agent.status, agent.rev, agent.health_score) == ("active", 3, 1.0)
    assert await cell.redis.sismember(cell.keys.of("agents:active"), "a1")


async def test_an_agent_keeps_what_it_runs_while_it_drains(cell: Cell) -> None:
    """Draining gives nothing back and announces no loss."""
    await cell.register()
    await cell.assign()
    await cell.change_status(status="draining")
    assert await cell.load() == 1
    assert await cell.stream("in:losses") == []
    assert await cell.complete() == "OK"


@pytest.mark.parametrize("status", ["inactive", "stale"])
async def test_being_declared_gone_ends_the_term(cell: Cell, status: str) -> None:
    """Someone says that the agent is gone: what it has is announced as lost, and it is expected no more."""
    await cell.register(interval_ms=5_000)
    await cell.assign()

    assert await cell.change_status(status=status) == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.term) == (status, 2)
    assert [one["data"] for one in await cell.stream("in:losses")] == ['{"agent_id":"a1","term":1}']
    assert await cell.redis.zcard(cell.keys.of("agents:expiry")) == 0
    assert await cell.redis.zscore(cell.keys.of("agents:departed"), "a1") == START


async def test_a_stale_agent_comes_back_with_a_status(cell: Cell) -> None:
    """It is expected again, and no more among those that are forgotten after a while."""
    await cell.register(interval_ms=5_000)
    await cell.change_status(status="stale")
    cell.now += 1_000

    assert await cell.change_status(status="active") == "OK"

    assert (await cell.agent()).status == "active"
    assert await cell.redis.zscore(cell.keys.of("agents:departed"), "a1") is None
    assert await cell.redis.zcard(cell.keys.of("agents:expiry")) == 1


async def test_the_same_status_again_raises_nothing(cell: Cell) -> None:
    """Saying again what is known is a sign of life and no more."""
    await cell.register(interval_ms=5_000)
    cell.now += 1_000
    assert await cell.change_status(status="active") == "OK"

    agent = await cell.agent()
    assert agent.rev == 1
    assert await cell.redis.zscore(cell.keys.of("agents:expiry"), "a1") == START + 16_000
    assert await cell.logged("agents") == ["agent.registered"]


async def test_the_same_entry_twice_changes_nothing(cell: Cell) -> None:
    """A script that ran twice for one entry has one effect."""
    await cell.register()
    call = cell.scripts.change_status(
        [StatusChange(await cell.append("in:registry"), "", "a1", "i1", "busy", {"metric:cpu": 0.9})]
    )
    assert await cell.word(call) == "OK"
    before = await cell.dump()
    assert await cell.word(call) == "GONE"
    assert await cell.dump() == before


async def test_an_earlier_status_that_comes_later_changes_nothing(cell: Cell) -> None:
    """Status and registration are last-writer-wins among themselves, by entry id."""
    await cell.register()
    early = StatusChange(await cell.append("in:registry"), "c1", "a1", "i1", "error", {})
    await cell.change_status(status="busy")
    assert await cell.word(cell.scripts.change_status([early])) == "STALE"
    assert await cell.last_answer() == "ok"
    agent = await cell.agent()
    assert agent.status == "busy"


async def test_of_an_unknown_agent(cell: Cell) -> None:
    """A caller is told that there is no such agent; an agent of itself, that it has to register."""
    assert await cell.change_status("ghost", caller="c1") == "UNKNOWN"
    assert await cell.last_answer() == "agent_not_found"
    assert await cell.change_status("ghost") == "UNKNOWN"
    assert await cell.last_answer("ghost") == "unknown_agent"
    assert await cell.is_consumed("in:registry")


async def test_of_a_replaced_process(cell: Cell) -> None:
    """A zombie cannot set the status of its successor; a process not registered yet is asked to register."""
    await cell.register(incarnation="i1")
    await cell.register(incarnation="i2")
    assert await cell.change_status(incarnation="i1") == "SUPERSEDED"
    assert await cell.last_answer("a1") == "superseded"
    assert await cell.change_status(incarnation="i3") == "UNKNOWN"
    agent = await cell.agent()
    assert agent.status == "active"


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own entry, which stays pending; 255 others are changed."""
    names = [f"a{n}" for n in range(255)]
    await cell.run(cell.scripts.register([await cell.registration(name) for name in names]))
    await cell.redis.set(cell.keys.agent("bad"), "x")
    changes = [StatusChange(await cell.append("in:registry"), "", name, "", "busy", {}) for name in [*names, "bad"]]

    words = await cell.run(cell.scripts.change_status(changes))

    assert words[:-1] == ["OK"] * 255
    assert words[-1].startswith("ERROR ")
    assert await cell.redis.xlen(cell.keys.of("in:registry")) == 1
    await cell.redis.delete(cell.keys.agent("bad"))
