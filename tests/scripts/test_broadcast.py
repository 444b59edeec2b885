"""``freeze_recipients`` and ``deliver_broadcast``: one copy for each recipient, whichever router makes the calls."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from coord import queries
from coord.models.messages import MessageRecipient, MessageStatus
from tests.scripts.cell import START, Cell
from tests.scripts.test_prune import prune
from tests.scripts.test_redeliver import redeliver
from workers.transitions import Broadcast
from workers.transitions import scripts as scripts_module


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk of three recipients."""
    monkeypatch.setattr(scripts_module, "RECIPIENTS_AT_ONCE", 3)


async def broadcast(
    cell: Cell,
    message_id: str = "b1",
    *,
    digest: str = "d1",
    ttl_ms: int = 60_000,
    caller: str = "c1",
    correlation_id: str = "c-7",
    caused_by: str = "",
    traceparent: str = "",
    lane: str = "normal",
) -> Broadcast:
    """A broadcast, appended."""
    place = (correlation_id, caused_by, traceparent)
    entry = await cell.append(f"in:messages:{lane}", "message.broadcast")
    return Broadcast(entry, lane, caller, message_id, digest, "s1", "broadcast", ttl_ms, b'{"n":1}', *place)


async def freeze(cell: Cell, one: Broadcast, recipients: Sequence[str]) -> str:
    """Freeze the recipients; the word."""
    return await cell.word(cell.scripts.freeze_recipients(one, recipients))


async def step(cell: Cell, one: Broadcast) -> str:
    """Deliver to the next chunk; the word."""
    return await cell.word(cell.scripts.deliver_broadcast(one, "w1"))


async def deliver_all(cell: Cell, one: Broadcast) -> str:
    """Deliver to all; the last word."""
    while (word := await step(cell, one)) == "MORE":
        pass
    return word


async def copies(cell: Cell, count: int, lane: str = "normal") -> list[list[str]]:
    """The ids in the inbox of each of ``count`` agents."""
    return [[entry["id"] for entry in await cell.stream(f"inbox:a{n}:{lane}")] for n in range(count)]


async def agents(cell: Cell, count: int) -> list[str]:
    """Register agents; their ids."""
    ids = [f"a{n}" for n in range(count)]
    for agent_id in ids:
        await cell.register(agent_id)
    return ids


async def outcomes(cell: Cell, message_id: str = "b1") -> dict[str, tuple[MessageStatus, str]]:
    """Status and code of each recipient."""
    page = await queries.list_recipients(cell.redis, cell.keys, message_id, limit=100)
    assert page is not None
    return {one.agent_id: (one.status, one.code) for one in page.recipients}


async def test_every_recipient_gets_one_copy(cell: Cell) -> None:
    """In chunks; the record counts them, the sender learns the numbers at the end, and the lists end by themselves."""
    ids = await agents(cell, 8)
    one = await broadcast(cell)
    assert await freeze(cell, one, ids) == "MORE"
    assert await copies(cell, 8) == [[]] * 8
    assert [await step(cell, one) for _ in range(4)] == ["MORE", "MORE", "DELIVERED", "GONE"]
    assert await copies(cell, 8) == [["b1"]] * 8
    (entry,) = await cell.stream("inbox:a7:normal")
    assert entry == {
        "message_type": "broadcast", "data": '{"n":1}', "id": "b1", "sender_id": "s1", "receiver_id": "a7",
        "priority": "normal", "timestamp": str(START), "expires_at": str(START + 60_000), "correlation_id": "c-7",
        "protocol": "broadcast",
    }  # fmt: skip
    record = await queries.get_message(cell.redis, cell.keys, "b1")
    assert record is not None
    assert (record.status, record.recipient_count, record.delivered, record.dead) == ("delivered", 8, 8, 0)
    (answer,) = await cell.stream("replies:c1")
    assert (answer["ok"], answer["data"]) == ("1", '{"recipients":8,"delivered":8}')
    assert await cell.logged("messages") == ["message.broadcast", "message.delivered"]
    assert await cell.counter("messages_delivered") == 8
    assert await cell.is_consumed("in:messages:normal")
    for key in ("message:b1", "recipients:b1", "outcomes:b1"):
        assert 3_500_000 < await cell.redis.pttl(cell.keys.of(key)) <= 3_660_000


