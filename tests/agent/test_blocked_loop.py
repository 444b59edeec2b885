"""An async handler that blocks the event loop of its agent, which runs in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from coord import Agent, Client, Task
from coord.agent import heartbeat
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import AgentHeartbeat, AgentLeasesListed, AgentRegistered, TaskCompleted
from tests.agent.played_coordinator import PlayedCoordinator
from tests.running import RunningCell
from tests.waiting import wait_until

#: Heartbeats of the agent in a cell with workers, and the time after which it would be lost.
INTERVAL_S = 0.4
TIMEOUT_MS = 1_200
#: An agent that is not registered yet takes some seconds to leave.
END_S = 40.0


class BlockingAgent:
    """An agent whose handler ``block`` blocks the event loop until ``release`` is set."""

    def __init__(self, url: str, settings: Settings, interval_s: float) -> None:
        self.release = threading.Event()
        self.runs: list[str] = []
        self.agent = Agent("blocked", url=url, settings=settings, capacity=2, heartbeat_interval=interval_s)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_until_complete, args=(self.agent.serve(),), name="blocked", daemon=True
        )

        @self.agent.task("block")
        async def block(task: Task) -> str:
            self.runs.append(task.task_id)
            if not self.release.wait(60):  # as a synchronous HTTP client does
                raise TimeoutError
            return "done"

        @self.agent.on_message
        async def on_message(_message: object) -> None:
            self.release.wait(60)

    def start(self) -> None:
        """Serve in the thread."""
        self._thread.start()

    async def stop(self) -> None:
        """Stop the agent and wait for its thread."""
        self.release.set()
        asyncio.run_coroutine_threadsafe(self.agent.stop(grace=0), self._loop)
        await asyncio.to_thread(self._thread.join, END_S)
        assert not self._thread.is_alive(), f"the agent has not ended within {END_S:g} s"
        self._loop.close()


@asynccontextmanager
async def blocking_agent(url: str, settings: Settings, interval_s: float = 0.1) -> AsyncIterator[BlockingAgent]:
    """One that serves."""
    blocking = BlockingAgent(url, settings, interval_s)
    blocking.start()
    try:
        yield blocking
    finally:
        await blocking.stop()


def last_heartbeat(coordinator: PlayedCoordinator, fits: Callable[[AgentHeartbeat], bool]) -> Callable[[], object]:
    """Return a condition: the newest heartbeat fits."""

    async def found() -> bool:
        beats = [fact for fact in await coordinator.facts("in:beats") if isinstance(fact, AgentHeartbeat)]
        return bool(beats) and fits(beats[-1])

    return found


async def test_it_sends_heartbeats_and_is_deaf_until_its_loop_is_free(
    server: EmbeddedServer, coordinator: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its heartbeats go on and report the lease; the log names the handler and its line while it still blocks."""
    async with blocking_agent(server.url, coordinator.settings) as blocking:
        await coordinator.wait_for("in:registry", AgentRegistered)
        await wait_until(last_heartbeat(coordinator, lambda beat: not beat.deaf), "it reads its inbox")
        lease = await coordinator.assign("blocked", "block")
        await wait_until(
            last_heartbeat(coordinator, lambda beat: beat.deaf and beat.leases == 1), "its loop is blocked"
        )
        count = len(await coordinator.facts("in:beats"))
        await coordinator.wait_for("in:beats", AgentHeartbeat, count + 5)
        log = "".join(capfd.readouterr())
        assert "agent.loop_blocked" in log
        assert "block" in log.split("handler=")[1].split()[0]
        assert "at=test_blocked_loop.py:" in log
        assert "inbox.deaf" not in log, "the reader is well: a reconnect helps nothing"
        blocking.release.set()
        (report,) = await coordinator.wait_for("in:reports", TaskCompleted)
        assert report.lease == lease
        await wait_until(
            last_heartbeat(coordinator, lambda beat: not beat.deaf and beat.leases == 0), "its loop is free"
        )
        assert "agent.loop_free" in "".join(capfd.readouterr())


@pytest.mark.guarantee("blocked-event-loop")
async def test_it_lists_its_leases(server: EmbeddedServer, coordinator: PlayedCoordinator) -> None:
    """The request is answered from the thread, and deleted; the latest one counts."""
    async with blocking_agent(server.url, coordinator.settings):
        await coordinator.wait_for("in:beats", AgentHeartbeat)
        lease = await coordinator.assign("blocked", "block", task_id="t")
        await wait_until(last_heartbeat(coordinator, lambda beat: beat.deaf), "its loop is blocked")
        await coordinator.order_list("blocked", "1-0")
        await coordinator.wait_for("in:registry", AgentLeasesListed)
        await coordinator.order_list("blocked", "2-0")
        lists = await coordinator.wait_for("in:registry", AgentLeasesListed, 2)
        assert [(item.ask, item.leases) for item in lists[:2]] == [("1-0", {lease: "t"}), ("2-0", {lease: "t"})]

        async def is_empty() -> bool:
            return not await coordinator.inbox("blocked", "critical")

        await wait_until(is_empty, "no order waits")


