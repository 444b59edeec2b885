"""``deliver``: a message into its receiver's inbox, once."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest

from coord import queries
from tests.scripts.cell import DAY, START, Cell
from workers.transitions import Heartbeat


@pytest.mark.on_fakeredis
async def test_a_message_is_delivered(cell: Cell) -> None:
    """Into the lane of its priority, with what it carries; its sender is told; the record ends by itself."""
    await cell.register()
    sent = {"lane": "high", "correlation_id": "c-7", "reply_to": "m0", "caller": "c1"}
    assert await cell.deliver(**sent) == "DELIVERED"

    (entry,) = await cell.stream("inbox:a1:high")
    assert entry == {
        "message_type": "direct",
        "data": '{"n":1}',
        "id": "m1",
        "sender_id": "s1",
        "receiver_id": "a1",
        "priority": "high",
        "timestamp": str(START),
        "expires_at": str(START + 60_000),
        "correlation_id": "c-7",
        "reply_to": "m0",
    }
    record = await queries.get_message(cell.redis, cell.keys, "m1")
    assert record is not None
    assert (record.status, record.payload, record.expires_at) == ("delivered", {"n": 1}, START + 60_000)
    assert 3_600_000 < await cell.redis.pttl(cell.keys.message("m1")) <= 3_660_000
    assert await cell.last_answer() == "ok"
    assert await cell.counter("messages_delivered") == 1
    assert await cell.logged("messages") == ["message.delivered"]
    assert await cell.is_consumed("in:messages:high")


async def test_what_is_not_given_is_not_carried(cell: Cell) -> None:
    """Without correlation id and reply_to the entry has no such fields."""
    await cell.register()
    await cell.deliver()
    (entry,) = await cell.stream("inbox:a1:normal")
    assert not {"correlation_id", "reply_to"} & entry.keys()


async def test_the_same_message_again_has_one_effect(cell: Cell) -> None:
    """The same content under the same id is delivered once, and answered ok each time; the same call does nothing."""
    await cell.register()
    call = cell.scripts.deliver([await cell.delivery(caller="c1")])
    assert await cell.word(call) == "DELIVERED"
    before = await cell.dump()
    assert await cell.word(call) == "GONE"
    assert await cell.deliver(caller="c1") == "DUPLICATE"
    assert await cell.dump() == before
    assert [one for _, one in await cell.answers()] == ["ok"] * 2


@pytest.mark.guarantee("answers-to-their-caller")
async def test_entries_of_two_lanes_may_have_one_id(cell: Cell) -> None:
    """⚠ Appended in one millisecond: each answer names its stream, and those of two streams are not told as one."""
    await cell.register()
    cell._sequence = itertools.count(7)
    high = await cell.delivery("m1", lane="high", caller="c1")
    cell._sequence = itertools.count(7)
    low = await cell.delivery("m2", lane="low", caller="c1")
    other = await cell.delivery("m3", lane="high", caller="c1")
    await cell.run(cell.scripts.deliver([high, low, other]))
    told = {(one["stream"], one["fact"]) for one in await cell.stream("replies:c1")}
    assert told == {("in:messages:low", low.entry), ("in:messages:high", f"{high.entry} {other.entry}")}
    assert high.entry == low.entry


async def test_other_content_under_a_known_id_is_a_conflict(cell: Cell) -> None:
    """The first one stands."""
    await cell.register()
    await cell.deliver()
    before = await cell.dump()
    assert await cell.deliver(digest="d2", caller="c1") == "CONFLICT"
    assert await cell.last_answer() == "id_conflict"
    assert await cell.dump() == before
    assert await cell.is_consumed("in:messages:normal")


async def dead(cell: Cell) -> tuple[str, str]:
    """Status and reason of the message m1, which must be a dead letter that its index owns."""
    record = await queries.get_message(cell.redis, cell.keys, "m1")
    assert record is not None
    assert await cell.redis.zscore(cell.keys.of("messages:dead"), "m1") == cell.now
    assert await cell.redis.pttl(cell.keys.message("m1")) == -1
    assert "message.dead" in await cell.logged("messages")
    assert await cell.is_consumed("in:messages:normal")
    return str(record.status), record.reason


async def test_of_an_unknown_receiver(cell: Cell) -> None:
    """A dead letter that names the receiver."""
    assert await cell.deliver(receiver="ghost", caller="c1") == "UNKNOWN"
    assert await dead(cell) == ("dead", "Agent 'ghost' not found")
    assert await cell.last_answer() == "agent_not_found"
    assert await cell.stream("inbox:ghost:normal") == []
    assert await cell.deliver(receiver="ghost", caller="c2") == "DUPLICATE"
    assert await cell.last_answer("c2") == "agent_not_found", "a repetition does not say that it is delivered"


async def test_after_its_time_to_live(cell: Cell) -> None:
    """It is not delivered when its time passed while it waited in the ingress; a moment earlier it is."""
    await cell.register()
    batch = [await cell.delivery("m1", ttl_ms=1_000, caller="c1"), await cell.delivery("m0", ttl_ms=1_001)]
    cell.now += 1_000
    assert await cell.run(cell.scripts.deliver(batch)) == ["EXPIRED", "DELIVERED"]
    assert (await dead(cell))[0] == "expired"
    assert await cell.last_answer() == "message_expired"
    assert len(await cell.stream("inbox:a1:normal")) == 1


async def test_an_entry_ahead_of_the_clock_expires_in_time(cell: Cell) -> None:
    """⚠ The clock was set back, or a sender chose the id of its entry: its time to live counts from now then."""
    await cell.register("a1")
    day = cell.now + 86_400_000
    assert await cell.deliver(ttl_ms=60_000, at=day) == "DELIVERED"
    assert await cell.deliver("m2", lane="low", receiver="nobody", ttl_ms=60_000, at=day) == "UNKNOWN"
    (entry,) = await cell.stream("inbox:a1:normal")
    assert (entry["timestamp"], entry["expires_at"]) == (str(cell.now), str(cell.now + 60_000))
    assert await cell.redis.pttl(cell.keys.message("m1")) <= 3_660_000


@pytest.mark.guarantee("retention")
async def test_a_full_inbox(cell: Cell) -> None:
    """One deaf agent cannot fill the server; its lane has no room and the sender is told."""
    cell.change_settings(inbox_entries=2)
    await cell.register()
    assert [await cell.deliver(name) for name in ("x1", "x2")] == ["DELIVERED"] * 2
    assert await cell.deliver("m1", caller="c1") == "FULL"
    assert await dead(cell) == ("dead", "the inbox of agent 'a1' is full")
    assert await cell.last_answer() == "message_undeliverable"


async def test_the_critical_lane_has_room_beyond_that(cell: Cell) -> None:
    """A full inbox still takes what is critical, up to its extra room."""
    cell.change_settings(inbox_entries=2, inbox_critical_extra=1)
    await cell.register()
    words = [await cell.deliver(f"m{n}", lane="critical") for n in range(4)]
    assert words == ["DELIVERED"] * 3 + ["FULL"]


@pytest.mark.parametrize("status", ["stale", "busy", "draining"])
async def test_an_offline_agents_inbox_keeps_its_messages(cell: Cell, status: str) -> None:
    """An agent that is silent or busy may be written to, and the receipt says so."""
    await cell.register()
    await cell.change_status(status=status)
    assert await cell.deliver(receipt=True, caller="c1") == "DELIVERED"
    assert await receipt(cell) == {"count": 1, "recipients": [{"agent_id": "a1", "state": status, "ahead": 0}]}


async def receipt(cell: Cell) -> Any:
    """The data of the last answer to c1."""
    return json.loads((await cell.stream("replies:c1"))[-1]["data"])


@pytest.mark.guarantee("unread-messages-stay-visible")
async def test_an_agent_that_has_left_gets_nothing(cell: Cell) -> None:
    """A dead letter that says so; it can be replayed when the agent is back."""
    await cell.register()
    await cell.deregister()
    assert await cell.deliver(caller="c1") == "LEFT"
    assert await dead(cell) == ("dead", "agent 'a1' has left; replay the message when it is back")
    assert await cell.last_answer() == "agent_left"
    assert await cell.stream("inbox:a1:normal") == []


async def test_a_receipt_says_what_is_ahead_and_that_the_receiver_is_deaf(cell: Cell) -> None:
    """Only its own lane counts; a repeated message is answered without a receipt."""
    await cell.register()
    await cell.deliver("m1")
    await cell.deliver("m2", lane="high")
    beat = await cell.append("in:beats", "agent.heartbeat")
    assert await cell.word(cell.scripts.heartbeat([Heartbeat(beat, "", "a1", "i1", None, True, False, {})])) == "OK"
    assert await cell.deliver("m3", receipt=True, caller="c1") == "DELIVERED"
    (recipient,) = (await receipt(cell))["recipients"]
    assert recipient == {"agent_id": "a1", "state": "active", "ahead": 1, "deaf": True}
    assert await cell.deliver("m3", receipt=True, caller="c1") == "DUPLICATE"
    assert "data" not in (await cell.stream("replies:c1"))[-1]


async def test_a_long_message_is_kept_as_long_as_it_lives(cell: Cell) -> None:
    """The record outlives the message."""
    await cell.register()
    await cell.deliver(ttl_ms=2 * DAY)
    assert DAY < await cell.redis.pttl(cell.keys.message("m1")) <= 2 * DAY + 3_600_000


@pytest.mark.guarantee("retention")
async def test_dead_letters_are_bounded(cell: Cell) -> None:
    """By count, the oldest first with their records, and by age."""
    cell.change_settings(dead_in_entries=2)
    for n in range(4):
        cell.now += 1
        await cell.deliver(f"m{n}", receiver="ghost")
    assert await cell.redis.zrange(cell.keys.of("messages:dead"), 0, -1) == [b"m2", b"m3"]
    assert not await cell.redis.exists(cell.keys.message("m0"), cell.keys.message("m1"))

    cell.now += 8 * DAY
    await cell.deliver("m9", receiver="ghost")
    assert await cell.redis.zrange(cell.keys.of("messages:dead"), 0, -1) == [b"m9"]


@pytest.mark.guarantee("live-records-stay")
async def test_a_message_that_is_no_dead_letter_is_kept(cell: Cell) -> None:
    """⚠ The index of dead letters may name an earlier life of the id: the record of the delivered message stays."""
    await cell.redis.zadd(cell.keys.of("messages:dead"), {"m1": START - 8 * DAY})
    await cell.register()
    await cell.deliver()
    await cell.run(cell.scripts.deliver([]))
    assert await cell.redis.exists(cell.keys.message("m1")) == 1
    assert await cell.deliver() == "DUPLICATE"
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 0


async def test_a_dead_letter_and_its_place_are_forgotten_together(cell: Cell) -> None:
    """⚠ By age, a bounded number at a time; no TTL ends the record before."""
    await cell.deliver(receiver="ghost")
    cell.now += 7 * DAY - 1
    await cell.run(cell.scripts.deliver([]))
    assert await cell.redis.exists(cell.keys.message("m1")) == 1
    cell.now += 1
    await cell.run(cell.scripts.deliver([]))
    assert await cell.redis.exists(cell.keys.message("m1"), cell.keys.of("messages:dead")) == 0


@pytest.mark.parametrize("broken", ["inbox:bad:normal", "message:m1"])
async def test_a_broken_key_fails_its_own_message_only(cell: Cell, broken: str) -> None:
    """⚠ A wrong type in the middle of a batch: the others are delivered and counted, the failing one stays pending."""
    await cell.register("a1")
    await cell.register("bad")
    await cell.redis.set(cell.keys.of(broken), "x")
    batch = [await cell.delivery(f"m{n}", receiver="bad" if n == 1 else "a1") for n in range(3)]

    words = await cell.run(cell.scripts.deliver(batch))

    assert [word[:6] for word in words] == ["DELIVE", "ERROR ", "DELIVE"]
    assert await cell.counter("messages_delivered") == 2
    assert await cell.left("in:messages:normal") == [batch[1].entry]
    await cell.redis.delete(cell.keys.of(broken))


async def test_a_large_batch_in_order(cell: Cell) -> None:
    """256 messages over all lanes in one call; each lane keeps their order."""
    await cell.register()
    lanes = ["critical", "high", "normal", "low"]
    batch = [await cell.delivery(f"m{n}", lane=lanes[n % 4], payload=b"x" * 4_096) for n in range(256)]
    assert await cell.run(cell.scripts.deliver(batch)) == ["DELIVERED"] * 256
    for index, lane in enumerate(lanes):
        ids = [entry["id"] for entry in await cell.stream(f"inbox:a1:{lane}")]
        assert ids == [f"m{n}" for n in range(index, 256, 4)]
        assert await cell.is_consumed(f"in:messages:{lane}")