@pytest.mark.guarantee("broadcast-recipients")
async def test_a_list_that_was_frozen_stays(cell: Cell) -> None:
    """The router that takes over in the middle finds other agents, and delivers to the rest of the first list."""
    ids = await agents(cell, 8)
    one = await broadcast(cell)
    assert await freeze(cell, one, ids[:5]) == "MORE"
    assert await step(cell, one) == "MORE"
    assert await freeze(cell, one, ids[3:]) == "MORE"
    assert await deliver_all(cell, one) == "DELIVERED"
    assert await copies(cell, 8) == [["b1"]] * 5 + [[]] * 3


async def test_nobody_to_deliver_to(cell: Cell) -> None:
    """A broadcast that matches no agent is delivered to none, which its sender learns."""
    one = await broadcast(cell)
    assert await freeze(cell, one, []) == "MORE"
    assert await step(cell, one) == "DELIVERED"
    assert (await cell.stream("replies:c1"))[0]["data"] == '{"recipients":0,"delivered":0}'


async def test_the_same_broadcast_again(cell: Cell) -> None:
    """Under another entry: one effect, and the same answer; other content is a conflict."""
    ids = await agents(cell, 2)
    first = await broadcast(cell)
    await freeze(cell, first, ids)
    await deliver_all(cell, first)
    before = await copies(cell, 2)
    assert await freeze(cell, await broadcast(cell), ids) == "DUPLICATE"
    assert [one["data"] for one in await cell.stream("replies:c1")] == ['{"recipients":2,"delivered":2}'] * 2
    assert await freeze(cell, await broadcast(cell, digest="d2"), ids) == "CONFLICT"
    assert await cell.last_answer() == "id_conflict"
    assert await copies(cell, 2) == before
    assert await cell.is_consumed("in:messages:normal")


@pytest.mark.guarantee("broadcast-dead-letters")
async def test_a_full_inbox_is_a_dead_letter_of_one_recipient(cell: Cell) -> None:
    """The others get it; the dead letter can be replayed when there is room. An unknown agent is another one."""
    cell.change_settings(inbox_entries=1)
    ids = await agents(cell, 4)
    assert await cell.deliver("x", receiver="a1") == "DELIVERED"
    one = await broadcast(cell)
    await freeze(cell, one, [*ids, "ghost"])
    assert await deliver_all(cell, one) == "DELIVERED"
    assert await copies(cell, 4) == [["b1"], ["x"], ["b1"], ["b1"]]
    found = await outcomes(cell)
    assert found["a0"] == (MessageStatus.DELIVERED, "")
    assert found["a1"] == (MessageStatus.DEAD, "message_undeliverable")
    assert found["ghost"] == (MessageStatus.DEAD, "agent_not_found")
    assert (await cell.stream("replies:c1"))[-1]["data"] == '{"recipients":5,"delivered":3}'

    page = await queries.list_recipients(cell.redis, cell.keys, "b1", limit=100)
    assert page is not None
    (dead_id,) = [one.dead_letter for one in page.recipients if one.agent_id == "a1"]
    letter = await queries.get_message(cell.redis, cell.keys, dead_id)
    assert letter is not None
    assert (letter.status, letter.receiver_id, letter.payload) == ("dead", "a1", {"n": 1})
    assert "full" in letter.reason
    cell.change_settings(inbox_entries=2)
    assert await redeliver(cell, dead_id) == "DELIVERED"
    assert await copies(cell, 2) == [["b1"], ["x", dead_id]]


