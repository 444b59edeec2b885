"""Facts of which an agent awaits the answers, and its links: at a desk without a server, where the test answers."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

import pytest

from coord.agent.links import AgentLinks, LinkOrders, LinkRequest
from coord.agent.outgoing import Outgoing
from coord.client.answers import Answer, Answers
from coord.errors import ConfigError, CoordError, FactInvalid, IdInvalid, LinkDeclined, LinksFull, ResultTimeout
from coord.keys import Keys
from coord.redis_protocol import ErrorAnswer
from tests.agent.desk import FakeLink
from tests.waiting import wait_until

KEYS = Keys("t")


class Desk:
    """An agent's outgoing facts on a fake link."""

    def __init__(self) -> None:
        self.link = FakeLink()
        self.answers = Answers()
        self.outgoing = Outgoing("a", self.link, KEYS, self.answers)
        self.links = AgentLinks("a", lambda: self.outgoing)

    async def sent(self, name: bytes) -> list[bytes]:
        """Wait for the next command of this name; its arguments."""
        return (await wait_until(lambda: self.link.commands(name), f"{name!r} is sent"))[-1]

    async def answer_fact(self, entry: bytes, data: bytes = b"null", code: str = "") -> None:
        """Answer the next fact: Redis with its id, and the router."""
        await self.sent(b"XADD")
        self.link.answer(entry)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.answers.receive([("in:links", entry.decode())], Answer(not code, code, "why", data))


@pytest.fixture
async def desk() -> Desk:
    """An agent without a server."""
    return Desk()


def start(work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
    """Run something beside the test."""
    return asyncio.create_task(work)


async def test_a_change_is_done_when_it_is_answered(desk: Desk) -> None:
    """The answer names the fact by its stream and its entry; an error is raised as its class."""
    accepting = start(desk.links.accept("b"))
    await desk.answer_fact(b"1-0", b'{"state":"linked"}')
    assert await accepting is None
    full = start(desk.links.request("b"))
    await desk.answer_fact(b"2-0", code="links_full")
    with pytest.raises(LinksFull):
        await full


async def test_what_waits_ends_with_the_agent(desk: Desk) -> None:
    """And nothing begins after that."""
    waiting = start(desk.links.set_master("b"))
    await desk.sent(b"XADD")
    desk.outgoing.close()
    with pytest.raises(ConfigError, match="has stopped"):
        await waiting
    with pytest.raises(ConfigError, match="has stopped"):
        await desk.links.set_master(None)


async def test_an_answer_that_does_not_come(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    """The fact waits for a router; and a refusal of Redis is told."""
    monkeypatch.setattr("coord.agent.links.ANSWER_S", 0.01)
    with pytest.raises(ResultTimeout, match=r"no router answered within 0\.01 s"):
        await desk.links.remove("b")
    monkeypatch.setattr("coord.agent.links.ANSWER_S", 10.0)
    refused = start(desk.links.remove("b"))
    await asyncio.sleep(0)
    await desk.sent(b"XADD")
    desk.link.answer(ErrorAnswer("NOPERM no"))
    with pytest.raises(CoordError, match=r"may not XADD .*in:links: NOPERM"):
        await refused


@pytest.mark.parametrize(
    ("peer", "note", "error"), [("a b", "", IdInvalid), ("a", "", FactInvalid), ("b", "x" * 257, FactInvalid)]
)
async def test_a_bad_argument_is_not_sent(desk: Desk, peer: str, note: str, error: type[Exception]) -> None:
    """An id that is none, the agent itself, and a note that is too long."""
    with pytest.raises(error):
        await desk.links.request(peer, note=note)
    assert desk.link.sent == []


@pytest.mark.parametrize("is_accepted", [True, False])
async def test_connect_also_looks_by_itself(desk: Desk, monkeypatch: pytest.MonkeyPatch, is_accepted: bool) -> None:
    """⚠ An inbox without room gets no order, so the record is read again after a while."""
    monkeypatch.setattr("coord.agent.links.LOOK_S", 0.01)
    connecting = start(desk.links.connect("b", timeout=20))
    await desk.answer_fact(b"1-0", b'{"state":"requested"}')
    await desk.sent(b"HGET")
    desk.link.answer(b"requested 1 agent")
    await asyncio.sleep(0)
    await desk.sent(b"HGET")
    desk.link.answer(b"linked 2 agent" if is_accepted else None)
    if is_accepted:
        await connecting
    else:
        with pytest.raises(LinkDeclined):
            await connecting


async def test_a_handler_that_fails_leaves_the_request_open(desk: Desk) -> None:
    """Its order is deleted, and nothing is decided; it is called once however often the order is read."""
    called: list[LinkRequest] = []

    async def decide(request: LinkRequest) -> bool:
        called.append(request)
        raise RuntimeError("undecided")

    orders = LinkOrders(desk.links, desk.link, ["inbox"], decide)
    for _ in range(2):
        orders.receive(0, b"1-0", {b"agent_id": b"b", b"change": b"requested", b"note": b"hi"})
    assert await desk.sent(b"XDEL") == [b"inbox", b"1-0"]
    assert called == [LinkRequest("b", "hi")]
    assert desk.link.commands(b"XADD") == []
    await orders.close()


async def test_a_handler_that_decides_nothing_leaves_it_open_as_well(desk: Desk) -> None:
    """None; and orders of other changes are deleted at once."""

    async def decide(_request: LinkRequest) -> None:
        return None

    orders = LinkOrders(desk.links, desk.link, ["inbox"], decide)
    orders.receive(0, b"1-0", {b"agent_id": b"b", b"change": b"requested"})
    orders.receive(0, b"2-0", {b"agent_id": b"b", b"change": b"removed"})
    await wait_until(lambda: len(desk.link.commands(b"XDEL")) == 2, "both are deleted")
    assert desk.link.commands(b"XADD") == []
    await orders.close()
