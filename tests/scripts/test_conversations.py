"""Conversations in ``deliver``: which messages belong together, and where a chain of answers and a budget end."""

from __future__ import annotations

import pytest

from coord import queries
from coord.models.messages import MessageRecord
from tests.scripts.cell import Cell
from workers.transitions import Redelivery


@pytest.fixture
async def two(cell: Cell) -> Cell:
    """A cell with the agents ``a1`` and ``a2``."""
    await cell.register("a1")
    await cell.register("a2")
    return cell


async def record(cell: Cell, message_id: str) -> MessageRecord:
    """The record of a message, which must be there."""
    found = await queries.get_message(cell.redis, cell.keys, message_id)
    assert found is not None
    return found


async def volley(cell: Cell, number: int, **options: str) -> str:
    """The message ``p{number}``, which answers the one before, from ``a1`` and ``a2`` in turn; the word."""
    sender, receiver = ("a1", "a2") if number % 2 == 0 else ("a2", "a1")
    earlier = {"reply_to": f"p{number - 1}"} if number else {}
    return await cell.deliver(f"p{number}", sender=sender, receiver=receiver, **earlier | options)


async def members(cell: Cell, conversation: str) -> list[str]:
    """The ids in the index of a conversation, in order."""
    return [raw.decode() for raw in await cell.redis.zrange(cell.keys.conversation(conversation), 0, -1)]


async def test_a_message_without_an_answer_has_no_index(two: Cell) -> None:
    """Most messages are not part of a conversation, and cost nothing for it."""
    await volley(two, 0)
    assert await two.redis.exists(two.keys.conversation("p0")) == 0
    found = await queries.get_conversation(two.redis, two.keys, "p0")
    assert found is not None
    assert [one.message_id for one in found.messages] == ["p0"]
    assert await queries.get_conversation(two.redis, two.keys, "p9") is None


async def test_answers_belong_to_the_conversation_of_the_first_message(two: Cell) -> None:
    """Its id names it, unless the first message names another; each record has its place in the chain."""
    for number in range(3):
        await volley(two, number)
    assert await members(two, "p0") == ["p0", "p1", "p2"]
    assert [(await record(two, f"p{n}")).hops for n in range(3)] == [0, 1, 2]
    assert (await record(two, "p2")).parent == "p1"
    assert 3_500_000 < await two.redis.pttl(two.keys.conversation("p0")) <= 3_660_000
    entry = (await two.stream("inbox:a2:normal"))[-1]
    assert (entry["correlation_id"], entry["hops"]) == ("p0", "2")
    of_member = await queries.get_conversation(two.redis, two.keys, "p2")
    assert of_member is not None
    assert (of_member.conversation_id, of_member.counted) == ("p0", 3)


async def test_a_named_conversation_begins_with_its_first_message(two: Cell) -> None:
    """A reply stays in it, whatever name it gives; what a handler sends joins it, unless it names another."""
    await two.deliver("m1", sender="a1", receiver="a2", correlation_id="talk")
    await two.deliver("m2", sender="a2", receiver="a1", reply_to="m1", correlation_id="other")
    await two.deliver("m3", sender="a2", receiver="a1", caused_by="m1")
    await two.deliver("m4", sender="a2", receiver="a1", caused_by="m1", correlation_id="new")
    assert await members(two, "talk") == ["m1", "m2", "m3"]
    assert await members(two, "new") == ["m4"]
    assert [(await record(two, f"m{n}")).hops for n in (1, 2, 3, 4)] == [0, 1, 1, 1]


async def test_a_storm_ends_at_the_hop_limit_with_its_path(two: Cell) -> None:
    """The seventeenth answer is a dead letter that shows who answered whom."""
    words = [await volley(two, number) for number in range(18)]
    assert words == ["DELIVERED"] * 17 + ["LOOP"]
    dead = await record(two, "p17")
    path = " > ".join(("a1", "a2")[n % 2] for n in range(19))
    assert dead.status == "dead"
    assert dead.reason == f"it is answer 17 in a chain of answers, and COORD_HOP_LIMIT is 16; path: {path}"
    assert await two.redis.zscore(two.keys.of("messages:dead"), "p17") is not None
    assert await volley(two, 18) == "LOOP"


@pytest.mark.guarantee("limits-of-conversations")
@pytest.mark.parametrize("leaves_out", ["caused_by", "reply_to", "names a root", "replies to a root"])
async def test_no_sender_can_shorten_its_chain(two: Cell, leaves_out: str) -> None:
    """⚠ Either field is enough, the deeper one counts, and another conversation does not restart the chain."""
    two.change_settings(hop_limit=2)
    await volley(two, 0)
    for number, expected in ((1, "DELIVERED"), (2, "DELIVERED"), (3, "LOOP")):
        before = f"p{number - 1}"
        options = {
            "caused_by": {"reply_to": before},
            "reply_to": {"reply_to": "", "caused_by": before, "correlation_id": f"c{number}"},
            "names a root": {"reply_to": before, "caused_by": "p0"},
            "replies to a root": {"reply_to": "p0", "caused_by": before},
        }[leaves_out]
        assert await volley(two, number, **options) == expected


@pytest.mark.guarantee("limits-of-conversations")
async def test_a_conversation_has_a_budget(two: Cell) -> None:
    """⚠ Also one without a chain, such as a fan-out; a dead letter shows the path, and other conversations go on."""
    two.change_settings(conversation_messages=3)
    words = [await two.deliver(f"m{n}", sender="a1", receiver="a2", correlation_id="talk") for n in range(5)]
    assert words == ["DELIVERED"] * 3 + ["OVER_BUDGET"] * 2
    assert (await record(two, "m3")).reason == (
        "conversation 'talk' has 3 messages, and COORD_CONVERSATION_MESSAGES is 3; path: a1 > a2"
    )
    assert await members(two, "talk") == ["m0", "m1", "m2"]
    assert await two.deliver("m9", sender="a1", receiver="a2", correlation_id="talk-2") == "DELIVERED"


async def test_a_dead_letter_is_part_of_its_conversation(two: Cell) -> None:
    """It is shown where it happened; a replay delivers it with its place."""
    await volley(two, 0)
    await two.deliver("m1", sender="a2", receiver="ghost", reply_to="p0", traceparent="00-1-2-00")
    assert await members(two, "p0") == ["p0", "m1"]
    await two.register("ghost")
    entry = await two.append("in:control:router", "message.replayed")
    assert await two.word(two.scripts.redeliver([Redelivery(entry, "", "m1", 60_000)])) == "DELIVERED"
    (delivered,) = await two.stream("inbox:ghost:normal")
    assert (delivered["hops"], delivered["traceparent"], delivered["correlation_id"]) == ("1", "00-1-2-00", "p0")


async def test_the_traceparent_is_passed_on(two: Cell) -> None:
    """Byte by byte; a message without one has no such field."""
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    await two.deliver("m1", sender="a1", receiver="a2", traceparent=parent)
    await two.deliver("m2", sender="a1", receiver="a2")
    first, second = await two.stream("inbox:a2:normal")
    assert first["traceparent"] == parent
    assert "traceparent" not in second
    assert (await record(two, "m1")).traceparent == parent