@pytest.mark.guarantee("broadcast-dead-letters")
async def test_a_broken_inbox_fails_one_recipient_only(cell: Cell) -> None:
    """⚠ An inbox of a wrong type in the middle of a chunk: the others get one copy each."""
    ids = await agents(cell, 3)
    await cell.redis.set(cell.keys.inbox("a1", "normal"), "x")
    one = await broadcast(cell)
    await freeze(cell, one, ids)
    assert await deliver_all(cell, one) == "DELIVERED"
    assert (await outcomes(cell))["a1"] == (MessageStatus.DEAD, "message_undeliverable")
    await cell.redis.delete(cell.keys.inbox("a1", "normal"))
    assert await copies(cell, 3) == [["b1"], [], ["b1"]]


async def test_what_expires_before_and_in_the_middle(cell: Cell) -> None:
    """Before its recipients are chosen: dead as a whole. In the middle: expired for those who do not have it."""
    ids = await agents(cell, 6)
    late, one = await broadcast(cell, "b0", ttl_ms=1), await broadcast(cell)
    cell.now += 10
    assert await freeze(cell, late, ids) == "EXPIRED"
    assert await cell.last_answer() == "message_expired"
    assert await freeze(cell, one, ids) == "MORE"
    assert await step(cell, one) == "MORE"
    cell.now += 60_000
    assert await step(cell, one) == "DELIVERED"
    assert await copies(cell, 6) == [["b1"]] * 3 + [[]] * 3
    assert [status for status, _ in (await outcomes(cell)).values()] == ["delivered"] * 3 + ["expired"] * 3
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 0


async def test_a_displaced_router_delivers_to_nobody(cell: Cell) -> None:
    """⚠ It stood still in the middle of a broadcast, and another router took the lane."""
    ids = await agents(cell, 6)
    one = await broadcast(cell)
    await freeze(cell, one, ids)
    await step(cell, one)
    before = await cell.dump()
    cell.scripts.leases = {"normal": "0/w1#test"}
    assert await step(cell, one) == "NOT_HELD"
    assert await freeze(cell, one, ids) == "NOT_HELD"
    assert await cell.dump() == before


async def test_no_broadcast_overtakes_an_older_message(cell: Cell) -> None:
    """Nor does a message overtake a broadcast of which some recipients still wait."""
    ids = await agents(cell, 6)
    older, one, younger = await cell.delivery("m1", receiver="a5"), await broadcast(cell), await cell.delivery("m2")
    assert await freeze(cell, one, ids) == "BEHIND"
    assert await cell.run(cell.scripts.deliver([older])) == ["DELIVERED"]
    await freeze(cell, one, ids)
    await step(cell, one)
    assert await cell.run(cell.scripts.deliver([younger])) == ["BEHIND"]
    await deliver_all(cell, one)
    assert await cell.run(cell.scripts.deliver([younger])) == ["DELIVERED"]
    assert await copies(cell, 6) == [["b1"], ["b1", "m2"], ["b1"], ["b1"], ["b1"], ["m1", "b1"]]


async def test_the_recipients_are_read_in_pages(cell: Cell) -> None:
    """Also before they have an outcome, with a cursor; who deleted its copy has read it."""
    ids = await agents(cell, 8)
    one = await broadcast(cell)
    await freeze(cell, one, ids)
    await step(cell, one)
    await cell.redis.xtrim(cell.keys.inbox("a0", "normal"), maxlen=0)
    found: list[MessageRecipient] = []
    cursor = None
    while True:
        page = await queries.list_recipients(cell.redis, cell.keys, "b1", limit=3 if cursor else 2, cursor=cursor)
        assert page is not None
        found += page.recipients
        cursor = page.next
        if cursor is None:
            break
    assert [one.agent_id for one in found] == ids
    assert [one.status.value for one in found] == ["read", "delivered", "delivered"] + ["delivering"] * 5