@pytest.mark.guarantee("blocked-event-loop")
async def test_it_sends_heartbeats_if_its_loop_is_blocked_before_the_registry_answers(
    server: EmbeddedServer, redis: Redis, settings: Settings
) -> None:
    """Its registration counts as a heartbeat, and the next one must not wait for the loop."""
    coordinator = PlayedCoordinator(redis, settings)  # no registry answers
    async with blocking_agent(server.url, settings) as blocking:
        await coordinator.wait_for("in:registry", AgentRegistered)
        await coordinator.assign("blocked", "block")
        await wait_until(lambda: blocking.runs, "it runs")
        beats = await coordinator.wait_for("in:beats", AgentHeartbeat, 2)
        assert all(beat.deaf for beat in beats)


async def test_a_message_handler_that_blocks_is_named(
    server: EmbeddedServer, coordinator: PlayedCoordinator, capfd: pytest.CaptureFixture[str]
) -> None:
    """Messages are handled on the same loop."""
    async with blocking_agent(server.url, coordinator.settings):
        await coordinator.wait_for("in:registry", AgentRegistered)
        await coordinator.deliver("blocked", "m", expires_at=2**52)
        await wait_until(last_heartbeat(coordinator, lambda beat: beat.deaf), "its loop is blocked")
        assert "on_message" in "".join(capfd.readouterr()).split("handler=")[1].split()[0]


@pytest.mark.guarantee("blocked-event-loop")
async def test_a_blocked_agent_is_not_lost_and_gets_nothing_new(cell: RunningCell) -> None:
    """It blocks for many times its timeout; a second task waits until the loop is free, and each runs once."""
    async with (
        blocking_agent(cell.url, cell.settings, INTERVAL_S) as blocking,
        Client(cell.url, settings=cell.settings) as client,
    ):
        first = await client.submit("block")
        await wait_until(lambda: blocking.runs == [first.task_id], "it runs")

        async def is_deaf() -> bool:
            return (await client.agent("blocked")).deaf

        await wait_until(is_deaf, "its loop is blocked")
        second = await client.submit("block")
        since = (await client.agent("blocked")).last_heartbeat

        async def has_waited() -> bool:
            return (await client.agent("blocked")).last_heartbeat > since + 3 * TIMEOUT_MS

        await wait_until(has_waited, "it has sent heartbeats for three times its timeout")
        record = await client.agent("blocked")
        assert (record.status, record.deaf) == (AgentStatus.ACTIVE, True)
        assert (await client.task(second.task_id)).state == "queued"
        log: list[tuple[bytes, dict[bytes, bytes]]] = await cell.redis.execute_command(
            "XRANGE", cell.keys.of("log:agents"), "-", "+"
        )
        assert b"agent.lost" not in [fields[b"type"] for _id, fields in log]
        blocking.release.set()
        assert [await first.result(30), await second.result(30)] == ["done", "done"]
        assert blocking.runs == [first.task_id, second.task_id]


async def test_heartbeats_that_are_started_before_they_are_opened_go_out(
    server: EmbeddedServer, coordinator: PlayedCoordinator
) -> None:
    """The registry may answer while the connection is still being opened."""
    fact = AgentRegistered("early", AgentType.WORKER, incarnation="me")
    heartbeats = heartbeat.Heartbeats(
        fact, 0.1, server.url, coordinator.settings,
        leases=lambda: 0, listed=dict, is_deaf=lambda: False, reset=lambda: None,
        handler_of=lambda _task: "", on_sent=lambda _entry, _at: None,
    )  # fmt: skip
    heartbeats.start()
    heartbeats.open()
    await coordinator.wait_for("in:beats", AgentHeartbeat, 2)
    await heartbeats.close()


def current_thread() -> heartbeat.HeartbeatThread | None:
    """Return the thread of this process."""
    return heartbeat._current


async def test_the_thread_ends_with_the_last_agent(server: EmbeddedServer, coordinator: PlayedCoordinator) -> None:
    """Agents of a process share it; a later agent gets another."""
    agents = [Agent(f"a{n}", url=server.url, settings=coordinator.settings) for n in range(2)]
    for agent in agents:
        await agent.start()
    thread = current_thread()
    assert thread is not None
    assert thread.users == 2
    await agents[0].stop()
    assert current_thread() is thread
    await agents[1].stop()
    assert current_thread() is None
    await wait_until(thread.loop.is_closed, "the thread has ended")
    await agents[0].start()
    await coordinator.wait_for("in:beats", AgentHeartbeat)
    await agents[0].stop()
