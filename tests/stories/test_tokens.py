"""Tokens: who may speak for an agent in a cell that requires them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from msgspec import Struct
from msgspec.structs import replace
from structlog.testing import capture_logs

from coord import Agent, Client, LinkRequest, Task, queries
from coord.agent_token import new_token
from coord.config import Settings
from coord.errors import (
    AgentIsEnrolled,
    AgentNotEnrolled,
    ConfigError,
    MessageNotFound,
    TokenInvalid,
    TokenMissing,
)
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import (
    SPEAKER,
    STREAM_FACTS,
    TYPE_OF,
    AgentDeregistered,
    AgentHeartbeat,
    AgentLeasesListed,
    AgentRegistered,
    AgentStatusChanged,
    LinkAccepted,
    LinkRemoved,
    LinkRequested,
    MasterCleared,
    MasterSet,
    MessageBroadcast,
    MessageSent,
)
from coord.streams import Append
from tests.running import RunningCell
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

#: Long beside what an answer takes on a busy machine.
PATIENT_S = 30.0
#: Each fact of an agent about itself, as another one would say it of "victim".
FORGED: dict[type[Struct], tuple[str, Struct]] = {
    AgentRegistered: ("in:registry", AgentRegistered("victim", AgentType.WORKER, incarnation="forged", capacity=99)),
    AgentStatusChanged: ("in:registry", AgentStatusChanged("victim", AgentStatus.DRAINING)),
    AgentDeregistered: ("in:registry", AgentDeregistered("victim")),
    AgentLeasesListed: ("in:registry", AgentLeasesListed("victim", "i", "1-1", {})),
    AgentHeartbeat: ("in:beats", AgentHeartbeat("victim", load_metrics={"cpu": 1.0})),
    MessageSent: ("in:messages:normal", MessageSent("forged", "victim", "receiver")),
    MessageBroadcast: ("in:messages:low", MessageBroadcast("forged-for-all", "victim")),
    LinkRequested: ("in:links", LinkRequested("victim", "receiver")),
    LinkAccepted: ("in:links", LinkAccepted("victim", "receiver")),
    LinkRemoved: ("in:links", LinkRemoved("victim", "receiver")),
    MasterSet: ("in:links", MasterSet("victim", "receiver")),
    MasterCleared: ("in:links", MasterCleared("victim")),
}


@pytest.fixture
def settings(namespace: str) -> Settings:
    """A cell that requires tokens."""
    return Settings(namespace=namespace, read_block_ms=100, heartbeat_interval_s=0.3, require_tokens=True)


@pytest.fixture
async def victim(cell: RunningCell, client: Client, make_agent: MakeAgent) -> Agent:
    """An agent with a token, at work; beside it another one."""
    token = await client.admin.enrol("victim", timeout=PATIENT_S)
    agent = make_agent("victim", token=token, capabilities=["receive"], heartbeat_interval=60)

    @agent.task("add")
    async def add(task: Task) -> int:
        return sum(task.payload)

    receiver = make_agent("receiver", token=await client.admin.enrol("receiver", timeout=PATIENT_S))

    @receiver.on_message
    async def receive(message: object) -> None:
        """Accept it."""

    await asyncio.gather(agent.start(), receiver.start())
    await wait_until(lambda: cell.redis.hexists(cell.keys.agent("victim"), "beat_id"), "its first heartbeat is in")
    return agent


async def say(client: Client, stream: str, fact: Struct, token: str) -> Any:
    """Append a fact as any program may, and return the answer."""
    append = Append(stream, fact, client.caller, token=token)
    return (await client.connection.request(append, PATIENT_S, "worker")).answer


def test_each_fact_of_an_agent_is_tried() -> None:
    """Every fact on the streams that agents write needs a token, except reports, which need a lease."""
    streams = [
        stream for stream in STREAM_FACTS if stream.startswith(("in:registry", "in:beats", "in:messages", "in:links"))
    ]
    assert {fact for stream in streams for fact in STREAM_FACTS[stream]} == set(SPEAKER) == set(FORGED)


@pytest.mark.guarantee("tokens")
@pytest.mark.parametrize("kind", FORGED, ids=lambda kind: TYPE_OF[kind])
@pytest.mark.parametrize("token", ["", "of another agent", "of nobody"])
async def test_no_agent_speaks_for_another(
    cell: RunningCell, client: Client, victim: Agent, kind: type[Struct], token: str
) -> None:
    """Without a token, with one's own and with a wrong one: refused, counted, logged without the token, no effect."""
    own = await client.admin.enrol("attacker", timeout=PATIENT_S)
    sent = {"": "", "of another agent": own, "of nobody": new_token()}[token]
    before = await cell.redis.hgetall(cell.keys.agent("victim"))

    with capture_logs() as logged:
        answer = await say(client, *FORGED[kind], sent)
        await wait_until(lambda: any(entry["event"] == "tokens.refused" for entry in logged), "it is logged")

    assert (answer.ok, answer.code) == (False, "token_invalid" if token else "token_missing")
    assert await cell.redis.hgetall(cell.keys.agent("victim")) == before
    assert (await queries.get_counters(cell.redis, cell.keys))["tokens_refused"] == 1
    (line,) = [entry for entry in logged if entry["event"] == "tokens.refused"]
    assert (line["agents"], line["facts"]) == ("victim", 1)
    assert not sent or sent not in str(logged)
    with pytest.raises(MessageNotFound):
        await client.message("forged")
    assert await (await client.submit("add", [1, 2])).result(PATIENT_S) == 3