@pytest.mark.guarantee("read-of-broadcasts")
async def test_a_copy_that_nobody_read_is_not_taken_for_read(cell: Cell) -> None:
    """One agent read its copy; one left and was removed with its inbox; the copies of the others expire there."""
    ids = await agents(cell, 4)
    one = await broadcast(cell, ttl_ms=60_000)
    await freeze(cell, one, ids)
    await deliver_all(cell, one)
    assert await cell.redis.zcard(cell.keys.of("messages:expiring")) == 4
    await cell.redis.xtrim(cell.keys.inbox("a0", "normal"), maxlen=0)
    await cell.deregister("a1")
    assert (await prune(cell, 0))["pruned"] == 1
    cell.now += 70_000
    assert await cell.run(cell.scripts.expire_messages()) == (4, 2)
    assert await outcomes(cell) == {
        "a0": (MessageStatus.READ, ""),
        "a1": (MessageStatus.DEAD, "agent_left"),
        "a2": (MessageStatus.EXPIRED, "message_expired"),
        "a3": (MessageStatus.EXPIRED, "message_expired"),
    }
    page = await queries.list_recipients(cell.redis, cell.keys, "b1", limit=100)
    assert page is not None
    assert {one.dead_letter for one in page.recipients} == {""}
    assert await cell.redis.zcard(cell.keys.of("messages:dead")) == 0
    assert await cell.redis.pttl(cell.keys.of("copies:b1")) > 3_500_000


async def test_a_broadcast_is_part_of_its_conversation(cell: Cell) -> None:
    """With the answers to it, and under the message whose handler sent it; its copies carry its place and its trace."""
    ids = await agents(cell, 3)
    await cell.deliver("m1", receiver="a0")
    one = await broadcast(cell, correlation_id="", caused_by="m1", traceparent="00-1-1-00")
    await freeze(cell, one, ids)
    await deliver_all(cell, one)
    (entry,) = await cell.stream("inbox:a1:normal")
    place = {name: entry.get(name) for name in ("correlation_id", "hops", "traceparent", "protocol")}
    assert place == {"correlation_id": "m1", "hops": "1", "traceparent": "00-1-1-00", "protocol": "broadcast"}
    assert await cell.deliver("m2", sender="a1", receiver="a2", reply_to="b1") == "DELIVERED"
    found = await queries.get_conversation(cell.redis, cell.keys, "m1")
    assert found is not None
    assert [(record.message_id, record.hops, record.parent) for record in found.messages] == [
        ("m1", 0, None),
        ("b1", 1, "m1"),
        ("m2", 2, "b1"),
    ]


@pytest.mark.guarantee("limits-of-broadcasts")
async def test_a_storm_of_broadcasts_ends_at_its_limits(cell: Cell) -> None:
    """⚠ Agents that answer each broadcast with another one: it is sent to nobody, and its sender learns the path."""
    cell.change_settings(hop_limit=2, conversation_messages=4)
    ids = await agents(cell, 2)
    cause = ""
    for number in range(3):
        one = await broadcast(cell, f"b{number}", correlation_id="", caused_by=cause)
        assert await freeze(cell, one, ids) == "MORE"
        await deliver_all(cell, one)
        cause = one.message_id
    one = await broadcast(cell, "b3", correlation_id="", caused_by="b2")
    assert await freeze(cell, one, ids) == "LOOP"
    assert await cell.last_answer() == "hop_limit_reached"
    record = await queries.get_message(cell.redis, cell.keys, "b3")
    assert record is not None
    assert (record.status, record.recipient_count, record.code) == ("dead", 0, "hop_limit_reached")
    assert record.reason.endswith("path: s1 > s1 > s1 > s1 > (broadcast)")
    one = await broadcast(cell, "b4", correlation_id="b0", caused_by="")
    assert await freeze(cell, one, ids) == "OVER_BUDGET"
    assert await cell.last_answer() == "conversation_full"
    assert await copies(cell, 2) == [["b0", "b1", "b2"]] * 2
    assert await cell.is_consumed("in:messages:normal")


