"""``expire_messages``: what was not read in time is a dead letter, and what was read stays read."""

from __future__ import annotations

import pytest

from tests.scripts.cell import DAY, START, Cell
from tests.scripts.test_redeliver import redeliver

GRACE = 2_000  #: ms after its expiry


async def states(cell: Cell, *message_ids: str) -> list[tuple[str, str]]:
    """Status and code of messages in their records."""
    found = []
    for message_id in message_ids:
        status, code = await cell.redis.hmget(cell.keys.message(message_id), "status", "code")
        found.append((status.decode(), (code or b"").decode()))
    return found


@pytest.mark.guarantee("unread-messages-stay-visible")
async def test_an_unread_message_becomes_a_dead_letter(cell: Cell) -> None:
    """Out of the inbox, where it would take up room; not a moment too early. It can be replayed."""
    await cell.register()
    await cell.deliver("m1", ttl_ms=1_000, correlation_id="c-7")
    await cell.deliver("m2", ttl_ms=1_001)
    cell.now = START + 1_000 + GRACE - 1
    assert await cell.expire_messages() == (0, 0)
    cell.now += 1
    assert await cell.expire_messages() == (1, 1)
    assert await states(cell, "m1", "m2") == [("dead", "message_expired"), ("delivered", "")]
    assert [one["id"] for one in await cell.stream("inbox:a1:normal")] == ["m2"]
    assert await cell.redis.zscore(cell.keys.of("messages:dead"), "m1") == cell.now
    assert await cell.redis.pttl(cell.keys.message("m1")) == -1
    assert await cell.redis.hget(cell.keys.message("m1"), "correlation_id") == b"c-7"
    assert (await cell.logged("messages"))[-1] == "message.dead"


@pytest.mark.guarantee("read-is-true")
async def test_a_message_that_was_read_stays_so(cell: Cell) -> None:
    """Whether its inbox is empty, or holds older or newer entries."""
    await cell.register()
    for n in range(4):
        await cell.deliver(f"m{n}", ttl_ms=1_000)
    entries = [entry.decode() for entry, _ in await cell.redis.xrange(cell.keys.inbox("a1", "normal"))]
    await cell.redis.xdel(cell.keys.inbox("a1", "normal"), entries[0], entries[2])
    cell.now = START + 1_000 + GRACE
    assert await cell.expire_messages() == (4, 2)
    assert [status for status, _ in await states(cell, "m0", "m1", "m2", "m3")] == [
        "delivered", "dead", "delivered", "dead",
    ]  # fmt: skip
    assert await cell.redis.zcard(cell.keys.of("messages:expiring")) == 0


async def test_it_examines_a_limited_number(cell: Cell) -> None:
    """The oldest first."""
    await cell.register()
    for n in range(3):
        await cell.deliver(f"m{n}", ttl_ms=1_000 + n)
    cell.now = START + DAY
    assert tuple(await cell.run(cell.scripts.expire_messages(2))) == (2, 2)
    assert [status for status, _ in await states(cell, "m0", "m1", "m2")] == ["dead", "dead", "delivered"]


async def test_a_copy_expires_for_its_own_recipient(cell: Cell) -> None:
    """The message is no dead letter: the other one has read it."""
    for agent in ("lead", "b", "c"):
        await cell.register(agent)
    for agent in ("b", "c"):
        await cell.change_links("set_master", agent, "lead")
    await cell.deliver("m1", sender="lead", receiver="subordinates", protocol="hierarchical", ttl_ms=1_000)
    await cell.redis.delete(cell.keys.inbox("b", "normal"))
    cell.now = START + 1_000 + GRACE
    assert await cell.expire_messages() == (2, 1)
    raw = await cell.redis.hgetall(cell.keys.copies("m1"))
    assert raw[b"b"].startswith(b"delivered ")
    assert raw[b"c"] == b"dead message_expired"
    assert await states(cell, "m1") == [("delivered", "")]
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 0


@pytest.mark.guarantee("read-is-true")
async def test_a_replayed_message_is_not_ended_by_its_first_life(cell: Cell) -> None:
    """⚠ It has another entry and another expiry."""
    await cell.register()
    await cell.deliver("m1", ttl_ms=1_000)
    cell.now = START + 1_000 + GRACE
    await cell.expire_messages()
    assert await redeliver(cell, "m1", ttl_ms=30_000) == "DELIVERED"
    assert await cell.expire_messages() == (0, 0)
    assert await states(cell, "m1") == [("delivered", "")]
    cell.now += 30_000 + GRACE
    assert await cell.expire_messages() == (1, 1)


@pytest.mark.guarantee("unread-messages-stay-visible")
async def test_nothing_unread_disappears_with_its_agent(cell: Cell) -> None:
    """⚠ A message that outlives the record of its receiver becomes a dead letter; many in several steps."""
    await cell.register()
    await cell.run(cell.scripts.deliver([await cell.delivery(f"m{n}", ttl_ms=60 * DAY) for n in range(501)]))
    await cell.deregister()
    cell.now = START + 31 * DAY
    await cell.run(cell.scripts.tick_liveness())
    assert await cell.redis.exists(cell.keys.agent("a1"))
    await cell.run(cell.scripts.tick_liveness())
    assert not await cell.redis.exists(cell.keys.agent("a1"), cell.keys.inbox("a1", "normal"))
    assert set(await states(cell, *(f"m{n}" for n in range(501)))) == {("dead", "agent_left")}
    assert await cell.counter("messages_dead") == 501
