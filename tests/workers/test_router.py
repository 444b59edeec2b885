"""The router at work: messages reach their receiver's lane in order, and what cannot is a dead letter with a reason."""

from __future__ import annotations

import json

import pytest
from msgspec import Struct

from coord import queries
from coord.models.facts import (
    LinkAccepted,
    LinkMade,
    LinkRemoved,
    LinkRequested,
    MasterCleared,
    MasterSet,
    MessageSent,
)
from coord.models.messages import MessageStatus, Protocol
from coord.models.tasks import Lane
from coord.streams import Append, append
from tests.ledger import assert_keys_end
from tests.running import RunningCell
from tests.workers.raw import Caller, await_quiet, buried, entries, fleet


@pytest.mark.guarantee("order-of-delivery")
@pytest.mark.parametrize("lane", list(Lane))
async def test_messages_arrive_in_order_on_their_lane(cell: RunningCell, caller: Caller, lane: Lane) -> None:
    """A sender's messages to a receiver lie in the lane of their priority in the order in which they were sent."""
    await fleet(cell, 1)
    ids = [f"m{number}" for number in range(600)]
    sent = [MessageSent(message_id=one, sender_id="s", receiver_id="a0", correlation_id="c") for one in ids]
    appended = await append(cell.redis, cell.keys, [Append(f"in:messages:{lane}", one, caller.id) for one in sent])
    assert (await caller.answer(appended[-1]))["ok"] == "1"
    found = [fields for _, fields in await entries(cell.redis, cell.keys.inbox("a0", lane))]
    assert [one[b"id"].decode() for one in found] == ids
    assert {(one[b"priority"].decode(), one[b"correlation_id"]) for one in found} == {(lane.value, b"c")}


@pytest.mark.guarantee("message-once")
async def test_the_same_message_twice_is_one(cell: RunningCell, caller: Caller) -> None:
    """The same id is answered ok and not delivered again; with other content it is a conflict."""
    await fleet(cell, 1)
    message = MessageSent(message_id="m1", sender_id="s", receiver_id="a0")
    for _ in range(2):
        assert (await caller.answer(await caller.tell("in:messages:low", message)))["ok"] == "1"
    other = MessageSent(message_id="m1", sender_id="s2", receiver_id="a0")
    assert (await caller.answer(await caller.tell("in:messages:low", other)))["code"] == "id_conflict"
    assert len(await entries(cell.redis, cell.keys.inbox("a0", "low"))) == 1


@pytest.mark.guarantee("undeliverable-messages")
async def test_a_message_to_nobody_and_one_that_came_too_late_are_dead(cell: RunningCell, caller: Caller) -> None:
    """Both are recorded with a reason, listed among the dead, and their sender is told."""
    await fleet(cell, 1)
    (router,) = cell.of_kind("router")
    nobody = await caller.tell("in:messages:low", MessageSent(message_id="m1", sender_id="s", receiver_id="none"))
    assert (await caller.answer(nobody))["code"] == "agent_not_found"
    await router.stop()
    late = await caller.tell(
        "in:messages:low", MessageSent(message_id="m2", sender_id="s", receiver_id="a0", ttl=0.001)
    )
    await cell.add("router")
    assert (await caller.answer(late))["code"] == "message_expired"
    for one, status in (("m1", MessageStatus.DEAD), ("m2", MessageStatus.EXPIRED)):
        found = await queries.get_message(cell.redis, cell.keys, one)
        assert found is not None
        assert found.status is status
        assert found.reason
    for one in ("m1", "m2"):
        assert await cell.redis.zscore(cell.keys.of("messages:dead"), one) is not None
    await await_quiet(cell)
    await assert_keys_end(cell.redis, cell.keys)


async def test_a_message_that_contradicts_itself_is_refused(cell: RunningCell, caller: Caller) -> None:
    """Its type names another protocol, or its protocol does not know all subordinates: buried, and its sender told."""
    for contradiction in (
        '"receiver_id":"a0","message_type":"peer_to_peer","protocol":"hierarchical"',
        '"receiver_id":"subordinates"',
    ):
        data = f'{{"message_id":"m1","sender_id":"s",{contradiction}}}'.encode()
        entry = await caller.raw("in:messages:high", {"type": "message.sent", "data": data, "caller": caller.id})
        assert "protocol" in (await caller.answer(entry))["message"]
    assert len(await buried(cell)) == 2


async def test_links_and_masters_are_changed(cell: RunningCell, caller: Caller) -> None:
    """By agents and by operators, in the order of the facts; each is answered with the new state."""
    await fleet(cell, 2)
    facts: list[tuple[str, Struct, dict[str, str | None]]] = [
        ("in:links", LinkRequested("a0", "a1", "please"), {"state": "requested"}),
        ("in:links", LinkAccepted("a1", "a0"), {"state": "linked"}),
        ("in:links", MasterSet("a1", "a0"), {"master": "a0"}),
        ("in:control:router", LinkRemoved("a0", "a1"), {"state": "none"}),
        ("in:control:router", LinkMade("a0", "a1"), {"state": "linked"}),
        ("in:control:router", MasterCleared("a1"), {"master": None}),
    ]
    for stream, fact, expected in facts:
        answer = await caller.answer(await caller.tell(stream, fact), stream)
        assert json.loads(answer["data"]) == expected, fact


async def test_a_message_to_many_is_handled_alone(cell: RunningCell, caller: Caller) -> None:
    """⚠ The messages before and after it in a batch keep their places."""
    await fleet(cell, 2)
    (router,) = cell.of_kind("router")
    await caller.answer(await caller.tell("in:links", MasterSet("a1", "a0")))
    await router.stop()
    sent = [
        MessageSent(message_id=f"m{n}", sender_id="a0", receiver_id=receiver, protocol=Protocol.HIERARCHICAL)
        for n, receiver in enumerate(["a1", "subordinates", "a1", "subordinates", "a1"])
    ]
    for fact in sent:
        await caller.tell("in:messages:normal", fact)
    await cell.add("router")
    await await_quiet(cell)
    found = await entries(cell.redis, cell.keys.inbox("a1", "normal"))
    assert [fields[b"id"] for _, fields in found] == [b"m0", b"m1", b"m2", b"m3", b"m4"]
