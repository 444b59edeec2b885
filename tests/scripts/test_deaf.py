"""``heartbeat`` and ``register`` of an agent that does not read its inbox: it keeps its tasks and gets none."""

from __future__ import annotations

import pytest

from tests.scripts.cell import Cell
from workers.transitions import Heartbeat


async def heartbeat(cell: Cell, *, deaf: bool) -> str:
    """A heartbeat of a1 that says whether it is deaf."""
    entry = await cell.redis.xadd(cell.keys.of("in:beats"), {"type": "agent.heartbeat"})
    return await cell.word(cell.scripts.heartbeat([Heartbeat(entry.decode(), "", "a1", "i1", None, deaf, False, {})]))


async def is_placeable(cell: Cell) -> bool:
    """Whether dispatch may give it work."""
    return bool(await cell.redis.sismember(cell.keys.of("agents:active"), "a1"))


@pytest.mark.guarantee("deaf-agent")
async def test_a_deaf_agent_is_not_placeable_until_a_beat_says_otherwise(cell: Cell) -> None:
    """Its status stays, its record says why, and every view follows; a heartbeat that repeats it changes nothing."""
    await cell.register()
    before = await cell.agent()

    assert await heartbeat(cell, deaf=True) == "OK"
    agent = await cell.agent()
    assert (agent.status, agent.deaf, agent.rev) == ("active", True, before.rev + 1)
    assert not await is_placeable(cell)
    assert await cell.redis.sismember(cell.keys.facet("status", "active"), "a1")

    assert await heartbeat(cell, deaf=True) == "OK"
    assert (await cell.agent()).rev == agent.rev

    assert await heartbeat(cell, deaf=False) == "OK"
    agent = await cell.agent()
    assert (agent.status, agent.deaf, agent.rev) == ("active", False, before.rev + 2)
    assert await is_placeable(cell)
    assert not await cell.redis.hexists(cell.keys.agent("a1"), "deaf")
    assert await cell.logged("agents") == ["agent.registered", "agent.deaf", "agent.hears"]


@pytest.mark.parametrize("incarnation", ["i1", "i2"])
async def test_one_that_registers_hears_again(cell: Cell, incarnation: str) -> None:
    """The same process after a reconnect, or another one."""
    await cell.register()
    await heartbeat(cell, deaf=True)
    deaf = await cell.agent()

    await cell.register(incarnation=incarnation)

    agent = await cell.agent()
    assert (agent.deaf, agent.rev) == (False, deaf.rev + 1)
    assert await is_placeable(cell)


async def test_no_status_makes_a_deaf_agent_placeable(cell: Cell) -> None:
    """Neither its own word nor an operator's; and hearing again does not make a busy one so."""
    await cell.register()
    await heartbeat(cell, deaf=True)
    await cell.change_status(status="busy")
    await cell.change_status(status="active")
    assert not await is_placeable(cell)
    await cell.change_status(status="busy")
    await heartbeat(cell, deaf=False)
    assert not await is_placeable(cell)
    await cell.change_status(status="active")
    assert await is_placeable(cell)
