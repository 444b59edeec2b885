"""Requests in ``deliver`` and ``end_requests``: a deadline on a clock of its own, and its end."""

from __future__ import annotations

import json
from typing import Any

import pytest
from msgspec.structs import replace

from coord import queries
from coord.models.cell import Memory
from coord.models.messages import MessageRecord
from tests.scripts.cell import START, Cell
from tests.scripts.test_broadcast import broadcast, freeze
from tests.scripts.test_prune import prune
from tests.scripts.test_purge import purge

WAIT_MS = 5_000


async def record(cell: Cell, message_id: str = "q1") -> MessageRecord:
    """The record of a message, which must be there."""
    found = await queries.get_message(cell.redis, cell.keys, message_id)
    assert found is not None
    return found


async def request(cell: Cell, message_id: str = "q1", **options: Any) -> str:
    """Deliver a request of the agent ``a1`` to ``a2`` that waits for five seconds; the word."""
    wanted: dict[str, Any] = {"sender": "a1", "receiver": "a2", "reply_by_ms": WAIT_MS}
    return await cell.deliver(message_id, **wanted | options)


async def reply(cell: Cell, message_id: str = "r1", **options: Any) -> str:
    """Deliver the reply of ``a2`` to ``q1``; the word."""
    wanted: dict[str, Any] = {"sender": "a2", "receiver": "a1", "reply_to": "q1"}
    return await cell.deliver(message_id, **wanted | options)


async def waiting(cell: Cell) -> set[str]:
    """The ids of the requests that wait."""
    return {raw.decode() for raw in await cell.redis.zrange(cell.keys.of("requests"), 0, -1)}


@pytest.fixture
async def two(cell: Cell) -> Cell:
    """A cell with the agents ``a1`` and ``a2``."""
    await cell.register("a1")
    await cell.register("a2")
    return cell


async def test_a_request_waits_until_its_reply_is_delivered(two: Cell) -> None:
    """Its record has no TTL while it waits, and one when the reply is in the requester's inbox."""
    assert await request(two) == "DELIVERED"
    (entry,) = await two.stream("inbox:a2:normal")
    assert entry["reply_by"] == str(START + WAIT_MS)
    assert await waiting(two) == {"q1"}
    assert await two.redis.pttl(two.keys.message("q1")) == -1

    assert await reply(two) == "DELIVERED"
    (answer,) = await two.stream("inbox:a1:normal")
    assert (answer["reply_to"], answer["correlation_id"], answer["hops"]) == ("q1", "q1", "1")
    assert "late" not in answer
    assert (await record(two)).request == "answered"
    assert await waiting(two) == set()
    assert await two.redis.pttl(two.keys.message("q1")) > 3_500_000
    two.now += 2 * WAIT_MS
    assert await two.end_requests() == []


@pytest.mark.guarantee("requests-end")
async def test_silence_ends_in_the_requesters_inbox(two: Cell) -> None:
    """With the last known state of the receiver; once, as an event too; and the reply that comes then is late."""
    await request(two)
    two.now += WAIT_MS - 1
    assert await two.end_requests() == []
    two.now += 1
    assert await two.end_requests() == ["TIMED_OUT"]
    (entry,) = await two.stream("inbox:a1:normal")
    assert (entry["id"], entry["sender_id"], entry["reply_to"], entry["failed"]) == (
        "q1.timeout",
        "coordinator",
        "q1",
        "1",
    )
    told = json.loads(entry["data"])
    assert told == {
        "code": "request_timed_out",
        "message": "agent 'a2' did not reply within 5 s; its status is active",
        "receiver": {"agent_id": "a2", "status": "active", "last_heartbeat": START, "inbox": 1},
    }
    assert (await record(two)).request == "timed_out"
    assert (await record(two, "q1.timeout")).parent == "q1"
    assert "request.timed_out" in await two.logged("messages")
    assert await two.counter("requests_timed_out") == 1
    assert await two.end_requests() == []

    assert await reply(two) == "DELIVERED"
    assert [one.get("late") for one in await two.stream("inbox:a1:normal")] == [None, "1"]
    assert (await record(two, "r1")).late
    assert (await record(two)).request == "timed_out"


