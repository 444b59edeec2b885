"""An agent whose server goes away, that leaves, that has messages and neighbours. The test plays the coordinator."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from coord import Agent, Task
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, FactInvalid, IdInvalid
from coord.models.agents import AgentStatus
from coord.models.facts import (
    AgentDeregistered,
    AgentHeartbeat,
    AgentRegistered,
    AgentStatusChanged,
    TaskCompleted,
    TaskReleased,
)
from coord.reconnect import ReconnectingConnection
from tests.agent.played_coordinator import PlayedCoordinator, played_coordinator
from tests.client.packed_commands import read_command
from tests.waiting import wait_until


async def test_a_lost_connection_loses_nothing(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """All connections are cut: what runs goes on, is reported once it is back; nothing is run twice."""
    release = asyncio.Event()
    runs: list[str] = []

    @agent.task("hold")
    async def hold(task: Task) -> str:
        runs.append(task.lease)
        await release.wait()
        return "kept"

    await agent.start()
    leases = [await coordinator.assign("a", "hold") for _ in range(2)]
    remembered = await coordinator.assign("a", "hold")
    await wait_until(lambda: len(runs) == 2, "both run")
    await coordinator.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    release.set()
    reports = await coordinator.wait_for("in:reports", TaskCompleted, 3)
    assert {report.lease for report in reports} == {*leases, remembered}
    assert sorted(runs) == sorted([*leases, remembered])
    registered = await coordinator.wait_for("in:registry", AgentRegistered, 2)
    assert registered[0] == registered[1]


async def test_what_reappears_in_a_lane_after_a_reconnect_is_seen(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """A fail-over may restore assignments older than the last one read: each lane is read from the beginning."""
    await agent.start()
    await coordinator.assign("a", "echo")
    await coordinator.wait_for("in:reports", TaskCompleted)
    await coordinator.redis.delete(coordinator.keys.inbox("a", "normal"))  # it forgets which ids it had
    lease = await coordinator.assign("a", "echo", entry="1-1")
    await coordinator.redis.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    reports = await coordinator.wait_for("in:reports", TaskCompleted, 2)
    assert reports[1].lease == lease


async def test_a_server_that_was_away_finds_all_reports_when_it_is_back(tmp_path: Any, settings: Settings) -> None:
    """Redis dies while a handler runs: the handler ends meanwhile, the report waits and arrives."""
    running = EmbeddedServer.start(tmp_path / "own")
    redis = connect(running.url, settings)  # which goes on as well when the server is back
    release, ended = asyncio.Event(), asyncio.Event()
    agent = Agent("a", url=running.url, settings=settings, heartbeat_interval=0.1)

    @agent.task("hold")
    async def hold(task: Task) -> str:
        await release.wait()
        ended.set()
        return "kept"

    async with played_coordinator(redis, settings) as coordinator:
        try:
            await agent.start()
            lease = await coordinator.assign("a", "hold")
            await wait_until(lambda: agent.running == 1, "it runs")
            running.kill()
            release.set()
            await ended.wait()
            assert agent.leases == 1
            running.restart()
            (report,) = await coordinator.wait_for("in:reports", TaskCompleted)
            assert (report.lease, bytes(report.result)) == (lease, b'"kept"')
            await wait_until(lambda: agent.leases == 0, "the lease is free")
        finally:
            await agent.stop(grace=0)
            await redis.aclose()
            running.stop(force=True)


async def test_it_leaves_in_order(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It says that it drains, finishes what runs, reports it, deregisters; in this order."""
    release = asyncio.Event()

    @agent.task("hold")
    async def hold(task: Task) -> str:
        await release.wait()
        return "done"

    await agent.start()
    await coordinator.assign("a", "hold")
    await wait_until(lambda: agent.running == 1, "it runs")
    stopping = asyncio.create_task(agent.stop())
    (changed,) = await coordinator.wait_for("in:registry", AgentStatusChanged)
    assert changed.status == AgentStatus.DRAINING
    late = await coordinator.assign("a", "echo")
    (released,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert released.lease == late
    release.set()
    await stopping
    assert [type(fact) for fact in await coordinator.facts("in:registry")] == [
        AgentRegistered,
        AgentStatusChanged,
        AgentDeregistered,
    ]
    await coordinator.wait_for("in:reports", TaskCompleted)


async def test_what_it_was_claiming_when_told_to_stop_is_given_back_before_it_leaves(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its entry is gone from the inbox, so only the agent knows that it did not begin; who has left tells nothing."""
    sent: list[bytes] = []
    send = ReconnectingConnection.send_until_answered

    def noted(link: ReconnectingConnection, packed: bytes, done: Callable[[Any, Any], None], about: Any = None) -> None:
        sent.append(read_command(packed)[4])
        send(link, packed, done, about)

    await agent.start()
    session = agent._session
    assert session is not None
    monkeypatch.setattr(ReconnectingConnection, "send_until_answered", noted)
    async with coordinator.redis.pipeline(transaction=True) as both:
        lease = await PlayedCoordinator(both, coordinator.settings).assign("a", "echo")
        both.execute_command("CLIENT", "PAUSE", 60_000, "WRITE")
        await both.execute()
    try:
        await wait_until(lambda: agent.leases == 1, "it claims, and the server takes its time")
        stopping = asyncio.create_task(agent.stop())
        await wait_until(lambda: session.claims.is_draining, "it drains")
    finally:
        await coordinator.redis.execute_command("CLIENT", "UNPAUSE")
    await stopping
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.reason) == (lease, "the agent is draining")
    assert sent == [b"agent.status_changed", b"task.released", b"agent.deregistered"]


async def test_a_handler_that_does_not_end_in_time_is_cancelled_and_its_task_given_back(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """The grace of a drain is bounded."""

    @agent.task("hang")
    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    await agent.start()
    lease = await coordinator.assign("a", "hang")
    await wait_until(lambda: agent.running == 1, "it runs")
    await agent.stop(grace=0.05)
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.reason) == (lease, "the agent is shutting down")


async def test_an_agent_that_nobody_answers_can_be_stopped(server: EmbeddedServer, redis: Redis) -> None:
    """No registry runs: the start waits, and stopping it does not; its facts are sent all the same."""
    agent = Agent("a", url=server.url, settings=Settings(namespace="nobody"))
    cleaning, may_end = asyncio.Event(), asyncio.Event()

    @agent.on_stop
    async def clean_up() -> None:
        cleaning.set()
        await may_end.wait()

    serving = asyncio.create_task(agent.serve())
    stream = "{nobody}:in:registry"

    async def has_sent(count: int) -> bool:
        return int(await redis.xlen(stream)) == count

    await wait_until(lambda: has_sent(1), "it has registered")
    assert not agent.is_serving
    stopping = asyncio.create_task(agent.stop())
    await asyncio.wait_for(cleaning.wait(), 30)
    assert not serving.done(), "serve returned before the end"
    may_end.set()
    await asyncio.wait_for(serving, 30)
    await stopping
    await wait_until(lambda: has_sent(3), "it has reported that it drains and leaves")
    starting = asyncio.create_task(agent.start())
    await wait_until(lambda: has_sent(4), "it has registered again")
    await agent.stop()
    with pytest.raises(ConfigError, match="was stopped before it had started"):
        await asyncio.wait_for(starting, 30)


async def test_agents_of_one_process_share_what_they_write(
    server: EmbeddedServer, coordinator: PlayedCoordinator
) -> None:
    """Three agents have five connections: one each for reading, one for all to write, one for all heartbeats."""
    agents = [Agent(f"a{n}", url=server.url, settings=coordinator.settings) for n in range(3)]

    async def connections() -> int:
        return len(await coordinator.redis.client_list())

    before = await connections()
    for agent in agents:
        await agent.start()
    await coordinator.wait_for("in:beats", AgentHeartbeat, 3)
    assert await connections() - before == 5
    await asyncio.gather(*(agent.stop() for agent in agents))

    async def all_closed() -> bool:
        return await connections() == before

    await wait_until(all_closed, "all are closed")


def test_what_an_agent_declares_is_checked_at_once(settings: Settings) -> None:
    """A typo is found where it was made, not when the registry buries the fact."""
    with pytest.raises(IdInvalid, match="agent_id"):
        Agent("no spaces", settings=settings)
    with pytest.raises(IdInvalid, match="agent_id"):
        Agent(5)  # type: ignore[arg-type]
    for words in ("capabilities", "services", "tags"):
        with pytest.raises(FactInvalid, match=f"{words}: expected a list of words"):
            Agent("a", **{words: "echo"})  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="agent_type"):
        Agent("a", agent_type="wurker", settings=settings)  # type: ignore[arg-type]
    with pytest.raises(FactInvalid, match="capacity"):
        Agent("a", capacity=0, settings=settings)
    agent = Agent("a", settings=settings)
    agent.task("echo")(lambda task: task)
    with pytest.raises(ConfigError, match="already"):
        agent.task("echo")(lambda task: task)


async def test_nothing_that_a_handler_says_ends_its_drain(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It would be given tasks again, and give them back until they have failed."""
    may_end = asyncio.Event()

    @agent.task("hold")
    async def hold(task: Task) -> None:
        await may_end.wait()
        await agent.set_status(AgentStatus.ACTIVE)

    await agent.start()
    await agent.set_status(AgentStatus.BUSY)
    await coordinator.assign("a", "hold")
    await wait_until(lambda: agent.running == 1, "it runs")
    stopping = asyncio.create_task(agent.stop())
    await coordinator.wait_for("in:registry", AgentStatusChanged, 2)
    may_end.set()
    await stopping
    statuses = [fact.status for fact in await coordinator.facts("in:registry") if isinstance(fact, AgentStatusChanged)]
    assert statuses == [AgentStatus.BUSY, AgentStatus.DRAINING]


async def test_a_drain_takes_as_long_as_its_tasks_and_a_second_stop_limits_it(
    agent: Agent, coordinator: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is given back is named in the log."""

    @agent.task("hang")
    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    await agent.start()
    lease = await coordinator.assign("a", "hang", task_id="long")
    await wait_until(lambda: agent.running == 1, "it runs")
    assert agent.drain_timeout is None
    stopping = asyncio.create_task(agent.stop())
    await coordinator.wait_for("in:registry", AgentStatusChanged)
    await coordinator.wait_for("in:beats", AgentHeartbeat, 5)
    assert not stopping.done()
    await agent.stop(grace=0)
    await stopping
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.code) == (lease, "draining")
    (line,) = [line for line in "".join(capfd.readouterr()).splitlines() if "tasks.given_back" in line]
    assert "long" in line


async def test_a_drain_timeout_gives_back_and_names_the_tasks(
    server: EmbeddedServer, coordinator: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    """An operator sees which tasks run again elsewhere."""
    agent = Agent("a", url=server.url, settings=coordinator.settings, drain_timeout=0.05)

    @agent.task("hang")
    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    await agent.start()
    await coordinator.assign("a", "hang", task_id="long")
    await wait_until(lambda: agent.running == 1, "it runs")
    await agent.stop()
    log = "".join(capfd.readouterr())
    assert "tasks.given_back" in log
    assert "long" in log


@pytest.mark.parametrize("forget_after", [None, 3600.0])
async def test_an_agent_may_ask_to_be_forgotten(
    server: EmbeddedServer, coordinator: PlayedCoordinator, forget_after: float | None
) -> None:
    """It says so when it leaves: one that is lost stays on record."""
    agent = Agent("a", url=server.url, settings=coordinator.settings, forget_after=forget_after)
    await agent.start()
    await agent.stop()
    (left,) = await coordinator.wait_for("in:registry", AgentDeregistered)
    assert left.forget_after == forget_after