async def test_an_agent_with_its_token_works(cell: RunningCell, client: Client, victim: Agent) -> None:
    """Registered, beating, given work, drained by an operator and resumed; a message in its name is delivered."""
    heartbeats = len(str(await cell.redis.hget(cell.keys.agent("receiver"), "beats")))
    assert await (await client.submit("add", [1, 2])).result(PATIENT_S) == 3
    assert await client.admin.drain("victim", timeout=PATIENT_S) is AgentStatus.DRAINING
    assert await client.admin.resume("victim", timeout=PATIENT_S) is AgentStatus.ACTIVE
    await client.send("receiver", {"n": 1}, timeout=PATIENT_S)
    token = await client.admin.rotate("victim", timeout=PATIENT_S)
    receipt = await client.send("receiver", {"n": 1}, sender_id="victim", token=token, timeout=PATIENT_S)
    assert (await client.message(receipt.message_id)).sender_id == "victim"
    with pytest.raises(TokenMissing, match="'victim' must send its token"):
        await client.send("receiver", {"n": 1}, sender_id="victim", timeout=PATIENT_S)

    async def beats_again() -> bool:
        return len(str(await cell.redis.hget(cell.keys.agent("receiver"), "beats"))) > heartbeats

    await wait_until(beats_again, "its heartbeats are accepted")
    order: dict[Any, Any] = {"message_type": "coordination", "data": "{}", "order": "list_leases", "ask": "1-1"}
    await cell.redis.xadd(cell.keys.inbox("victim", "critical"), order)

    async def is_listed() -> bool:
        inbox, facts = cell.keys.inbox("victim", "critical"), cell.keys.of("in:registry")
        return not await cell.redis.xlen(inbox) and not await cell.redis.xlen(facts)

    await wait_until(is_listed, "it has listed its leases")
    assert (await queries.get_counters(cell.redis, cell.keys))["tokens_refused"] == 1, "only the message without one"
    await victim.stop()
    assert (await client.agent("victim")).status is AgentStatus.INACTIVE


async def test_agents_with_their_tokens_link_send_and_broadcast(client: Client, make_agent: MakeAgent) -> None:
    """Their facts carry the token. An operator's facts about links need none."""
    one = make_agent("one", token=await client.admin.enrol("one", timeout=PATIENT_S))
    other = make_agent("other", token=await client.admin.enrol("other", timeout=PATIENT_S))

    @other.on_link_request
    async def decide(request: LinkRequest) -> bool:
        return True

    @other.on_message
    async def receive(message: object) -> None:
        """Accept it."""

    @other.on_request
    async def answer(request: object) -> str:
        return "heard"

    async with one, other:
        await one.links.connect("other", timeout=PATIENT_S)
        await one.send("other", protocol="peer_to_peer", timeout=PATIENT_S)
        assert (await one.broadcast({"n": 1}, timeout=PATIENT_S)).delivered == 1
        assert await one.request("other", {"n": 1}, timeout=PATIENT_S) == "heard"
        assert (await client.ping("one", timeout=PATIENT_S))["agent_id"] == "one"
        await one.links.set_master("other")
        await client.admin.unlink("one", "other", timeout=PATIENT_S)
        await client.admin.set_master("one", None, timeout=PATIENT_S)
        links = await client.links("one")
    assert (links.links, links.master) == ((), None)


async def test_an_agent_without_its_token_says_what_to_do(client: Client, make_agent: MakeAgent) -> None:
    """It does not start, and the error names the next step: enrol it, or give it its token."""
    with pytest.raises(TokenInvalid, match="coord agents enrol"):
        await make_agent("a1").start()
    await client.admin.enrol("a1", timeout=PATIENT_S)
    with pytest.raises(TokenMissing, match="COORD_AGENT_TOKEN"):
        await make_agent("a1").start()
    with pytest.raises(TokenInvalid, match="not the token of agent 'a1'"):
        await make_agent("a1", token=new_token()).start()


