"""An agent that is started twice, or stopped before it has started; and where it cannot be run."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable

import pytest
from redis.asyncio import Redis

from coord import Agent, Task, connection, run
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.errors import ConfigError, FactInvalid
from coord.models.facts import AgentDeregistered, AgentRegistered, TaskReleased
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


async def test_of_two_starts_at_once_one_is_refused(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It has one place in the fleet, and one session."""
    results = await asyncio.gather(agent.start(), agent.start(), return_exceptions=True)
    assert results[0] is None
    assert isinstance(results[1], ConfigError)
    assert "is running already" in str(results[1])
    assert len(await coordinator.wait_for("in:registry", AgentRegistered)) == 1


async def test_one_that_still_looks_for_redis_can_be_stopped(
    settings: Settings, unused_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """``start`` raises; ``serve`` returns; and the agent may be started again."""
    refused = asyncio.Event()
    ping = connection._ping_once

    async def noted(redis: Redis) -> None:
        try:
            await ping(redis)
        finally:
            refused.set()

    monkeypatch.setattr(connection, "_ping_once", noted)
    agent = Agent("a", url=f"redis://127.0.0.1:{unused_port}", settings=settings)
    starting = asyncio.create_task(agent.start())
    await refused.wait()
    await asyncio.wait_for(agent.stop(), 5)
    with pytest.raises(ConfigError, match="agent 'a' was stopped before it had started"):
        await asyncio.wait_for(starting, 5)
    refused.clear()
    serving = asyncio.create_task(agent.serve())
    await refused.wait()
    await asyncio.wait_for(agent.stop(), 5)
    await asyncio.wait_for(serving, 5)


async def test_one_that_still_prepares_itself_can_be_stopped(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It cleans up without an error."""
    done: list[str] = []
    begun = asyncio.Event()

    @agent.on_start
    async def prepare() -> None:
        begun.set()
        await asyncio.Event().wait()

    @agent.on_stop
    async def clean_up() -> None:
        done.append("cleaned up")

    serving = asyncio.create_task(agent.serve())
    await begun.wait()
    await asyncio.wait_for(agent.stop(), 5)
    await asyncio.wait_for(serving, 5)
    assert done == ["cleaned up"]
    assert not await coordinator.facts("in:registry")


async def test_a_start_that_is_given_up_leaves_nothing_behind(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """As with a time limit around it."""
    done: list[str] = []

    @agent.on_start
    async def prepare() -> None:
        done.append("began")
        await asyncio.Event().wait()

    @agent.on_stop
    async def clean_up() -> None:
        done.append("cleaned up")

    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent.start(), 0.3)
    assert done == ["began", "cleaned up"]
    assert (agent._session, agent._starting) == (None, None)


async def test_it_runs_in_the_main_thread_and_in_its_own_loop(agent: Agent) -> None:
    """Elsewhere it says what to do instead; and each id is there once."""
    with pytest.raises(ConfigError, match=r"await agent\.serve"):
        agent.run()
    with pytest.raises(ConfigError, match="only the main thread"):
        await asyncio.to_thread(agent.run)
    with pytest.raises(ConfigError, match="agent 'a' is named twice"):
        run(agent, agent)
    with pytest.raises(ConfigError, match=r"run\(\) takes agents, not str"):
        run("a")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="name at least one agent"):
        run()


async def test_handlers_are_registered_before_it_starts(agent: Agent) -> None:
    """Later ones would wait for tasks and messages that never come."""
    await agent.start()
    for register in (agent.task("late"), agent.any_task, agent.on_message):
        with pytest.raises(ConfigError, match="register its handlers before it is started"):
            register(lambda task: task)


async def test_who_gives_up_on_a_stop_leaves_no_handler_at_work(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It is cancelled, its task given back, and the agent leaves all the same."""
    cancelled = asyncio.Event()

    @agent.task("long")
    async def long(task: Task) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    await agent.start()
    await coordinator.assign("a", "long")
    await wait_until(lambda: agent.running == 1, "it runs")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(agent.stop(), 0.2)
    assert cancelled.is_set()
    await coordinator.wait_for("in:reports", TaskReleased)
    await coordinator.wait_for("in:registry", AgentDeregistered)
    assert not agent.is_serving


async def test_a_serve_that_is_cancelled_as_the_start_is_done_leaves_no_agent_behind(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """Nobody would be there to end it."""
    serving = asyncio.create_task(agent.serve())
    await asyncio.sleep(0)
    assert agent._starting is not None
    agent._starting.add_done_callback(lambda _: serving.cancel())
    with pytest.raises(asyncio.CancelledError):
        await serving
    assert agent._session is None
    await coordinator.wait_for("in:registry", AgentDeregistered)


async def test_a_handler_cannot_wait_for_the_end_that_waits_for_it(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """A handler of a task or of a message gets an error at once, with the alternative."""
    results: list[str] = []

    async def stop(_: object) -> None:
        try:
            await agent.stop()
        except ConfigError as error:
            results.append(str(error))

    agent.task("stop")(stop)
    agent.on_message(stop)
    await agent.start()
    await coordinator.assign("a", "stop")
    await coordinator.deliver("a", "m1", expires_at=int(time.time() * 1000) + 60_000)
    await wait_until(lambda: len(results) == 2, "both got an error")
    assert all("asyncio.create_task(agent.stop())" in one for one in results)


async def test_every_hook_of_the_end_is_called(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Also if another one fails; its error is raised then."""
    done: list[str] = []

    @agent.on_stop
    async def first() -> None:
        done.append("first")

    @agent.on_stop
    async def fails() -> None:
        raise ValueError("no")

    await agent.start()
    with pytest.raises(ValueError, match="no"):
        await agent.stop()
    assert done == ["first"]


async def test_it_says_of_itself_only_what_it_may(agent: Agent) -> None:
    """It leaves by being stopped, and others find out that it is stale."""
    await agent.start()
    for status in ("stale", "inactive", "tired", 5):
        with pytest.raises(FactInvalid, match="status: expected one of active, busy, maintenance, error, draining"):
            await agent.set_status(status)  # type: ignore[arg-type]


@pytest.mark.parametrize("ends", ["given_up", "stopped"])
async def test_where_a_start_ends_early_the_hooks_of_the_end_come_to_theirs(
    agent: Agent, coordinator: PlayedCoordinator, ends: str
) -> None:
    """Each has its time, as after any other run; and ``stop`` waits for them."""
    done: list[str] = []
    begun = asyncio.Event()

    @agent.on_start
    async def prepare() -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            done.append("undone")

    @agent.on_stop
    async def last() -> None:
        done.append("last")

    @agent.on_stop
    async def slow() -> None:
        await asyncio.sleep(0.2)
        done.append("slow")

    starting = asyncio.create_task(agent.start())
    await begun.wait()
    if ends == "stopped":
        await agent.stop()
    else:
        starting.cancel()
    with pytest.raises((ConfigError, asyncio.CancelledError)):
        await starting
    assert done == ["undone", "slow", "last"]


async def test_all_who_wait_for_its_end_wait_for_the_hooks_too(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """``serve``, a second ``stop``, and another ``start``."""
    done: list[str] = []
    leaving = asyncio.Event()

    @agent.on_start
    async def prepare() -> None:
        done.append("prepared")

    @agent.on_stop
    async def clean_up() -> None:
        leaving.set()
        await asyncio.sleep(0.2)
        done.append("cleaned up")

    stops: list[asyncio.Task[None]] = []

    @agent.task("leave")
    async def leave(task: Task) -> None:
        stops.append(asyncio.create_task(agent.stop()))

    async def wait_and_say(wait: Awaitable[None], what: str) -> None:
        await wait
        done.append(what)

    serving = asyncio.create_task(wait_and_say(agent.serve(), "served"))
    await wait_until(lambda: agent.is_serving, "the registry has answered")
    await coordinator.assign("a", "leave")
    await leaving.wait()
    stopping = asyncio.create_task(wait_and_say(agent.stop(), "stopped"))
    await agent.start()
    await asyncio.gather(serving, stopping, *stops)
    assert done[:2] == ["prepared", "cleaned up"]
    assert sorted(done[2:]) == ["prepared", "served", "stopped"]


async def test_no_handler_is_registered_while_it_starts(agent: Agent) -> None:
    """Its capabilities are registered already, or are being registered."""
    refused: list[str] = []

    @agent.on_start
    async def prepare() -> None:
        for register in (agent.task("late"), agent.any_task, agent.on_message):
            with pytest.raises(ConfigError, match="register its handlers before it is started"):
                register(lambda task: task)
            refused.append("refused")

    await agent.start()
    assert len(refused) == 3


@pytest.mark.parametrize(
    ("capabilities", "handles", "warning"),
    [
        ((), "", "it gets no tasks"),
        (("ocr",), "", "it gives back every task that it gets"),
        ((), "message", ""),
        (("ocr",), "any", ""),
        ((), "task", ""),
    ],
)
async def test_an_agent_without_handlers_warns(
    server: EmbeddedServer,
    coordinator: PlayedCoordinator,
    capfd: pytest.CaptureFixture[str],
    *,
    capabilities: tuple[str, ...],
    handles: str,
    warning: str,
) -> None:
    """The decorator was forgotten, or the module with the handlers was not imported."""
    agent = Agent("a", url=server.url, settings=coordinator.settings, capabilities=capabilities)
    register = {"message": agent.on_message, "any": agent.any_task, "task": agent.task("echo")}

    async def handle(_given: Task) -> None: ...

    if handles:
        register[handles](handle)
    async with agent:
        log = "".join(capfd.readouterr())
    assert ("agent.no_handlers" in log) is bool(warning)
    assert warning in log
