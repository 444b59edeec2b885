"""``prune``: the records of agents that left long ago are removed with everything that names them."""

from __future__ import annotations

import json

import pytest

from tests.scripts.cell import DAY, Cell
from workers.transitions import Pruning


async def prune(cell: Cell, age_ms: int) -> dict[str, int]:
    """Prune; what the operator is answered."""
    entry = await cell.append("in:control:registry", "agents.pruned")
    assert await cell.word(cell.scripts.prune([Pruning(entry, "op", age_ms)])) == "OK"
    answer: dict[str, int] = json.loads((await cell.stream("replies:op"))[-1]["data"])
    return answer


@pytest.mark.on_fakeredis
async def test_only_those_that_left_long_enough_ago_are_removed(cell: Cell) -> None:
    """Not one that is present, nor one that left later; with its indexes and its inbox."""
    for agent_id in ("here", "old", "new"):
        await cell.register(agent_id)
    await cell.deliver(receiver="old")
    await cell.deregister("old")
    cell.now += DAY
    await cell.deregister("new")
    cell.now += DAY

    assert await prune(cell, DAY + 1) == {"pruned": 1, "left": 0, "kept": 0, "unread": 1}

    assert await cell.redis.smembers(cell.keys.of("agents:all")) == {b"here", b"new"}
    assert await cell.redis.zrange(cell.keys.of("agents:health"), 0, -1) == [b"here", b"new"]
    assert not await cell.redis.exists(cell.keys.agent("old"), cell.keys.inbox("old", "normal"))
    assert (await cell.logged("agents"))[-1] == "agent.forgotten"
    assert await prune(cell, 0) == {"pruned": 1, "left": 0, "kept": 0, "unread": 0}
    assert await cell.redis.smembers(cell.keys.of("agents:all")) == {b"here"}


@pytest.mark.guarantee("departed-agents")
async def test_an_agent_with_tasks_in_flight_is_kept_until_they_are_taken_back(cell: Cell) -> None:
    """⚠ Its tasks would be lost with its record."""
    await cell.register()
    await cell.assign()
    await cell.deregister()
    cell.now += DAY
    assert await prune(cell, 0) == {"pruned": 0, "left": 0, "kept": 1, "unread": 0}
    assert (await cell.agent()).status == "inactive"
    await cell.reclaim()
    assert await prune(cell, 0) == {"pruned": 1, "left": 0, "kept": 0, "unread": 1}


async def test_one_that_is_back_is_not_removed(cell: Cell) -> None:
    """An agent that turned stale and has sent a heartbeat since has not left."""
    await cell.register(interval_ms=1_000)
    for _ in range(4):
        cell.now += 1_000
        await cell.run(cell.scripts.tick_liveness())
    assert (await cell.agent()).status == "stale"
    await cell.heartbeat()
    assert await prune(cell, 0) == {"pruned": 0, "left": 0, "kept": 0, "unread": 0}
    assert (await cell.agent()).status == "active"


@pytest.mark.guarantee("unread-messages-stay-visible")
async def test_an_agent_with_much_unread_is_removed_in_steps(cell: Cell) -> None:
    """⚠ One call ends 500 unread messages, all become dead letters, and the operator's request goes on."""
    await cell.register("old")
    for number in range(3):
        await cell.deliver(f"m{number}", receiver="old")
    for _ in range(600):
        await cell.redis.xadd(cell.keys.inbox("old", "high"), {"message_type": "coordination", "order": "read_inbox"})
    await cell.deregister("old")
    cell.now += DAY
    assert await prune(cell, 0) == {"pruned": 0, "left": 1, "kept": 0, "unread": 500}
    assert await prune(cell, 0) == {"pruned": 1, "left": 0, "kept": 0, "unread": 103}
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 3
