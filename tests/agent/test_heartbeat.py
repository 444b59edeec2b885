"""The check of the reader of the inbox, and an agent whose reader has stopped."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import AsyncIterator

import msgspec
import psutil
import pytest

from coord import Agent, Client, Task
from coord.agent import heartbeat
from coord.agent.heartbeat import DEAF_HEARTBEATS, ReaderCheck
from coord.config import Settings
from coord.models.agents import AgentStatus
from tests.running import RunningCell
from tests.waiting import wait_until


@pytest.fixture
def settings(namespace: str) -> Settings:
    """Beats that come soon, and a reader that comes around sooner."""
    return Settings(namespace=namespace, heartbeat_interval_s=0.1, read_block_ms=50, answer_timeout_s=0.5)


@pytest.fixture
async def client(cell: RunningCell) -> AsyncIterator[Client]:
    """Someone who submits tasks."""
    async with Client(cell.url, settings=cell.settings) as client:
        yield client


async def test_a_heartbeat_goes_out_without_what_cannot_be_measured(
    cell: RunningCell, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No file descriptor is left, or ``/proc`` is hidden: the agent is active, and its record has the other metric."""

    def fail(_interval: None) -> float:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(psutil, "cpu_percent", fail)
    monkeypatch.setattr(heartbeat, "_measured_at", float("-inf"))
    async with Agent("a", capabilities=["echo"], settings=cell.settings, url=cell.url):
        registered = (await client.agent("a")).last_heartbeat

        async def is_well() -> bool:
            record = await client.agent("a")
            return record.last_heartbeat > registered and list(record.load_metrics) == ["memory"]

        await wait_until(is_well, "its heartbeats arrive")
        assert (await client.agent("a")).status == AgentStatus.ACTIVE


async def test_an_agent_whose_heartbeats_stop_for_a_while_logs_that_it_was_lost(
    cell: RunningCell, client: Client, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a process that was stopped: the first heartbeat afterwards brings it back, and its answer says so."""
    async with Agent("a", capabilities=["echo"], settings=cell.settings, url=cell.url) as agent:
        session = agent._session
        assert session is not None
        session.heartbeats._is_started = False

        async def has_status(status: AgentStatus) -> bool:
            return (await client.agent("a")).status == status

        await wait_until(lambda: has_status(AgentStatus.STALE), "it is lost")
        assert "agent.was_lost" not in "".join(capfd.readouterr())
        session.heartbeats._is_started = True
        await wait_until(lambda: has_status(AgentStatus.ACTIVE), "it is back")
        await wait_until(lambda: "agent.was_lost" in "".join(capfd.readouterr()), "it logs that")


async def test_it_counts_beats_without_a_round() -> None:
    """Three in a row; a round, or a new connection, resets the count."""
    rounds = 0
    check = ReaderCheck(lambda: rounds, 0.0)
    assert [check.is_deaf() for _ in range(DEAF_HEARTBEATS)] == [False, False, True]
    rounds += 1
    assert [check.is_deaf() for _ in range(DEAF_HEARTBEATS + 1)] == [False, False, False, True]
    check.reset()
    assert not check.is_deaf()


async def test_a_process_that_stood_still_is_not_deaf() -> None:
    """However long: it beats once before it reads."""
    check = ReaderCheck(lambda: 0, 60.0)
    assert not any(check.is_deaf() for _ in range(100)), "not before the limit, whatever the number of beats"


@pytest.mark.guarantee("deaf-agent")
async def test_an_agent_whose_reader_hangs_says_so_gets_nothing_and_is_healed(
    cell: RunningCell, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its next task waits for it; when the reader is back, by another connection, it is placeable and does the task."""
    agent = Agent("deaf", capabilities=["echo"], settings=cell.settings, url=cell.url)

    @agent.task("echo")
    async def echo(_task: Task) -> str:
        return "done"

    async with agent:
        assert await (await client.submit("echo", capabilities=["echo"])).result(30) == "done"
        session = agent._session
        assert session is not None
        hangs = True
        ask = session.inbox._read
        heal = session.inbox.reconnect
        healed = 0

        def hang() -> None:
            if not hangs:
                ask()

        def count() -> None:
            nonlocal healed
            healed += 1
            heal()

        monkeypatch.setattr(session.inbox, "_read", hang)
        monkeypatch.setattr(session.inbox, "reconnect", count)

        async def is_deaf() -> bool:
            return (await client.agent("deaf")).deaf

        await wait_until(is_deaf, "it says that it is deaf")
        record = await client.agent("deaf")
        assert record.status == "active"
        await wait_until(lambda: healed, "it has tried to heal itself")

        async def gets_nothing() -> bool:
            active = client.connection.keys.of("agents:active")
            return await is_deaf() and not await client.connection.redis.sismember(active, "deaf")

        await wait_until(gets_nothing, "it is deaf again after the attempt")
        hangs = False
        handle = await client.submit("echo", capabilities=["echo"])
        assert await handle.result(30) == "done"
        assert not await is_deaf()


async def test_a_reader_that_is_well_is_never_deaf(cell: RunningCell, client: Client) -> None:
    """An agent that has nothing to do for many beats, and one whose loop stood still."""
    agent = Agent("well", capabilities=["echo"], settings=cell.settings, url=cell.url)

    @agent.task("echo")
    async def echo(_task: Task) -> str:
        return "done"

    async with agent:
        session = agent._session
        assert session is not None
        seen = session.inbox.rounds
        await wait_until(lambda: session.inbox.rounds > seen + 20, "it came around its loop")
        assert not (await client.agent("well")).deaf
        assert session._reader_check.is_deaf() is False


async def test_a_redis_that_does_not_answer_makes_no_agent_deaf(
    cell: RunningCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While heartbeats have no answer, the reader has none either: that time does not count."""
    agent = Agent("patient", capabilities=["echo"], settings=cell.settings, url=cell.url)
    async with agent:
        assert agent._session is not None
        heartbeats = agent._session.heartbeats
        resets: list[bool] = []
        link = await wait_until(lambda: heartbeats._link, "heartbeats are connected")
        assert link is not None
        answered = link.send
        monkeypatch.setattr(link, "send", lambda *_command: None)
        monkeypatch.setattr(heartbeats, "_reset", lambda: resets.append(True))
        await wait_until(lambda: len(resets) > DEAF_HEARTBEATS, "heartbeats have no answer")
        monkeypatch.setattr(link, "send", answered)


def test_the_field_costs_a_beat_nothing() -> None:
    """It is left out while the agent hears."""
    from coord.models.facts import AgentHeartbeat

    assert msgspec.json.encode(AgentHeartbeat("a", deaf=False)) == b'{"agent_id":"a"}'
    assert msgspec.json.encode(AgentHeartbeat("a", deaf=True)) == b'{"agent_id":"a","deaf":true}'


async def test_an_inbox_goes_on_after_a_defect(
    cell: RunningCell, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised while a batch is taken, the reader asks for the next."""
    agent = Agent("defect", capabilities=["echo"], settings=cell.settings, url=cell.url)

    @agent.task("echo")
    async def echo(_task: Task) -> str:
        return "done"

    async with agent:
        session = agent._session
        assert session is not None
        read, errors = session.inbox._on_read, [RuntimeError("defect"), RuntimeError("defect")]

        def fail() -> None:
            if errors:
                raise errors.pop()
            read()

        monkeypatch.setattr(session.inbox, "_on_read", fail)
        handles = [await client.submit("echo", capabilities=["echo"]) for _ in range(3)]
        await asyncio.gather(*(handle.result(30) for handle in handles))
        await wait_until(lambda: not errors, "it went on after both")
