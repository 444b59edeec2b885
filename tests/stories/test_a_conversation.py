"""A conversation: what handlers send belongs to it, storms end with their path, and a trace goes through all of it."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Client, Message, Task
from coord.errors import ConversationFull, FactInvalid, HopLimitReached, MessageNotFound
from coord.models.messages import MessageStatus
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

TRACE = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
OTHER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"


@pytest.mark.guarantee("limits-of-conversations")
async def test_a_ping_pong_storm_is_stopped_and_shows_its_path(client: Client, make_agent: MakeAgent) -> None:
    """⚠ Two agents answer every message, without a word about the conversation: the SDK says what caused what."""
    stopped: list[HopLimitReached] = []

    def play(name: str, other: str) -> None:
        agent = agents[name]

        @agent.on_message
        async def hit(message: Message) -> None:
            try:
                await client.send(other, message.payload + 1, sender_id=name)
            except HopLimitReached as error:
                stopped.append(error)

    agents = {name: make_agent(name) for name in ("ping", "pong")}
    play("ping", "pong")
    play("pong", "ping")
    for agent in agents.values():
        await agent.start()
    first = await client.send("ping", 0, sender_id="ann")
    (error,) = await wait_until(lambda: stopped, "the storm is stopped")
    # The seventeenth answer of the first message: ann's is the first, then ping and pong in turn.
    path = " > ".join(["ann", *("ping", "pong") * 8, "ping", "pong"])
    assert str(error).endswith(f"COORD_HOP_LIMIT is 16; path: {path}")
    found = await client.conversation(first.message_id)
    assert [record.hops for record in found.messages] == list(range(18))
    assert [record.status is MessageStatus.DEAD for record in found.messages] == [False] * 17 + [True]
    (dead,) = await client.dead_letters("message")
    assert path in dead.reason


async def test_what_handlers_send_belongs_together(client: Client, make_agent: MakeAgent) -> None:
    """From a coroutine and from a thread; what is sent outside of handlers does not."""
    front, back = make_agent("front"), make_agent("back")
    done = asyncio.Event()

    loop = asyncio.get_running_loop()

    @front.on_message
    async def ask(message: Message) -> None:
        if message.payload == "hi":
            await front.request("back", "hi", timeout=20)
            done.set()

    @back.on_request
    def answer(message: Message) -> str:
        asyncio.run_coroutine_threadsafe(client.send("front", "note", sender_id="back"), loop).result(20)
        return f"{message.payload}!"

    await front.start()
    await back.start()
    first = await client.send("front", "hi", sender_id="ann")
    await client.send("front", "ho", sender_id="ann")
    await asyncio.wait_for(done.wait(), 20)
    found = await client.conversation(first.message_id)
    assert [(one.sender_id, one.receiver_id, one.hops) for one in found.messages] == [
        ("ann", "front", 0),
        ("front", "back", 1),
        ("back", "front", 2),
        ("back", "front", 2),
    ]
    with pytest.raises(MessageNotFound, match="Conversation 'no-such' not found"):
        await client.conversation("no-such")


async def test_the_budget_of_a_conversation_stops_a_fan_out(client: Client, make_agent: MakeAgent) -> None:
    """A thousand messages, without a chain: the next one is refused, another conversation goes on."""
    agent = make_agent("listener", message_concurrency=1000)
    agent.on_message(lambda _: None)
    await agent.start()
    for _ in range(10):
        await asyncio.gather(*(client.send("listener", 1, correlation_id="talk") for _ in range(100)))
    with pytest.raises(ConversationFull, match=r"has 1000 messages, and COORD_CONVERSATION_MESSAGES is 1000"):
        await client.send("listener", 1, correlation_id="talk")
    await client.send("listener", 1, correlation_id="talk-2")


@pytest.mark.guarantee("traceparent")
async def test_a_trace_goes_through_tasks_and_messages(client: Client, make_agent: MakeAgent) -> None:
    """The handler of each gets the sender's traceparent, unchanged; one that is given is never replaced."""
    agent = make_agent("worker")
    seen: dict[str, Any] = {}
    done = asyncio.Event()
    loop = asyncio.get_running_loop()

    @agent.task("first")
    async def first(task: Task) -> None:
        seen["first"] = task.traceparent
        await client.submit("threaded", task_id="threaded-1")
        await client.submit("other", traceparent=OTHER)
        await client.send("worker", "note")

    @agent.task("threaded")
    def threaded(task: Task) -> None:
        seen["threaded"] = task.traceparent
        if task.traceparent is not None:
            asyncio.run_coroutine_threadsafe(client.submit("from_thread"), loop).result(20)

    @agent.task("from_thread")
    async def from_thread(task: Task) -> None:
        seen["from_thread"] = task.traceparent

    @agent.task("other")
    async def other(task: Task) -> None:
        seen["other"] = task.traceparent

    @agent.task("last")
    async def last(task: Task) -> None:
        seen["last"] = task.traceparent
        done.set()

    @agent.on_message
    async def note(message: Message) -> None:
        seen["message"] = message.traceparent
        await client.submit("last")

    await agent.start()
    handle = await client.submit("first", traceparent=TRACE, task_id="first-1")
    await handle.result(timeout=20)
    await asyncio.wait_for(done.wait(), 20)
    await client.handle("threaded-1").result(timeout=20)
    await wait_until(lambda: len(seen) == 6, "all handlers have run")
    same = ("first", "threaded", "from_thread", "message", "last")
    assert seen == dict.fromkeys(same, TRACE) | {"other": OTHER}
    assert (await client.task("first-1")).traceparent == TRACE

    await (await client.submit("threaded")).result(timeout=20)
    assert seen["threaded"] is None


@pytest.mark.guarantee("traceparent")
async def test_the_same_task_in_another_trace_is_the_same_task(client: Client) -> None:
    """⚠ A submission that is repeated by another part of a program has the same content."""
    await client.submit("later", task_id="t1", traceparent=TRACE)
    again = await client.submit("later", task_id="t1", traceparent=OTHER)
    await again.accepted(timeout=20)
    assert (await client.task("t1")).traceparent == TRACE


@pytest.mark.parametrize("wrong", ["", "00-1-2-01", TRACE.upper(), f"ff{TRACE[2:]}", f"00-{'0' * 32}-{'1' * 16}-01"])
async def test_a_malformed_traceparent_is_refused(client: Client, wrong: str) -> None:
    """Before anything is sent, with an example of a valid one."""
    for call in (client.submit("t", traceparent=wrong), client.send("a", traceparent=wrong)):
        with pytest.raises(FactInvalid, match="traceparent must be version-trace_id-parent_id-flags"):
            await call