async def test_the_state_of_a_receiver_that_left_is_told(two: Cell) -> None:
    """Since when it is away; and ``unknown`` once its record is gone."""
    await request(two)
    await two.deregister("a2")
    left_at = two.now
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT"]
    (entry,) = await two.stream("inbox:a1:normal")
    state = json.loads(entry["data"])["receiver"]
    assert (state["status"], state["since"]) == ("inactive", left_at)

    await two.register("a2", incarnation="i2")
    await request(two, "q2", digest="d2")
    await two.deregister("a2", incarnation="i2")
    assert (await prune(two, 0))["pruned"] == 1
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT"]
    entry = (await two.stream("inbox:a1:normal"))[-1]
    assert json.loads(entry["data"])["receiver"]["status"] == "unknown"


@pytest.mark.guarantee("undeliverable-requests")
@pytest.mark.parametrize(
    ("options", "word", "code"),
    [
        ({"receiver": "ghost"}, "UNKNOWN", "agent_not_found"),
        ({"ttl_ms": 0}, "EXPIRED", "message_expired"),
    ],
)
async def test_an_undeliverable_request_is_answered_at_once(
    two: Cell, options: dict[str, Any], word: str, code: str
) -> None:
    """Into the inbox of the requester, with the reason; nothing waits."""
    assert await request(two, **options) == word
    (entry,) = await two.stream("inbox:a1:normal")
    told = json.loads(entry["data"])
    assert (entry["id"], entry["failed"], told["code"]) == ("q1.refused", "1", code)
    assert told["message"] == (await record(two)).reason
    assert (await record(two)).request == "refused"
    assert await waiting(two) == set()


async def test_a_request_of_nobody_who_gets_the_reply_is_dead(two: Cell) -> None:
    """Its sender is no agent, and no client that reads its replies."""
    assert await request(two, sender="ghost") == "UNKNOWN"
    assert (await record(two)).reason == "Agent 'ghost' not found, which is to get the reply"
    assert await two.stream("inbox:a2:normal") == []


async def test_a_client_gets_the_reply_among_its_replies(two: Cell) -> None:
    """Also the timeout; nobody else can send a message there."""
    assert await request(two, sender="c1", caller="c1") == "DELIVERED"
    assert await request(two, "q2", sender="c1", caller="c1", digest="d2") == "DELIVERED"
    assert await reply(two, receiver="c1") == "DELIVERED"
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT"]
    got = [one for one in await two.stream("replies:c1") if one["type"] == "message.received"]
    assert [(one["id"], one["reply_to"]) for one in got] == [("r1", "q1"), ("q2.timeout", "q2")]
    assert await reply(two, "r2", receiver="c1", reply_to="", digest="d3") == "UNKNOWN"
    assert await reply(two, "r3", receiver="c2", digest="d4") == "UNKNOWN"


@pytest.mark.guarantee("replies-by-the-receiver")
async def test_only_the_receiver_of_a_request_ends_it(two: Cell) -> None:
    """⚠ A message of another sender that names the request is a message like any other, and no client gets it."""
    await two.register("a3")
    await request(two)
    await request(two, "q2", sender="c1", caller="c1", digest="d2")
    assert await reply(two, "x1", sender="a3") == "DELIVERED"
    assert await reply(two, "x2", sender="a3", receiver="c1", reply_to="q2", digest="d3") == "UNKNOWN"
    assert await waiting(two) == {"q1", "q2"}
    assert await reply(two) == "DELIVERED"
    assert await reply(two, "r2", receiver="c1", reply_to="q2", digest="d4") == "DELIVERED"
    assert await waiting(two) == set()
    assert [one["id"] for one in await two.stream("replies:c1") if one["type"] == "message.received"] == ["r2"]


