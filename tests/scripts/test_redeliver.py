"""``redeliver``: a dead message is delivered as if it had been sent now."""

from __future__ import annotations

import pytest

from coord import queries
from coord.models.messages import MessageRecord
from tests.scripts.cell import START, Cell
from workers.transitions import Redelivery


async def request(cell: Cell, message_id: str = "m1", *, ttl_ms: int = 30_000) -> Redelivery:
    """A request to replay a message, appended."""
    return Redelivery(await cell.append("in:control:router", "message.replayed"), "op", message_id, ttl_ms)


async def redeliver(cell: Cell, message_id: str = "m1", *, ttl_ms: int = 30_000) -> str:
    """Replay a message; the word."""
    return await cell.word(cell.scripts.redeliver([await request(cell, message_id, ttl_ms=ttl_ms)]))


async def record(cell: Cell, message_id: str = "m1") -> MessageRecord:
    """A message's record, which must exist."""
    found = await queries.get_message(cell.redis, cell.keys, message_id)
    assert found is not None
    return found


@pytest.mark.on_fakeredis
async def test_a_dead_message_is_delivered_when_its_receiver_is_there(cell: Cell) -> None:
    """Into the lane of its priority with all that it carried, timed from now; it is no dead letter any more."""
    carried = {"correlation_id": "c-7", "reply_to": "m0", "lane": "high"}
    assert await cell.deliver(caller="c1", **carried) == "UNKNOWN"
    await cell.register()
    cell.now += 100_000

    assert await redeliver(cell) == "DELIVERED"

    (entry,) = await cell.stream("inbox:a1:high")
    assert entry == {
        "message_type": "direct",
        "data": '{"n":1}',
        "id": "m1",
        "sender_id": "s1",
        "receiver_id": "a1",
        "priority": "high",
        "timestamp": str(START + 100_000),
        "expires_at": str(START + 130_000),
        "correlation_id": "c-7",
        "reply_to": "m0",
    }
    found = await record(cell)
    assert (found.status, found.reason, found.expires_at) == ("delivered", "", START + 130_000)
    assert 3_600_000 < await cell.redis.pttl(cell.keys.message("m1")) <= 3_660_000
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 0
    assert await cell.last_answer("op") == "ok"
    assert (await cell.logged("messages"))[-1] == "message.delivered"
    assert await cell.is_consumed("in:control:router")
    # The sender's own repetition of it finds that it was sent.
    assert await cell.deliver(**carried) == "DUPLICATE"


async def test_what_still_cannot_be_delivered_stays_dead(cell: Cell) -> None:
    """For the reason that holds now: nobody there, no room, or too late."""
    await cell.deliver()
    assert await redeliver(cell) == "UNKNOWN"
    assert await cell.last_answer("op") == "agent_not_found"
    late = await request(cell, ttl_ms=10)
    await cell.register()
    cell.now += 10
    assert await cell.word(cell.scripts.redeliver([late])) == "EXPIRED"
    cell.change_settings(inbox_entries=1)
    await cell.deliver("m2")
    assert await redeliver(cell) == "FULL"
    assert await cell.last_answer("op") == "message_undeliverable"
    found = await record(cell)
    assert (found.status, found.reason) == ("dead", "the inbox of agent 'a1' is full")
    assert await cell.redis.zscore(cell.keys.of("messages:dead"), "m1") == START
    assert await cell.redis.pttl(cell.keys.message("m1")) == -1


async def test_only_a_dead_message_is_replayed(cell: Cell) -> None:
    """One that was delivered, and one that nobody knows, are answered so; the second of two requests as well."""
    await cell.deliver()
    await cell.register()
    assert await redeliver(cell) == "DELIVERED"
    assert await redeliver(cell) == "NOT_DEAD"
    assert await redeliver(cell, "ghost") == "NOT_FOUND"
    assert [one for _, one in await cell.answers("op")] == ["ok", "message_not_dead", "message_not_found"]
    assert len(await cell.stream("inbox:a1:normal")) == 1


async def test_a_broken_record_does_not_stop_the_batch(cell: Cell) -> None:
    """⚠ A key of a wrong type fails its own request, which stays pending; the other is replayed."""
    await cell.deliver("m1")
    await cell.register()
    await cell.redis.set(cell.keys.message("bad"), "x", ex=100)
    batch = [await request(cell, name) for name in ("bad", "m1")]
    words = await cell.run(cell.scripts.redeliver(batch))
    assert words[0].startswith("ERROR ")
    assert words[1] == "DELIVERED"
    assert await cell.left("in:control:router") == [batch[0].entry]
    await cell.redis.delete(cell.keys.message("bad"))
