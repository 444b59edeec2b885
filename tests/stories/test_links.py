"""Agents that are linked, and a hierarchy of agents: who may write to whom."""

from __future__ import annotations

import asyncio

import pytest

from coord import Agent, Client, LinkRequest, Message
from coord.errors import (
    ConfigError,
    FactInvalid,
    HierarchyCycle,
    LinkDeclined,
    LinkNotRequested,
    NoSubordinates,
    NotInHierarchy,
    NotLinked,
    ResultTimeout,
)
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


def listening(agent: Agent) -> list[Message]:
    """The messages that an agent will get."""
    got: list[Message] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message)

    return got


@pytest.mark.guarantee("links-at-once")
async def test_two_agents_link_and_write_to_each_other(client: Client, make_agent: MakeAgent) -> None:
    """One requests, the other accepts; a message that is sent when ``connect`` has returned passes."""
    one, other = make_agent("one"), make_agent("other")
    got = listening(other)
    requests: list[LinkRequest] = []

    @other.on_link_request
    async def decide(request: LinkRequest) -> bool:
        requests.append(request)
        return True

    await one.start()
    await other.start()
    with pytest.raises(NotLinked, match="request a link first"):
        await one.send("other", "too early", protocol="peer_to_peer")
    await one.links.connect("other", note="to compare results", timeout=20)
    receipt = await one.send("other", "hello", protocol="peer_to_peer")
    assert [(at.agent_id, at.state) for at in receipt.recipients] == [("other", "active")]
    await wait_until(lambda: got, "the message is handled")
    assert [(one.payload, one.message_type, one.protocol) for one in got] == [("hello", "peer_to_peer", "peer_to_peer")]
    assert requests == [LinkRequest("one", "to compare results")]
    assert (await one.links.read()).peers == (await client.links("one")).peers == ("other",)

    await other.links.remove("one")
    with pytest.raises(NotLinked):
        await one.send("other", "too late", protocol="peer_to_peer")


async def test_a_link_can_be_declined_or_left_open(client: Client, make_agent: MakeAgent) -> None:
    """The one that asks learns it; an open request is accepted later, also by an agent that has no handler."""
    one, strict, open_minded = make_agent("one"), make_agent("strict"), make_agent("open")

    @strict.on_link_request
    async def decide(request: LinkRequest) -> bool:
        return False

    for agent in (one, strict, open_minded):
        await agent.start()
    with pytest.raises(LinkDeclined, match="'strict' has declined"):
        await one.links.connect("strict", timeout=20)
    with pytest.raises(ResultTimeout, match="the request stays open"):
        await one.links.connect("open", timeout=0.2)
    assert (await open_minded.links.read()).requests == ("one",)
    with pytest.raises(LinkNotRequested):
        await one.links.accept("open")
    await open_minded.links.accept("one")
    await one.send("open", "now", protocol="peer_to_peer")


async def test_a_hierarchy(client: Client, make_agent: MakeAgent) -> None:
    """A master writes to one subordinate or to all, they to it, and nobody else along this way."""
    team = [make_agent(name) for name in ("lead", "left", "right")]
    heard = {agent.agent_id: listening(agent) for agent in team}
    for agent in team:
        await agent.start()
    lead, left, right = team
    with pytest.raises(NoSubordinates):
        await lead.send("subordinates", "anybody?", protocol="hierarchical")
    await left.links.set_master("lead")
    await client.admin.set_master("right", "lead")
    with pytest.raises(HierarchyCycle):
        await lead.links.set_master("left")
    receipt = await lead.send("subordinates", "go", protocol="hierarchical")
    assert (receipt.count, [one.agent_id for one in receipt.recipients]) == (2, ["left", "right"])
    await left.send("lead", "done", message_type="status_update", protocol="hierarchical")
    with pytest.raises(NotInHierarchy, match="neither the master nor a subordinate"):
        await left.send("right", "psst", protocol="hierarchical")
    await wait_until(lambda: all(heard.values()), "all have heard")
    assert {name: [one.payload for one in got] for name, got in heard.items()} == {
        "lead": ["done"],
        "left": ["go"],
        "right": ["go"],
    }
    assert heard["lead"][0].message_type == "status_update"

    async def all_read() -> bool:
        page = await client.message_recipients(receipt.message_id)
        return [(one.agent_id, one.status) for one in page.recipients] == [("left", "read"), ("right", "read")]

    await wait_until(all_read, "each copy is read")
    await right.links.set_master(None)
    assert (await lead.links.read()).subordinates == ("left",)