async def test_a_revoked_agent_stops_with_its_next_heartbeat(client: Client, make_agent: MakeAgent) -> None:
    """And its program learns why."""
    agent = make_agent("a1", token=await client.admin.enrol("a1", timeout=PATIENT_S))
    serving = asyncio.create_task(agent.serve())
    await wait_until(lambda: agent.is_serving, "it serves")
    await client.admin.revoke("a1", timeout=PATIENT_S)
    with pytest.raises(TokenInvalid, match="has no token"):
        await asyncio.wait_for(serving, PATIENT_S)


async def test_a_request_with_a_revoked_token_is_refused_at_once(client: Client, victim: Agent) -> None:
    """Its sender gets the error of the refusal, and does not wait until the request has timed out."""
    await client.admin.revoke("victim", timeout=PATIENT_S)
    request = asyncio.create_task(victim.request("receiver", {"n": 1}, timeout=1000 * PATIENT_S))
    with pytest.raises(TokenInvalid, match="has no token"):
        await asyncio.wait_for(request, PATIENT_S)


async def test_a_rotated_token_is_read_from_its_file(
    cell: RunningCell, client: Client, make_agent: MakeAgent, settings: Settings, tmp_path: Path
) -> None:
    """Without a restart: after the rotation without grace only the new one counts, and the heartbeats go on."""
    file = tmp_path / "a1.token"
    first, second = new_token(), new_token()
    file.write_text(f"{first}\n")
    await client.admin.enrol("a1", token=first, timeout=PATIENT_S)
    agent = Agent("a1", url=cell.url, settings=replace(settings, agent_token_file=str(file)))
    async with agent:
        await client.admin.rotate("a1", token=second, timeout=PATIENT_S)
        file.write_text(f"{second}\n")
        await client.admin.rotate("a1", token=new_token(), timeout=PATIENT_S)  # ends the grace of the first one
        seen = await cell.redis.hget(cell.keys.agent("a1"), "beat_id")

        async def beats_again() -> bool:
            return bool(await cell.redis.hget(cell.keys.agent("a1"), "beat_id") != seen)

        await wait_until(beats_again, "it beats with the second one")
        assert agent.is_serving


async def test_operators_see_who_has_a_token(client: Client, victim: Agent, make_agent: MakeAgent) -> None:
    """Of the registered agents; and that an earlier token is still valid."""
    await client.admin.rotate("victim", grace=600, timeout=PATIENT_S)
    await client.admin.revoke("receiver", timeout=PATIENT_S)
    receiver, found = await client.admin.tokens()
    assert (receiver.agent_id, receiver.has_token, receiver.earlier_until) == ("receiver", False, None)
    assert (found.agent_id, found.has_token) == ("victim", True)
    await victim.stop()
    assert [state.agent_id for state in await client.admin.tokens()] == ["receiver"], "the other one has left"
    assert 0 < (found.earlier_until or 0) - await client.server_time() <= 600_000


async def test_what_operators_ask_of_tokens(client: Client) -> None:
    """Each once; a token that is no token is refused before anything is sent."""
    with pytest.raises(AgentNotEnrolled, match="enrol it first"):
        await client.admin.rotate("a1", timeout=PATIENT_S)
    token = await client.admin.enrol("a1", timeout=PATIENT_S)
    assert await client.admin.enrol("a1", token=token, timeout=PATIENT_S) == token
    with pytest.raises(AgentIsEnrolled, match="rotate or revoke"):
        await client.admin.enrol("a1", timeout=PATIENT_S)
    with pytest.raises(ConfigError, match="16 to 512 visible") as refused:
        await client.admin.rotate("a1", token="too short", timeout=PATIENT_S)
    assert "too short" not in str(refused.value)
    await client.admin.revoke("a1", timeout=PATIENT_S)
    with pytest.raises(AgentNotEnrolled):
        await client.admin.revoke("a1", timeout=PATIENT_S)


@pytest.mark.guarantee("no-token-is-kept")
async def test_no_key_has_a_token(cell: RunningCell, client: Client, make_agent: MakeAgent) -> None:
    """Nothing that the cell keeps has it, in a key or in a value: not the digests, logs, answers or dead letters."""
    token = await client.admin.enrol("a1", timeout=PATIENT_S)
    async with make_agent("a1", token=token):
        append = Append("in:registry", AgentStatusChanged("a1", AgentStatus.ACTIVE), client.caller, token=token)
        bad = Append(append.stream, append.fact, client.caller, b'{"agent_id":"a1","status":"lazy"}', token)
        assert (await client.connection.request(bad, PATIENT_S, "registry")).answer.code == "fact_invalid"
        assert await cell.redis.xlen(cell.keys.of("dead:in")) == 1
        for key in [key async for key in cell.redis.scan_iter(f"{cell.keys.prefix}*", count=1000)]:
            if not key.startswith((cell.keys.of("in:registry").encode(), cell.keys.of("in:beats").encode())):
                assert token.encode() not in (await cell.redis.dump(key) or b""), key
