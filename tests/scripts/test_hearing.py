"""``heartbeat`` of an agent that leaves its inbox unread and does not say so: an order that it leaves shows it."""

from __future__ import annotations

from typing import Any

import pytest

from coord.models.tasks import Lane
from tests.scripts.cell import Cell

INTERVAL = 5_000


async def beat(cell: Cell, times: int = 1) -> None:
    """Let the observed clock run to the next heartbeat, so many times."""
    for _ in range(times):
        for _ in range(INTERVAL // 1_000):
            cell.now += 1_000
            await cell.run(cell.scripts.tick_liveness())
        assert await cell.heartbeat() == "OK"


async def probes(cell: Cell) -> list[str]:
    """Return the entries of the orders that ask whether the inbox is read."""
    entries: Any = await cell.redis.xrange(cell.keys.inbox("a1", Lane.CRITICAL))
    return [entry.decode() for entry, fields in entries if fields.get(b"order") == b"read_inbox"]


async def read_inbox(cell: Cell) -> None:
    """Do what an agent does with the order: delete it."""
    assert await cell.redis.xdel(cell.keys.inbox("a1", Lane.CRITICAL), *await probes(cell)) == 1


async def is_placeable(cell: Cell) -> bool:
    """Return True if dispatch may give it work."""
    return bool(await cell.redis.sismember(cell.keys.of("agents:active"), "a1"))


@pytest.mark.guarantee("unread-inbox")
async def test_an_agent_that_leaves_its_inbox_unread_loses_health_and_unstarted_work(cell: Cell) -> None:
    """⚠ It sends every heartbeat, claims nothing and reports nothing: its unclaimed task goes back, with the reason."""
    await cell.register(interval_ms=INTERVAL)
    await beat(cell)
    await cell.assign(claimed=False)
    await beat(cell, 3)
    assert len(await probes(cell)) == 1
    assert (await cell.agent()).deaf is False
    await beat(cell, 2)
    assert (await cell.agent()).deaf is False, "it has three heartbeats to read the order"
    await beat(cell)

    agent = await cell.agent()
    assert (agent.status, agent.deaf, agent.deaf_reason, agent.health_score) == ("active", True, "unread", 0.5)
    assert agent.health is not None
    assert agent.health.deaf_penalty == 0.5
    assert not await is_placeable(cell)
    assert (await cell.stream("log:agents"))[-1]["reason"] == "unread"

    assert await cell.run_alarms() == ["RECALLED"]
    task = await cell.task()
    assert (task.state, task.failures) == ("scheduled", 0)
    assert task.attempts[0].message == "its agent sends heartbeats and does not read its inbox"


@pytest.mark.guarantee("unread-inbox")
async def test_it_returns_when_it_has_emptied_its_inbox(cell: Cell) -> None:
    """The next heartbeat after it has deleted the order: active, healthy, placeable."""
    await cell.register(interval_ms=INTERVAL)
    assert await cell.deliver() == "DELIVERED"
    await beat(cell, 7)
    assert (await cell.agent()).deaf is True
    assert await cell.register(interval_ms=INTERVAL) == "REFRESHED"
    assert (await cell.agent()).deaf is True, "a refresh reads no inbox"

    await read_inbox(cell)
    await beat(cell)

    agent = await cell.agent()
    assert (agent.deaf, agent.deaf_reason, agent.health_score) == (False, "", 1.0)
    assert await is_placeable(cell)
    record = await cell.redis.hgetall(cell.keys.agent("a1"))
    assert {b"deaf", b"probe", b"unread"} & set(record) == set()
    assert [kind for kind in await cell.logged("agents") if kind in {"agent.deaf", "agent.hears"}] == [
        "agent.deaf",
        "agent.hears",
    ]


async def test_a_refresh_after_it_has_read_its_inbox_ends_it_too(cell: Cell) -> None:
    """It need not wait for its next heartbeat."""
    await cell.register(interval_ms=INTERVAL)
    assert await cell.deliver() == "DELIVERED"
    await beat(cell, 7)
    await read_inbox(cell)
    await cell.register(interval_ms=INTERVAL)
    assert (await cell.agent()).deaf is False
    assert await is_placeable(cell)


@pytest.mark.guarantee("unread-inbox")
async def test_a_message_whose_handler_takes_long_is_no_sign(cell: Cell) -> None:
    """⚠ Its entry stays until the handler has ended, and the agent reads on: it is asked again, and hears."""
    await cell.register(interval_ms=INTERVAL)
    assert await cell.deliver() == "DELIVERED"
    for _ in range(6):
        await beat(cell, 2)
        if await probes(cell):
            await read_inbox(cell)
    assert (await cell.agent()).deaf is False
    assert await cell.logged("agents") == ["agent.registered"]
    assert await cell.redis.xlen(cell.keys.inbox("a1", Lane.NORMAL)) == 1


async def test_an_empty_inbox_and_a_new_entry_ask_nothing(cell: Cell) -> None:
    """An entry younger than an interval is on its way."""
    await cell.register(interval_ms=INTERVAL)
    await beat(cell, 4)
    assert await probes(cell) == []
    await beat(cell, 2)
    cell.now += 1
    await cell.redis.xadd(
        cell.keys.inbox("a1", Lane.LOW), {"message_type": "direct"}, id=f"{cell.now + INTERVAL - 1_000}-1"
    )
    await beat(cell)
    assert await probes(cell) == []


@pytest.mark.guarantee("unread-inbox")
async def test_a_process_that_was_frozen_has_three_heartbeats_to_read(cell: Cell) -> None:
    """⚠ Its first heartbeat afterwards may be earlier than its first read: the time alone proves nothing."""
    await cell.register(interval_ms=INTERVAL)
    assert await cell.deliver() == "DELIVERED"
    await beat(cell)
    assert len(await probes(cell)) == 1
    for _ in range(14):
        cell.now += 1_000
        await cell.run(cell.scripts.tick_liveness())
    await cell.heartbeat()
    await beat(cell)
    assert (await cell.agent()).deaf is False
    await beat(cell)
    assert (await cell.agent()).deaf is True


async def test_the_next_process_begins_without_it(cell: Cell) -> None:
    """A new incarnation has read nothing yet: the order to the one before is taken back."""
    await cell.register(interval_ms=INTERVAL)
    assert await cell.deliver() == "DELIVERED"
    await beat(cell, 7)
    assert await cell.register(interval_ms=INTERVAL, incarnation="i2") == "REGISTERED"
    assert (await cell.agent()).deaf is False
    assert await probes(cell) == []
    assert await is_placeable(cell)


async def test_a_lane_of_a_wrong_type_costs_no_heartbeat(cell: Cell) -> None:
    """⚠ The agent would be declared lost for a key that somebody else has put there."""
    await cell.register(interval_ms=INTERVAL)
    for lane in Lane:
        await cell.redis.set(cell.keys.inbox("a1", lane), "x")
    cell.broken = True
    await beat(cell, 5)
    assert (await cell.agent()).status == "active"
