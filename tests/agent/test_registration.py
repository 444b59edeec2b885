"""The registration of an agent: what it repeats to a registry that is silent or lost its data, and its clock."""

from __future__ import annotations

import asyncio
import time

import pytest
from redis.asyncio import Redis

from coord import Agent
from coord.agent import registration as membership_module
from coord.agent.heartbeat_thread import Heartbeats
from coord.agent.registration import CLOCK_STEP_MS, Registration
from coord.client.answers import Answer, Answers
from coord.codec import decode_fact
from coord.config import MIB, Settings
from coord.embedded import EmbeddedServer
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentHeartbeat, AgentRegistered, AgentStatusChanged, Fact
from tests.agent.desk import KEYS, FakeLink
from tests.agent.played_coordinator import PlayedCoordinator, played_coordinator


class NoHeartbeats(Heartbeats):
    """Sends nothing."""

    def __init__(self) -> None:
        """Connect to nothing."""

    def prepare(self) -> None:
        """Send nothing."""

    def start(self) -> None:
        """Send nothing."""

    def stop(self) -> None:
        """Send nothing."""


def membership_on(link: FakeLink, answers: Answers | None = None) -> Registration:
    """Of an agent for two tasks at a time that holds none."""
    fact = AgentRegistered("a", AgentType.WORKER, incarnation="me", capacity=2)
    return Registration(
        fact,
        link=link,
        keys=KEYS,
        answers=answers or Answers(),
        heartbeats=NoHeartbeats(),
        on_failed=lambda _error: None,
    )


def decode_facts(link: FakeLink) -> list[Fact]:
    """Return the facts that were sent."""
    commands = link.commands(b"XADD")
    return [decode_fact("in:registry", {b"type": command[3], b"data": command[5]}, MIB) for command in commands]


async def test_how_it_is_is_said_again_to_a_registry_that_forgot_it(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """An agent in maintenance that registers again is in maintenance still, and gets nothing."""
    await agent.start()
    await agent.set_status(AgentStatus.MAINTENANCE)
    await coordinator.wait_for("in:registry", AgentStatusChanged)
    await coordinator.wait_for("in:beats", AgentHeartbeat)
    ((entry, _fields), *_rest) = await coordinator.entries("in:beats")
    await coordinator.answer("a", "in:beats", entry.decode(), "unknown_agent")
    await coordinator.wait_for("in:registry", AgentStatusChanged, 2)
    reported = await coordinator.facts("in:registry")
    assert [type(fact) for fact in reported] == [AgentRegistered, AgentStatusChanged] * 2
    assert [fact.status for fact in reported if isinstance(fact, AgentStatusChanged)] == [AgentStatus.MAINTENANCE] * 2


async def test_a_silent_registry_is_told_again_until_it_answers(
    server: EmbeddedServer, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fact may be lost with a server's data: the agent registers again at intervals, and the start continues."""
    monkeypatch.setattr(membership_module, "PATIENCE_S", 0.05)
    agent = Agent("a", url=server.url, settings=settings)
    starting = asyncio.create_task(agent.start())
    try:
        first, *others = await PlayedCoordinator(redis, settings).wait_for("in:registry", AgentRegistered, 3)
        assert others == [first] * len(others)
        assert not starting.done()
        async with played_coordinator(redis, settings):
            await starting
            assert agent.is_serving
            await agent.stop()
    finally:
        starting.cancel()


async def test_its_idea_of_the_servers_clock_follows_a_step_back() -> None:
    """After a fail-over the clock may be another: what the last entry's id tells is true, within what drifts."""
    link = FakeLink()
    membership = membership_on(link)
    for server_ms in (1_000_000_000, 900_000_000):
        membership.register()
        link.answer(f"{server_ms}-0".encode())
        assert server_ms <= membership.now_ms() < server_ms + CLOCK_STEP_MS
    membership.close()


async def test_one_without_room_says_so_again_to_a_registry_that_forgot_it() -> None:
    """It registers with what room it has, one at least, and as busy; and once it has left it says nothing more."""
    link = FakeLink()
    membership = membership_on(link)
    membership.change_room(0)
    membership.register()
    reported = decode_facts(link)
    assert [type(fact) for fact in reported] == [AgentRegistered, AgentStatusChanged] * 2
    assert {fact.capacity for fact in reported if isinstance(fact, AgentRegistered)} == {1}
    assert {fact.status for fact in reported if isinstance(fact, AgentStatusChanged)} == {AgentStatus.BUSY}
    membership.close()
    membership.change_room(2)
    assert len(decode_facts(link)) == 4


async def test_an_agent_that_was_lost_logs_it(capfd: pytest.CaptureFixture[str]) -> None:
    """The heartbeat that brings it back is answered with data; an answer without data is no news."""
    answers = Answers()
    membership = membership_on(FakeLink(), answers)
    for entry, data, is_logged in ((b"1-0", b"null", False), (b"2-0", b'{"returned":true}', True)):
        membership.heartbeat_sent(entry, time.monotonic())
        answers.receive([("in:beats", entry.decode())], Answer(ok=True, data=data))
        assert ("agent.was_lost" in "".join(capfd.readouterr())) is is_logged
    membership.close()


async def test_an_agent_that_registers_again_logs_that_it_was_lost(capfd: pytest.CaptureFixture[str]) -> None:
    """After an outage of its network it registers before its next heartbeat, and that brings it back."""
    link, answers = FakeLink(), Answers()
    membership = membership_on(link, answers)
    for entry, data, is_logged in (("1-0", b"null", False), ("2-0", b'{"returned":true}', True)):
        membership.register()
        link.answer(entry.encode())
        answers.receive([("in:registry", entry)], Answer(ok=True, data=data))
        assert ("agent.was_lost" in "".join(capfd.readouterr())) is is_logged
    assert membership.is_registered.is_set()
    membership.close()


async def test_a_heartbeat_that_a_blocked_loop_learns_of_late_does_not_shift_the_clock() -> None:
    """The answer of Redis counts from when it came, not from when the loop was free."""
    membership = membership_on(FakeLink())
    membership.heartbeat_sent(b"1000000000-0", time.monotonic())
    membership.heartbeat_sent(b"1000000000-1", time.monotonic() - 20)
    assert 1_000_020_000 <= membership.now_ms() < 1_000_021_000
    membership.close()
