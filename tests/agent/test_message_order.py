"""Messages of several senders: which are handled concurrently, and in which order. The test plays the coordinator."""

from __future__ import annotations

import asyncio
import threading
import time
from typing import Any

import pytest

from coord import Agent, Message
from coord.agent.messages import Mailbox, WaitingMessage
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import FactInvalid
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


def in_a_minute() -> int:
    """Ms since 1970."""
    return int(time.time() * 1000) + 60_000


@pytest.mark.guarantee("handlers-that-wait")
async def test_a_handler_that_waits_for_another_sender_does_not_block_its_message(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """The handlers of two agents may each wait for the other agent to handle a message."""
    answered = asyncio.Event()
    handled: list[str] = []

    @agent.on_message
    async def handle(message: Message) -> None:
        if message.sender_id == "client":
            await answered.wait()  # for the answer of another agent, which has a question first
        else:
            answered.set()
        handled.append(message.id)

    await agent.start()
    await coordinator.deliver("a", "request", expires_at=in_a_minute(), sender_id="client")
    await coordinator.deliver("a", "question", expires_at=in_a_minute(), sender_id="b")
    await wait_until(lambda: len(handled) == 2, "both are handled")
    assert handled == ["question", "request"]


async def test_handlers_in_threads_of_different_senders_run_at_the_same_time(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """Handlers that are not async as well."""
    both = threading.Barrier(2)
    handled: list[str] = []

    @agent.on_message
    def handle(message: Message) -> None:
        both.wait(20)
        handled.append(message.id)

    await agent.start()
    for sender_id in ("b", "c"):
        await coordinator.deliver("a", f"from-{sender_id}", expires_at=in_a_minute(), sender_id=sender_id)
    await wait_until(lambda: len(handled) == 2, "both are handled")


@pytest.mark.guarantee("handlers-that-wait")
async def test_a_reply_does_not_wait_for_the_message_whose_handler_awaits_it(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """A handler may ask the sender of its message something, and wait for the answer."""
    replied = asyncio.Event()
    handled: list[str] = []

    @agent.on_message
    async def handle(message: Message) -> None:
        if message.reply_to is None:
            await replied.wait()
        else:
            replied.set()
        handled.append(message.id)

    await agent.start()
    for message_id in ("first", "second"):
        await coordinator.deliver("a", message_id, expires_at=in_a_minute(), sender_id="b")
    await coordinator.deliver("a", "reply", expires_at=in_a_minute(), sender_id="b", reply_to="q-1")
    await wait_until(lambda: len(handled) == 3, "all are handled")
    assert handled == ["reply", "first", "second"]


@pytest.mark.guarantee("order-of-handling")
async def test_the_messages_of_each_sender_keep_their_order(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Also of the messages that are not held in memory, and when the first of them fails once."""
    handled: dict[str, list[int]] = {}
    failed: set[str] = set()

    @agent.on_message
    async def handle(message: Message) -> None:
        await asyncio.sleep(0)
        if message.sender_id not in failed:
            failed.add(message.sender_id)
            raise ValueError(message.id)
        handled.setdefault(message.sender_id, []).append(int(message.id.split("-")[1]))

    for n in range(60):
        for sender_id in ("b", "c", "d"):
            await coordinator.deliver("a", f"{sender_id}-{n}", expires_at=in_a_minute(), sender_id=sender_id)
    await agent.start()
    await wait_until(lambda: sum(map(len, handled.values())) == 180, "all are handled")
    assert handled == {sender_id: list(range(60)) for sender_id in ("b", "c", "d")}


@pytest.mark.parametrize("limit", [1, 3])
async def test_the_number_of_concurrent_messages_is_limited(
    server: EmbeddedServer, coordinator: PlayedCoordinator, settings: Settings, limit: int
) -> None:
    """With 1, messages and replies are handled one by one."""
    agent = Agent("a", url=server.url, settings=settings, message_concurrency=limit)
    running = most = handled = 0

    @agent.on_message
    async def handle(message: Message) -> None:
        nonlocal running, most, handled
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.005)
        running -= 1
        handled += 1

    for n in range(20):
        await coordinator.deliver("a", f"m{n}", expires_at=in_a_minute(), sender_id=f"s{n}")
    if limit == 1:
        await coordinator.deliver("a", "reply", expires_at=in_a_minute(), sender_id="s0", reply_to="q-1")
    async with agent:
        await wait_until(lambda: handled == 20 + (limit == 1), "all are handled")
    assert most == limit


@pytest.mark.parametrize("count", [0, -1, 10_001, 1.5, True, "8", None])
def test_a_limit_that_does_not_fit_is_refused(count: Any) -> None:
    """The message has the value and the valid range."""
    with pytest.raises(FactInvalid, match=r"message_concurrency: expected a whole number from 1 to 10,000, not"):
        Agent("a", message_concurrency=count)


def waiting(mailbox: Mailbox, *arrived: str) -> None:
    """Add messages named by sender, number and lane: ``b1/2``; the number of a reply begins with r."""
    for name in arrived:
        lane = int(name.partition("/")[2] or 2)
        fields = {b"sender_id": name[:1].encode(), **({b"reply_to": b"q"} if "r" in name else {})}
        mailbox.add(WaitingMessage(lane, name.encode(), None), fields)


def taken(mailbox: Mailbox) -> list[WaitingMessage]:
    """Take all that can be taken now."""
    messages = []
    while (message := mailbox.take()) is not None:
        messages.append(message)
    return messages


def test_a_higher_lane_comes_first_also_within_a_queue() -> None:
    """Of those that wait; a message that is being handled is not interrupted."""
    mailbox = Mailbox(2)
    waiting(mailbox, "b1", "c1", "d1/3", "b2/0", "e1/1")
    first = taken(mailbox)
    assert [message.entry for message in first] == [b"b2/0", b"e1/1"]
    waiting(mailbox, "b3/0")
    mailbox.release(first[0])
    (second,) = taken(mailbox)
    assert second.entry == b"b3/0"
    mailbox.release(second)
    mailbox.release(first[1])
    third = taken(mailbox)
    assert [message.entry for message in third] == [b"b1", b"c1"]


def test_replies_have_a_limit_of_their_own() -> None:
    """So messages whose handlers wait for replies cannot keep all replies waiting."""
    mailbox = Mailbox(2)
    waiting(mailbox, "b1", "c1", "d1", "br1", "cr1", "dr1", "br2")
    assert {message.entry for message in taken(mailbox)} == {b"b1", b"c1", b"br1", b"cr1"}


def test_a_message_that_was_put_off_is_the_next_of_its_sender() -> None:
    """Later ones of its sender pass it meanwhile."""
    mailbox = Mailbox(2)
    waiting(mailbox, "b1", "b2", "b3")
    (first,) = taken(mailbox)
    mailbox.release(first)
    (second,) = taken(mailbox)
    assert second.entry == b"b2"
    mailbox.add_again(first)
    assert taken(mailbox) == []
    mailbox.release(second)
    assert taken(mailbox) == [first]
