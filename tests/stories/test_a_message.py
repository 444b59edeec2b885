"""A message from a client, or another agent, to an agent."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Agent, Client, Message, Task, TaskHandle
from coord.client.receipts import Receipt
from coord.errors import AgentNotFound, ConfigError, FactInvalid, IdConflict, MessageNotFound, TaskNotFound
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


async def test_a_message_reaches_the_agent_it_is_for(client: Client, make_agent: MakeAgent) -> None:
    """It is delivered into the inbox, handled, and then gone from it."""
    agent = make_agent("listener")
    got: list[Message] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message)

    await agent.start()
    receipt = await client.send("listener", {"say": "hello"}, sender_id="teller", correlation_id="talk-1")
    await wait_until(lambda: got, "the message is handled")
    (message,) = got
    assert (message.id, message.sender_id, message.receiver_id) == (receipt.message_id, "teller", "listener")
    assert (message.payload, message.correlation_id, message.message_type) == ({"say": "hello"}, "talk-1", "direct")
    inbox = f"{{{client.settings.namespace}}}:inbox:listener:normal"

    async def is_gone() -> bool:
        return int(await client.connection.redis.xlen(inbox)) == 0

    await wait_until(is_gone, "the message is deleted")


async def test_a_message_to_nobody_is_refused(client: Client) -> None:
    """The receipt tells the truth: there is no such receiver."""
    with pytest.raises(AgentNotFound):
        await client.send("nobody", "hello?")


@pytest.mark.guarantee("answers-to-their-caller")
async def test_nobody_is_told_the_answer_to_anothers_fact(client: Client, make_agent: MakeAgent) -> None:
    """⚠ Facts of several streams, told at the same moment, often have one entry id: each has its own answer."""
    agent = make_agent("doer", capacity=100)

    @agent.task("echo")
    async def echo(task: Task) -> int:
        return int(task.payload)

    await agent.start()
    same = 0
    while same < 10:  # more than one in ten, as a rule
        handle, sent, unsent, cancelled = await asyncio.gather(
            client.submit("echo", 7),
            client.send("doer", "yes"),
            client.send("nobody", "no", priority="low"),
            client.cancel("no-such-task"),
            return_exceptions=True,
        )
        assert isinstance(handle, TaskHandle)
        assert isinstance(sent, Receipt), sent
        assert isinstance(unsent, AgentNotFound)
        assert isinstance(cancelled, TaskNotFound) or cancelled == "pending"
        assert await handle.result(timeout=20) == 7
        same += handle.entry_id == sent.entry_id


async def test_a_message_sent_twice_under_one_id_is_delivered_once(client: Client, make_agent: MakeAgent) -> None:
    """A sender that lost the receipt may repeat itself; other words under the same id are refused."""
    agent = make_agent("listener")
    got: list[str] = []

    @agent.on_message
    def hear(message: Message) -> None:
        got.append(message.payload)

    await agent.start()
    for _ in range(2):
        await client.send("listener", "once", sender_id="teller", message_id="note-1")
    with pytest.raises(IdConflict):
        await client.send("listener", "other", sender_id="teller", message_id="note-1")
    await client.send("listener", "last", sender_id="teller")
    await wait_until(lambda: "last" in got, "the last message is handled")
    assert got == ["once", "last"]


@pytest.mark.guarantee("failing-message-handler")
async def test_a_message_whose_handler_fails_is_tried_again(client: Client, make_agent: MakeAgent) -> None:
    """Three tries; the messages behind it wait, so that their order stays."""
    agent = make_agent("stumbler")
    got: list[str] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message.payload)
        if len(got) < 3:
            raise RuntimeError("stumbled")

    await agent.start()
    await client.send("stumbler", "first")
    await client.send("stumbler", "second")
    await wait_until(lambda: "second" in got, "the second message is handled")
    assert got == ["first", "first", "first", "second"]


async def test_agents_that_ask_each_other_get_their_answers(client: Client, make_agent: MakeAgent) -> None:
    """⚠ Both at once, from handlers of messages; and an agent may ask the sender of a question back."""
    waiting: dict[str, asyncio.Future[Any]] = {}
    answers: list[str] = []

    async def ask(sender_id: str, receiver_id: str, asks: str) -> Any:
        """Ask an agent, which asks another one first if one is named, and wait for the reply."""
        message_id = f"q{len(waiting)}"
        answer = waiting[message_id] = asyncio.get_running_loop().create_future()
        await client.send(receiver_id, asks, sender_id=sender_id, message_id=message_id)
        return await answer

    async def handle(message: Message) -> None:
        if message.reply_to is not None:
            waiting[message.reply_to].set_result(message.payload)
            return
        me = message.receiver_id
        answer = f"{await ask(me, message.payload, '')} to {me}" if message.payload else me
        if message.sender_id == "client":
            answers.append(answer)
        else:
            await client.send(message.sender_id, answer, sender_id=me, reply_to=message.id)

    for agent_id in ("a", "b"):
        agent = make_agent(agent_id)
        agent.on_message(handle)
        await agent.start()
    await asyncio.gather(*(client.send(one, other, sender_id="client") for one, other in ("ab", "ba")))
    await wait_until(lambda: len(answers) == 2, "both have their answers")
    assert sorted(answers) == ["a to b", "b to a"]
    assert await asyncio.wait_for(ask("a", "b", "a"), 20) == "a to b"


async def test_a_broadcast_reaches_every_agent_that_matches(client: Client, make_agent: MakeAgent) -> None:
    """From a client and from an agent, never to its sender; a topic comes as it is; the receipt says to how many."""
    got: list[tuple[str, Message]] = []

    def listen(agent_id: str, *capabilities: str) -> Agent:
        agent = make_agent(agent_id, capabilities=capabilities)

        @agent.on_message
        async def hear(message: Message) -> None:
            got.append((agent_id, message))

        return agent

    first, second, third = listen("first", "ocr"), listen("second", "ocr"), listen("third")
    for agent in (first, second, third):
        await agent.start()
    receipt = await client.broadcast({"say": "hello"}, capabilities=["ocr"], priority="high")
    assert (receipt.recipients, receipt.delivered) == (2, 2)
    await wait_until(lambda: len(got) == 2, "both have it")
    assert {agent_id for agent_id, _ in got} == {"first", "second"}
    assert {(one.id, one.message_type, one.priority) for _, one in got} == {(receipt.message_id, "broadcast", "high")}

    got.clear()
    topic = await first.broadcast("ready", message_type="coordination", correlation_id="c")
    assert (topic.recipients, topic.delivered) == (2, 2)
    await wait_until(lambda: len(got) == 2, "the others have it")
    assert {agent_id for agent_id, _ in got} == {"second", "third"}
    assert {(one.sender_id, one.message_type, one.payload) for _, one in got} == {("first", "coordination", "ready")}

    async def are_read() -> bool:
        page = await client.message_recipients(topic.message_id)
        return [(one.agent_id, one.status) for one in page.recipients] == [("second", "read"), ("third", "read")]

    await wait_until(are_read, "both have read it")


async def test_what_is_wrong_with_a_broadcast_is_named(client: Client, make_agent: MakeAgent) -> None:
    """Before anything is sent; an agent that does not run cannot broadcast."""
    with pytest.raises(FactInvalid, match="capabilities: expected a list of words"):
        await client.broadcast(1, capabilities="ocr")
    with pytest.raises(FactInvalid, match="'skills'; the options are agent_type, "):
        await client.broadcast(1, skills=["ocr"])  # type: ignore[call-arg]
    with pytest.raises(FactInvalid, match="cannot be broadcast, only broadcast, coordination"):
        await client.broadcast(1, message_type="direct")  # type: ignore[arg-type]
    with pytest.raises(MessageNotFound):
        await client.message_recipients("none")
    with pytest.raises(ConfigError, match="agent 'idle' is not running"):
        await make_agent("idle").broadcast(1)