@pytest.mark.parametrize("id_length", [2, 128])
async def test_only_the_receiver_of_a_request_uses_the_id_of_its_reply(two: Cell, id_length: int) -> None:
    """Another message under it, also a broadcast, would hide the reply."""
    await two.register("a3")
    request_id = "q" * id_length
    reply_id = request_id[: 128 - len(".reply")] + ".reply"
    assert await request(two, request_id) == "DELIVERED"
    wanted: dict[str, Any] = {"receiver": "a1", "reply_to": request_id, "caller": "c1"}
    for sender in ("a3", "a1"):
        assert await two.deliver(reply_id, sender=sender, **wanted) == "CONFLICT"
    assert await two.last_answer("c1") == "id_conflict"
    if id_length == 2:
        taken = replace(await broadcast(two), message_id=reply_id, sender_id="a3", caller="c2")
        assert await freeze(two, taken, ["a1"]) == "CONFLICT"
        assert await two.last_answer("c2") == "id_conflict"
    assert await reply(two, reply_id, reply_to=request_id) == "DELIVERED"
    assert await reply(two, reply_id, reply_to=request_id) == "DUPLICATE"
    assert (await record(two, request_id)).request == "answered"


async def test_a_request_whose_reply_id_is_in_use_is_refused(two: Cell) -> None:
    """Its reply would be lost; a message that is no request may have any id."""
    assert await two.deliver("q1.reply", sender="a3", receiver="a1") == "DELIVERED"
    assert await request(two, caller="c1") == "CONFLICT"
    assert await two.last_answer("c1") == "id_conflict"
    assert await two.deliver("q1", sender="a1", receiver="a2") == "DELIVERED"
    assert await request(two, "q2") == "DELIVERED"


@pytest.mark.guarantee("replies-by-the-receiver")
async def test_an_answer_of_the_coordinator_never_replaces_another_message(two: Cell) -> None:
    """⚠ Somebody has used the id that it would have; and nobody can use it afterwards."""
    assert await two.deliver("q1.timeout", receiver="nobody") == "UNKNOWN"
    await request(two)
    await request(two, "q2", digest="d2")
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT", "TIMED_OUT"]
    answers = {one["reply_to"]: one["id"] for one in await two.stream("inbox:a1:normal")}
    assert answers["q2"] == "q2.timeout"
    assert answers["q1"] not in {"q1.timeout", "q2.timeout"}
    assert ((await record(two, "q1.timeout")).sender_id, (await record(two, "q1.timeout")).status) == ("s1", "dead")
    assert (await record(two, answers["q1"])).parent == "q1"
    assert await two.deliver("q2.timeout", receiver="a2") == "CONFLICT"
    assert (await record(two, "q2.timeout")).sender_id == "coordinator"


async def test_the_coordinator_answers_itself(two: Cell) -> None:
    """With what its worker found; no inbox of an agent ``coordinator`` is needed."""
    options: dict[str, Any] = {"receiver": "coordinator", "result": b'{"agents":[]}'}
    assert await request(two, **options) == "DELIVERED"
    (entry,) = await two.stream("inbox:a1:normal")
    assert (entry["id"], entry["data"], entry["reply_to"]) == ("q1.answer", '{"agents":[]}', "q1")
    assert "failed" not in entry
    assert (await record(two)).request == "answered"
    assert await request(two, "q2", sender="ghost", digest="d2", **options) == "UNKNOWN"


@pytest.mark.guarantee("replies-in-time")
async def test_the_clock_stands_still_while_no_router_works(two: Cell) -> None:
    """After an absence it goes on by half a second, and waits for agents that reconnect."""
    await request(two)
    two.now += 60_000
    assert await two.end_requests(absent=True) == []
    two.now += 1_500
    assert await two.end_requests(absent=True) == []
    two.now += WAIT_MS - 500
    assert await two.end_requests() == ["TIMED_OUT"]