@pytest.mark.guarantee("expired-during-handler")
async def test_what_became_of_a_message(client: Client, make_agent: MakeAgent) -> None:
    """Delivered while it waits, read when it was handled, expired when it was not; each agent has its history."""
    agent = make_agent("reader")
    got: list[Message] = []
    is_busy = asyncio.Event()

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message)
        await is_busy.wait()

    await agent.start()
    receipts = [await client.send("reader", n, sender_id="s", ttl=ttl) for n, ttl in enumerate((60, 0.5, 60))]
    await wait_until(lambda: got, "the first message is being handled")

    async def statuses() -> list[str]:
        return [(await client.message(one.message_id)).status for one in receipts]

    async def is_expired() -> bool:
        return await statuses() == ["delivered", "expired", "delivered"]

    await wait_until(is_expired, "the second one expires")
    is_busy.set()

    async def is_read() -> bool:
        return await statuses() == ["read", "expired", "read"]

    await wait_until(is_read, "the others are read")
    assert [one.payload for one in got] == [0, 2]

    async def is_dead() -> bool:
        return [one.id for one in await client.dead_letters("message")] == [receipts[1].message_id]

    await wait_until(is_dead, "the router has taken it out of the inbox")
    for agent_id in ("s", "reader"):
        page = await client.list_messages(agent_id=agent_id, limit=2)
        rest = await client.list_messages(agent_id=agent_id, cursor=page.next)
        assert [one.message_id for one in (*page.messages, *rest.messages)] == [
            one.message_id for one in reversed(receipts)
        ]


async def test_all_types_can_be_sent(client: Client, make_agent: MakeAgent) -> None:
    """⚠ Also those that the entries of tasks and orders have; the agent takes none for a task or an order."""
    agent = make_agent("listener")
    got = listening(agent)
    await agent.start()
    types = ["direct", "broadcast", "coordination", "task_assignment", "status_update", "heartbeat", "discovery"]
    for kind in [*types, "consensus"]:
        await client.send("listener", kind, message_type=kind)  # type: ignore[arg-type]
    await wait_until(lambda: len(got) == 8, "all are handled")
    assert [one.message_type for one in got] == [one.payload for one in got] == [*types, "consensus"]


async def test_an_agent_that_does_not_run_sends_nothing(make_agent: MakeAgent) -> None:
    """It says so; a handler that cannot be called is refused."""
    agent = make_agent("idle")
    with pytest.raises(ConfigError, match="not running"):
        await agent.send("other", "hello")
    with pytest.raises(ConfigError, match="not running"):
        await agent.links.connect("other")
    with pytest.raises(ConfigError, match="must be an async function that takes 1 argument"):
        agent.on_link_request(print)  # type: ignore[arg-type]


async def test_an_agent_is_not_linked_with_itself(client: Client, make_agent: MakeAgent) -> None:
    """Neither by itself nor by an operator; the error names the field."""
    agent = make_agent("alone")
    await agent.start()
    for work in (
        agent.links.connect("alone"),
        agent.links.set_master("alone"),
        client.admin.link("alone", "alone"),
        client.admin.set_master("alone", "alone"),
    ):
        with pytest.raises(FactInvalid, match=r"(peer_id|master_id) must be another agent than agent_id"):
            await work
