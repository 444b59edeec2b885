"""A request to an agent, and its reply: in time, late, failed, or none; and what the coordinator and the SDK answer."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Agent, Client, Message, NonRetryable, RequestFailed, RequestTimedOut, Retryable
from coord.errors import AgentNotFound, ConfigError, FactInvalid
from coord.models.messages import AgentState
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until


@pytest.fixture
async def asker(make_agent: MakeAgent) -> Agent:
    """An agent that sends requests."""
    agent = make_agent("asker")
    await agent.start()
    return agent


async def test_a_request_is_answered_by_what_the_handler_returns(asker: Agent, make_agent: MakeAgent) -> None:
    """Any JSON, from a coroutine or a thread; the request is gone from the inbox then."""
    async_one, threaded = make_agent("adder"), make_agent("shouter")

    @async_one.on_request
    async def add(message: Message) -> dict[str, int]:
        assert message.reply_by is not None
        return {"sum": sum(message.payload)}

    @threaded.on_request
    def shout(message: Message) -> str:
        return str(message.payload).upper()

    await async_one.start()
    await threaded.start()
    assert await asker.request("adder", [1, 2, 3], timeout=20) == {"sum": 6}
    assert await asker.request("shouter", "hey", timeout=20) == "HEY"
    assert await asker.request("asker", {"op": "ping"}, message_type="heartbeat") == {"op": "ping", "agent_id": "asker"}


async def test_a_client_requests_too(client: Client, make_agent: MakeAgent) -> None:
    """The reply comes among its replies."""
    agent = make_agent("adder")

    @agent.on_request
    async def add(message: Message) -> int:
        return sum(message.payload)

    await agent.start()
    assert await client.request("adder", [1, 2], timeout=20) == 3
    with pytest.raises(AgentNotFound):
        await client.request("nobody", timeout=20)
    with pytest.raises(FactInvalid, match="message_type"):
        await client.request("adder", message_type="directt")


@pytest.mark.parametrize(
    ("raised", "code", "message"),
    [
        (NonRetryable("no_such_city", "Atlantis", detail={"try": "Athens"}), "no_such_city", "Atlantis"),
        (Retryable("busy", "later"), "busy", "later"),
        (ValueError("bad page"), "handler_failed", "ValueError: bad page"),
    ],
)
async def test_an_exception_becomes_a_failed_reply(
    asker: Agent, make_agent: MakeAgent, raised: Exception, code: str, message: str
) -> None:
    """At once and without a retry: the requester decides."""
    agent = make_agent("failing")
    calls: list[str] = []

    @agent.on_request
    async def fail(request: Message) -> None:
        calls.append(request.id)
        raise raised

    await agent.start()
    with pytest.raises(RequestFailed) as caught:
        await asker.request("failing", timeout=20)
    assert (caught.value.code, caught.value.message, len(calls)) == (code, message, 1)
    assert caught.value.detail == getattr(raised, "detail", None)


async def test_a_reply_that_is_no_json_fails_the_request(asker: Agent, make_agent: MakeAgent) -> None:
    """The requester hears why, and does not wait for the timeout."""
    agent = make_agent("odd")

    @agent.on_request
    async def answer(_: Message) -> object:
        return object()

    await agent.start()
    with pytest.raises(RequestFailed) as caught:
        await asker.request("odd", timeout=20)
    assert caught.value.code == "payload_invalid"


async def test_a_request_without_a_handler_fails_at_once(asker: Agent, make_agent: MakeAgent) -> None:
    """With the next step."""
    await make_agent("deafish").start()
    with pytest.raises(RequestFailed, match="on_request") as caught:
        await asker.request("deafish", timeout=20)
    assert caught.value.code == "no_handler"


@pytest.mark.guarantee("replies-by-the-receiver")
async def test_a_reply_of_another_agent_is_a_message_and_not_the_reply(make_agent: MakeAgent) -> None:
    """⚠ Nobody answers in the place of the receiver: the requester goes on waiting for it."""
    got: list[Message] = []
    asker, asked, meddler = make_agent("asker"), make_agent("asked"), make_agent("meddler")

    @asker.on_message
    async def hear(message: Message) -> None:
        got.append(message)

    @asked.on_request
    async def answer(request: Message) -> str:
        await meddler.send("asker", "forged", reply_to=request.id)
        await wait_until(lambda: got, "the other message is handled")
        return "true"

    await asyncio.gather(asker.start(), asked.start(), meddler.start())
    assert await asker.request("asked", timeout=20) == "true"
    assert [(one.sender_id, one.payload) for one in got] == [("meddler", "forged")]


async def test_a_request_to_nobody_ends_at_once(asker: Agent) -> None:
    """The coordinator answers with the reason."""
    with pytest.raises(AgentNotFound, match="'nobody' not found"):
        await asker.request("nobody", timeout=20)


async def test_silence_ends_with_the_state_of_the_receiver(client: Client, asker: Agent, make_agent: MakeAgent) -> None:
    """And is an event in the log of messages; the reply that comes then is late, and goes to ``on_reply``."""
    silent = make_agent("silent")
    answer_now = asyncio.Event()

    @silent.on_request
    async def wait(_: Message) -> str:
        await answer_now.wait()
        return "sorry"

    await silent.start()
    with pytest.raises(
        RequestTimedOut, match=r"agent 'silent' did not reply within 0\.3 s; its status is active"
    ) as caught:
        await asker.request("silent", timeout=0.3)
    state = caught.value.receiver
    assert isinstance(state, AgentState)
    assert (state.agent_id, state.status, state.inbox) == ("silent", "active", 1)
    kinds = [event.type async for event in client.events(since="0-0", follow=False)]
    assert "request.timed_out" in kinds

    answer_now.set()

    async def is_late() -> bool:
        found = await client.list_messages(agent_id="silent")
        return any(record.late for record in found.messages)

    await wait_until(is_late, "the late reply is marked")


@pytest.mark.guarantee("requests-end")
async def test_late_replies_and_replies_of_an_earlier_process_go_to_on_reply(
    cell: RunningCell, client: Client, make_agent: MakeAgent
) -> None:
    """⚠ A requester that restarts finds the timeout in its inbox; a message of another kind goes to ``on_message``."""
    answer_now = asyncio.Event()
    silent = make_agent("silent")

    @silent.on_request
    async def wait(_: Message) -> str:
        await answer_now.wait()
        return "sorry"

    await silent.start()
    first = make_agent("asker")
    await first.start()
    asking = asyncio.create_task(first.request("silent", timeout=0.5))
    redis, keys = client.connection.redis, client.connection.keys

    async def waits() -> bool:
        return bool(await redis.zcard(keys.of("requests")))

    await wait_until(waits, "the request waits")
    (router,) = cell.of_kind("router")
    await router.vanish()  # the deadline does not pass meanwhile
    await first.stop(grace=0)
    with pytest.raises(ConfigError, match="was stopped"):
        await asking
    await cell.add("router")

    got: list[Message] = []
    heard: list[Message] = []
    second = make_agent("asker")
    second.on_reply(got.append)
    second.on_message(heard.append)
    await second.start()
    await wait_until(lambda: got, "the timeout is handled")
    assert (got[0].sender_id, got[0].failed, got[0].payload["code"]) == ("coordinator", True, "request_timed_out")
    answer_now.set()
    await wait_until(lambda: len(got) == 2, "the late reply is handled")
    assert (got[1].payload, got[1].late, got[1].reply_to) == ("sorry", True, got[0].reply_to)
    await client.send("asker", "hello")
    await wait_until(lambda: heard, "the message is handled")
    assert len(got) == 2


@pytest.mark.guarantee("requests-of-each-other")
async def test_two_agents_that_wait_for_each_other_both_end(make_agent: MakeAgent) -> None:
    """⚠ Each requests the other from its handler, and answers nobody before: the deadlines end both."""
    ended: list[str] = []
    agents = {name: make_agent(name, message_concurrency=1) for name in ("left", "right")}

    def make(name: str, other: str) -> None:
        @agents[name].on_request
        async def ask_back(_: Message) -> str:
            try:
                await agents[name].request(other, "and you?", timeout=0.5)
            except RequestTimedOut:
                ended.append(name)
            return name

    make("left", "right")
    make("right", "left")
    for agent in agents.values():
        await agent.start()
    results = await asyncio.gather(
        *(agents[one].request(other, "well?", timeout=0.5) for one, other in (("left", "right"), ("right", "left"))),
        return_exceptions=True,
    )
    assert all(isinstance(result, RequestTimedOut) for result in results), results
    await wait_until(lambda: {*ended} == {"left", "right"}, "both handlers have ended")


@pytest.mark.guarantee("replies-in-time")
async def test_a_request_survives_an_absence_of_the_router(
    cell: RunningCell, asker: Agent, make_agent: MakeAgent
) -> None:
    """⚠ The clock of requests stands still meanwhile, so a reply that was sent in time counts."""
    agent = make_agent("slow")
    started, may_end = asyncio.Event(), asyncio.Event()

    @agent.on_request
    async def answer(_: Message) -> str:
        started.set()
        await may_end.wait()
        return "here"

    await agent.start()
    asking = asyncio.create_task(asker.request("slow", timeout=1.5))
    await started.wait()
    (router,) = cell.of_kind("router")
    await router.vanish()
    key = cell.keys.of("clock")
    left_at = await cell.redis.hincrby(key, "requests_at", -3_000)  # as if this were three seconds later
    await cell.add("router")

    async def goes_on() -> bool:
        return int(await cell.redis.hget(key, "requests_at") or 0) != left_at

    await wait_until(goes_on, "the clock goes on")
    may_end.set()
    assert await asking == "here"


async def test_a_handler_of_messages_may_put_a_request_off(asker: Agent, make_agent: MakeAgent) -> None:
    """``Retryable(after=…)`` works as for any message."""
    agent = make_agent("later")
    calls: list[str] = []

    @agent.on_request
    def answer(message: Message) -> int:
        calls.append(message.id)
        if len(calls) < 2:
            raise Retryable("not_yet", after=0.05)
        return len(calls)

    await agent.start()
    assert await asker.request("later", timeout=20) == 2


async def test_the_sdk_answers_for_an_agent_without_handlers(client: Client, make_agent: MakeAgent) -> None:
    """Ping, info and stats; another message of this type is for the handlers."""
    agent = make_agent("worker", capabilities=["ocr"], version="7", capacity=3)
    got: list[Any] = []
    agent.on_message(lambda message: got.append(message.payload))
    await agent.start()
    assert await client.ping("worker", timeout=20) == {"op": "ping", "agent_id": "worker"}
    info = await client.ping("worker", "info", timeout=20)
    assert (info["agent_type"], info["version"], info["capabilities"]) == ("worker", "7", ["ocr"])
    stats = await client.ping("worker", "stats", timeout=20)
    assert (stats["capacity"], stats["running"], stats["is_draining"]) == (3, 0, False)
    with pytest.raises(FactInvalid, match="op"):
        await client.ping("worker", "reboot")  # type: ignore[arg-type]
    with pytest.raises(RequestTimedOut):
        await client.request("worker", {"op": "dance"}, message_type="heartbeat", timeout=0.3)
    await wait_until(lambda: got == [{"op": "dance"}], "the message is handled")


async def test_the_coordinator_finds_agents(asker: Agent, client: Client, make_agent: MakeAgent) -> None:
    """A message of type discovery to it is answered with those that match; a wrong one with what is wrong."""
    await make_agent("eye-1", capabilities=["ocr"], labels={"room": "b2"}, tags=["fast"]).start()
    await make_agent("eye-2", capabilities=["ocr"]).start()
    found = await asker.request("coordinator", {"capabilities": ["ocr"]}, message_type="discovery")
    assert {one["agent_id"] for one in found["agents"]} == {"eye-1", "eye-2"}  # on a busy machine, health differs
    found = await client.request(
        "coordinator", {"labels": {"room": "b2"}, "tags": ["fast"], "limit": 1}, message_type="discovery"
    )
    assert ([one["agent_id"] for one in found["agents"]], found["next"]) == (["eye-1"], None)
    with pytest.raises(FactInvalid, match="unknown field `colour`"):
        await asker.request("coordinator", {"colour": "red"}, message_type="discovery")
    with pytest.raises(Exception, match="takes only messages of type discovery"):
        await client.request("coordinator", "hello")