@pytest.mark.guarantee("replies-in-time")
async def test_the_clock_does_not_pass_a_reply_that_waits_to_be_read(two: Cell) -> None:
    """⚠ A reply that was sent in time counts, whenever it is read."""
    await request(two)
    two.now += WAIT_MS - 10
    waits = await two.delivery("r1", sender="a2", receiver="a1", reply_to="q1")
    two.now += 40_000
    for _ in range(3):
        assert await two.end_requests() == []
    assert await two.run(two.scripts.deliver([waits])) == ["DELIVERED"]
    assert "late" not in (await two.stream("inbox:a1:normal"))[0]
    assert await two.end_requests() == []


async def test_an_idle_time_without_requests_does_not_lengthen_the_next_wait(two: Cell) -> None:
    """⚠ The clock stands still while none waits; it is no absence."""
    await request(two)
    await reply(two)
    two.now += 3_600_000
    await request(two, "q2", digest="d2")
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT"]


@pytest.mark.guarantee("replies-in-time")
async def test_a_clock_that_was_set_back_ends_requests_all_the_same(two: Cell) -> None:
    """The server's time is set back by an hour."""
    await request(two)
    await two.end_requests()
    two.now -= 3_600_000
    assert await two.end_requests(absent=True) == []
    two.now += WAIT_MS
    assert await two.end_requests() == ["TIMED_OUT"]


@pytest.mark.guarantee("requests-end")
async def test_a_full_inbox_hears_no_timeout(two: Cell) -> None:
    """The request has ended; its record and the log say so."""
    two.change_settings(inbox_entries=1)
    await request(two)
    await two.deliver("m1", receiver="a1")
    two.now += WAIT_MS
    assert await two.end_requests() == ["UNHEARD"]
    assert (await record(two)).request == "timed_out"
    assert await waiting(two) == set()


@pytest.mark.guarantee("requests-end")
@pytest.mark.parametrize("how", ["purged", "purged by age", "too old", "memory"])
async def test_a_request_whose_dead_letter_is_removed_ends_all_the_same(two: Cell, how: str) -> None:
    """⚠ It expired unread, and its dead letter goes before the wait ends: the requester gets its timeout."""
    assert await request(two, ttl_ms=100, reply_by_ms=8 * 86_400_000) == "DELIVERED"
    two.now += 3_000
    assert await two.expire_messages() == (1, 1)
    assert (await record(two)).status == "expired"
    if how == "memory":
        relief = await two.run(two.scripts.relieve(memory=Memory(1_000, 1_000)))
        assert relief.letters == 1
    elif how == "too old":
        two.now += 7 * 86_400_000
        await two.run(two.scripts.deliver([]))
    else:
        assert (
            await purge(two, "messages", "q1" if how == "purged" else "", age_ms=None if how == "purged" else 0) == "OK"
        )
    assert await two.redis.zcard(two.keys.of("messages:dead")) == 0
    two.now += 8 * 86_400_000
    assert await two.end_requests() == ["TIMED_OUT"]
    assert [one["id"] for one in await two.stream("inbox:a1:normal")] == ["q1.timeout"]
    assert await two.redis.pttl(two.keys.message("q1")) > 0


@pytest.mark.guarantee("requests-end")
async def test_a_broken_record_does_not_hold_up_the_others(two: Cell) -> None:
    """It is tried again in a minute."""
    await request(two)
    await request(two, "q2", digest="d2")
    two.broken = True
    await two.redis.delete(two.keys.message("q1"))
    await two.redis.sadd(two.keys.message("q1"), "x")
    two.now += WAIT_MS
    words = await two.end_requests()
    assert sorted(word.split()[0] for word in words) == ["ERROR", "TIMED_OUT"]
    assert await two.end_requests() == []
    assert await waiting(two) == {"q1"}
    await two.redis.delete(two.keys.message("q1"))
    two.now += 60_000
    assert await two.end_requests() == ["GONE"]