async def test_a_broadcast_is_in_the_histories(cell: Cell) -> None:
    """Of its sender, of each agent that got it, and as a dead letter of one whose inbox is full."""
    cell.change_settings(inbox_entries=1)
    ids = await agents(cell, 3)
    await cell.deliver("x", receiver="a1")
    one = await broadcast(cell)
    await freeze(cell, one, ids)
    await deliver_all(cell, one)
    listed: dict[str, list[tuple[str, str]]] = {}
    for agent_id in ("s1", *ids):
        page = await queries.list_messages(cell.redis, cell.keys, agent_id=agent_id)
        listed[agent_id] = [(record.status, record.receiver_id) for record in page.messages if record.message_id != "x"]
    assert listed == {
        "s1": [("delivered", "")],
        "a0": [("delivered", "")],
        "a1": [("dead", "a1")],
        "a2": [("delivered", "")],
    }


async def test_a_large_payload_makes_small_chunks(cell: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """The bytes of one call are bounded, not only its recipients."""
    monkeypatch.setattr(scripts_module, "BROADCAST_BYTES", 14)
    ids = await agents(cell, 4)
    one = await broadcast(cell)
    assert len(one.payload) == 7
    await freeze(cell, one, ids)
    assert [await step(cell, one) for _ in range(2)] == ["MORE", "DELIVERED"]


async def test_a_broadcast_that_is_sent_on_two_lanes_is_one(cell: Cell) -> None:
    """⚠ The routers of both lanes deliver it at the same time: one copy each, on the first lane; both are answered."""
    ids = await agents(cell, 6)
    one, other = await broadcast(cell), await broadcast(cell, lane="low", caller="c2")
    assert await freeze(cell, one, ids) == "MORE"
    assert await freeze(cell, other, ids) == "MORE"
    assert [await step(cell, one), await step(cell, other), await step(cell, one)] == ["MORE", "DELIVERED", "DUPLICATE"]
    assert await copies(cell, 6) == [["b1"]] * 6
    assert await copies(cell, 6, "low") == [[]] * 6
    assert [await cell.last_answer(caller) for caller in ("c1", "c2")] == ["ok", "ok"]
    assert await outcomes(cell) == dict.fromkeys(ids, (MessageStatus.DELIVERED, ""))
    assert await cell.left("in:messages:normal") == await cell.left("in:messages:low") == []


async def test_a_broadcast_that_no_router_has_continues_when_it_is_sent_again(cell: Cell) -> None:
    """Its entry was moved to ``dead:in`` in the middle: the same id goes on where it ended."""
    ids = await agents(cell, 6)
    first = await broadcast(cell)
    await freeze(cell, first, ids)
    await step(cell, first)
    await cell.redis.xack(cell.keys.of("in:messages:normal"), "router", first.entry)
    await cell.redis.xdel(cell.keys.of("in:messages:normal"), first.entry)
    again = await broadcast(cell)
    assert await freeze(cell, again, ids[::-1]) == "MORE"
    assert await deliver_all(cell, again) == "DELIVERED"
    assert await copies(cell, 6) == [["b1"]] * 6


async def test_a_crash_in_the_middle_of_a_broadcast_is_no_failed_try(cell: Cell) -> None:
    """Each step resets the number of tries of the entry, which would be moved to ``dead:in`` after three."""
    one = await broadcast(cell)
    await freeze(cell, one, await agents(cell, 9))
    key = cell.keys.of("in:messages:normal")
    await cell.redis.xclaim(key, "router", "w1", 0, [one.entry], retrycount=4)
    assert await step(cell, one) == "MORE"
    (pending,) = await cell.redis.xpending_range(key, "router", "-", "+", 1)
    assert pending["times_delivered"] == 1
    await deliver_all(cell, one)
