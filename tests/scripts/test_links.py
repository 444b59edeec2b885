"""``change_links`` and the rules of the protocols: who may write to whom, and who is told."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.scripts.cell import DAY, START, Cell


@pytest.fixture
async def trio(cell: Cell) -> Cell:
    """A cell with the agents a, b and c."""
    for agent in ("a", "b", "c"):
        await cell.register(agent)
    return cell


async def links(cell: Cell, agent: str) -> dict[str, str]:
    """The links of an agent: the other one -> state."""
    raw = await cell.redis.hgetall(cell.keys.links(agent))
    return {other.decode(): value.decode().split()[0] for other, value in raw.items()}


async def masters(cell: Cell) -> dict[str, str]:
    """The masters, which the sets of subordinates must mirror."""
    raw = await cell.redis.hgetall(cell.keys.of("masters"))
    found = {agent.decode(): master.decode() for agent, master in raw.items()}
    for master in set(found.values()):
        members = {one.decode() for one in await cell.redis.smembers(cell.keys.subordinates(master))}
        assert members == {agent for agent, above in found.items() if above == master}
    return found


async def changes(cell: Cell, agent: str) -> list[tuple[str, str, str]]:
    """The orders that tell an agent of its links: the other one, the change, the note."""
    entries = await cell.stream(f"inbox:{agent}:critical")
    return [(one["agent_id"], one["change"], one["note"]) for one in entries if one.get("order") == "link_changed"]


async def data(cell: Cell) -> Any:
    """The data of the last answer."""
    return json.loads((await cell.stream("replies:c1"))[-1]["data"])


@pytest.mark.guarantee("protocols")
@pytest.mark.on_fakeredis
async def test_a_link_needs_the_consent_of_both(trio: Cell) -> None:
    """A request waits; the other agent finds it in its inbox, accepts, and the first one learns of it."""
    assert await trio.change_links("request", "a", "b", note="to compare results") == "OK"
    assert await data(trio) == {"state": "requested"}
    assert (await links(trio, "a"), await links(trio, "b")) == ({"b": "requested"}, {"a": "asked"})
    assert await changes(trio, "b") == [("a", "requested", "to compare results")]
    assert await trio.deliver("m1", sender="a", receiver="b", protocol="peer_to_peer", caller="c1") == "FORBIDDEN"
    assert await trio.last_answer() == "not_linked"

    assert await trio.change_links("accept", "b", "a") == "OK"
    assert await data(trio) == {"state": "linked"}
    assert (await links(trio, "a"), await links(trio, "b")) == ({"b": "linked"}, {"a": "linked"})
    assert await changes(trio, "a") == [("b", "accepted", "")]
    for sender, receiver in (("a", "b"), ("b", "a")):
        sent = await trio.deliver(f"{sender}-2", sender=sender, receiver=receiver, protocol="peer_to_peer")
        assert sent == "DELIVERED"
    (entry,) = await trio.stream("inbox:b:normal")
    assert (entry["message_type"], entry["protocol"]) == ("peer_to_peer", "peer_to_peer")
    assert await trio.is_consumed("in:links")


async def test_a_refusal_names_the_rule_and_the_next_step(trio: Cell) -> None:
    """It is a dead letter, and becomes deliverable when the link is accepted."""
    reasons = []
    for n, step in enumerate((None, ("request", "a", "b"), ("remove", "a", "b"), ("request", "b", "a"))):
        if step:
            await trio.change_links(*step)
        assert await trio.deliver(f"m{n}", sender="a", receiver="b", protocol="peer_to_peer") == "FORBIDDEN"
        reasons.append((await trio.redis.hget(trio.keys.message(f"m{n}"), "reason")).decode())
    rule = "protocol peer_to_peer: agents 'a' and 'b' are not linked; "
    assert reasons == [
        f"{rule}request a link first, and send when it is accepted",
        f"{rule}'b' has not accepted the request yet",
        f"{rule}request a link first, and send when it is accepted",
        f"{rule}accept the request of 'b' first",
    ]
    assert await trio.redis.zcard(trio.keys.of("messages:dead")) == 4
    assert await trio.stream("inbox:b:normal") == []


@pytest.mark.guarantee("hierarchy")
async def test_each_change_has_one_effect(trio: Cell) -> None:
    """⚠ A repeated fact changes nothing and tells nobody again."""
    for kind, agent, other in (("request", "a", "b"), ("accept", "b", "a"), ("remove", "a", "b")):
        assert await trio.change_links(kind, agent, other) == "OK"
        before = await trio.dump()
        assert await trio.change_links(kind, agent, other) == "SAME"
        assert await trio.dump() == before
    assert await changes(trio, "b") == [("a", "requested", ""), ("a", "removed", "")]


async def test_two_requests_are_a_link(trio: Cell) -> None:
    """Both have said that they want it."""
    await trio.change_links("request", "a", "b")
    assert await trio.change_links("request", "b", "a") == "OK"
    assert await links(trio, "a") == {"b": "linked"}


async def test_what_was_not_requested_cannot_be_accepted(trio: Cell) -> None:
    """Not even by the agent that requests it itself; and nobody is linked with a stranger."""
    assert await trio.change_links("accept", "b", "a") == "NOT_REQUESTED"
    await trio.change_links("request", "a", "b")
    assert await trio.change_links("accept", "a", "b") == "NOT_REQUESTED"
    assert await trio.last_answer() == "link_not_requested"
    for pair in (("a", "ghost"), ("ghost", "a")):
        assert await trio.change_links("request", *pair) == "UNKNOWN"
        assert await trio.last_answer() == "agent_not_found"
    await trio.deregister("c")
    assert await trio.change_links("request", "a", "c") == "LEFT"
    assert await trio.last_answer() == "agent_left"


async def test_an_operator_needs_no_consent(trio: Cell) -> None:
    """Both agents are told, also of the end."""
    assert await trio.change_links("link", "a", "b", by_operator=True) == "OK"
    assert await trio.deliver(sender="b", receiver="a", protocol="peer_to_peer") == "DELIVERED"
    assert await trio.change_links("remove", "b", "a", by_operator=True) == "OK"
    assert await changes(trio, "a") == [("b", "accepted", ""), ("b", "removed", "")]
    assert await changes(trio, "b") == [("a", "accepted", ""), ("a", "removed", "")]
    assert await trio.deliver("m2", sender="b", receiver="a", protocol="peer_to_peer") == "FORBIDDEN"
    assert await trio.is_consumed("in:control:router")


async def test_a_hierarchy_has_one_master_and_no_cycle(trio: Cell) -> None:
    """A new master replaces the old one; an agent below cannot be above."""
    assert await trio.change_links("set_master", "b", "a") == "OK"
    assert await data(trio) == {"master": "a"}
    assert await trio.change_links("set_master", "b", "a") == "SAME"
    assert await trio.change_links("set_master", "c", "b") == "OK"
    assert await trio.change_links("set_master", "a", "c") == "CYCLE"
    assert await trio.last_answer() == "hierarchy_cycle"
    assert await masters(trio) == {"b": "a", "c": "b"}
    assert await trio.change_links("set_master", "c", "a") == "OK"
    assert await masters(trio) == {"b": "a", "c": "a"}
    assert await trio.change_links("clear_master", "c") == "OK"
    assert await data(trio) == {"master": None}
    assert await trio.change_links("clear_master", "c") == "SAME"
    assert await masters(trio) == {"b": "a"}


@pytest.mark.parametrize(
    ("sender", "receiver", "word"),
    [
        ("a", "b", "DELIVERED"),
        ("b", "a", "DELIVERED"),
        ("b", "c", "FORBIDDEN"),
        ("c", "a", "FORBIDDEN"),
        ("a", "c", "FORBIDDEN"),
    ],
)
async def test_the_hierarchy_allows_one_step(trio: Cell, sender: str, receiver: str, word: str) -> None:
    """From a master to its subordinate and back: not between equals, and not two steps up or down."""
    await trio.change_links("set_master", "b", "a")
    await trio.register("between")
    await trio.change_links("set_master", "between", "a")
    await trio.change_links("set_master", "c", "between")
    sent = await trio.deliver(sender=sender, receiver=receiver, protocol="hierarchical", caller="c1")
    assert sent == word
    assert await trio.last_answer() == ("ok" if word == "DELIVERED" else "not_in_hierarchy")


@pytest.mark.guarantee("subordinates-once")
async def test_a_message_to_all_subordinates(trio: Cell) -> None:
    """Each has a copy at one moment; the receipt and the record say to whom it went, and who did not get it."""
    assert await trio.deliver("m0", sender="a", receiver="subordinates", protocol="hierarchical") == "FORBIDDEN"
    for agent in ("b", "c"):
        await trio.change_links("set_master", agent, "a")
    await trio.register("left")
    await trio.change_links("set_master", "left", "a")
    await trio.deregister("left")
    options: dict[str, Any] = {"sender": "a", "receiver": "subordinates", "protocol": "hierarchical"}
    assert await trio.deliver("m1", **options, receipt=True, caller="c1") == "DELIVERED"
    assert await data(trio) == {
        "count": 2,
        "recipients": [
            {"agent_id": "b", "state": "active", "ahead": 0},
            {"agent_id": "c", "state": "active", "ahead": 0},
            {"agent_id": "left", "code": "agent_left"},
        ],
    }
    entries = [(await trio.stream(f"inbox:{agent}:normal"))[0] for agent in ("b", "c")]
    assert [(one["id"], one["receiver_id"]) for one in entries] == [("m1", "b"), ("m1", "c")]
    assert await trio.deliver("m1", **options) == "DUPLICATE"
    assert len(await trio.stream("inbox:b:normal")) == 1
    ttls = [await trio.redis.pttl(key) for key in (trio.keys.message("m1"), trio.keys.copies("m1"))]
    assert 3_600_000 < min(ttls) <= max(ttls) <= 3_660_000


async def test_a_message_to_all_that_none_can_get_is_a_dead_letter(trio: Cell) -> None:
    """It can be replayed when one is back."""
    await trio.change_links("set_master", "b", "a")
    await trio.deregister("b")
    options: dict[str, Any] = {"sender": "a", "receiver": "subordinates", "protocol": "hierarchical"}
    assert await trio.deliver("m1", **options, caller="c1") == "LEFT"
    assert await trio.last_answer() == "agent_left"
    reason = await trio.redis.hget(trio.keys.message("m1"), "reason")
    assert reason.startswith(b"none of its 1 recipients could get it; of the last one: ")
    assert await trio.redis.exists(trio.keys.copies("m1")) == 0


@pytest.mark.guarantee("subordinates-once")
async def test_a_broken_inbox_doubles_no_copy(trio: Cell) -> None:
    """⚠ All inboxes are checked before the first copy is written, so a retry doubles none."""
    for agent in ("b", "c"):
        await trio.change_links("set_master", agent, "a")
    await trio.redis.set(trio.keys.inbox("c", "normal"), "x")
    sent = await trio.delivery("m1", sender="a", receiver="subordinates", protocol="hierarchical")
    assert (await trio.word(trio.scripts.deliver([sent]))).startswith("ERROR ")
    assert await trio.stream("inbox:b:normal") == []
    await trio.redis.delete(trio.keys.inbox("c", "normal"))
    assert await trio.word(trio.scripts.deliver([sent])) == "DELIVERED"
    assert [len(await trio.stream(f"inbox:{agent}:normal")) for agent in ("b", "c")] == [1, 1]


async def test_links_are_limited(trio: Cell, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links and requests of an agent, its subordinates, the depth of a hierarchy, and requests to a full inbox."""
    names = ("LINKS_PER_AGENT", "SUBORDINATES_PER_AGENT", "HIERARCHY_DEPTH")
    for name in names:
        monkeypatch.setattr(f"workers.transitions.scripts.{name}", 1)
    await trio.change_links("request", "a", "b")
    for kind, pair, by_operator in (("request", ("a", "c"), False), ("link", ("c", "b"), True)):
        assert await trio.change_links(kind, *pair, by_operator=by_operator) == "FULL"
        assert await trio.last_answer() == "links_full"
    await trio.change_links("set_master", "b", "a")
    assert await trio.change_links("set_master", "c", "a") == "FULL"
    assert await trio.change_links("set_master", "c", "b") == "FULL"
    monkeypatch.undo()
    trio.change_settings(inbox_entries=1)
    assert await trio.change_links("request", "c", "b") == "FULL"
    assert await trio.last_answer() == "message_undeliverable"
    assert await links(trio, "c") == {}


@pytest.mark.guarantee("hierarchy")
async def test_links_end_with_the_record_of_an_agent(trio: Cell) -> None:
    """They outlive a restart; an agent of the same id that comes later has none."""
    await trio.change_links("link", "a", "b", by_operator=True)
    await trio.change_links("set_master", "b", "a")
    await trio.change_links("set_master", "a", "c")
    await trio.deregister("a")
    assert await links(trio, "b") == {"a": "linked"}
    trio.now = START + 31 * DAY
    await trio.run(trio.scripts.tick_liveness())
    assert not await trio.redis.exists(trio.keys.agent("a"))
    found = [key async for key in trio.redis.scan_iter(match=f"{trio.keys.prefix}*")]
    assert not [key for key in found if b":links:" in key or b":subordinates:" in key or key.endswith(b":masters")]
