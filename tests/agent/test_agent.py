"""An agent against a server: what it claims, runs, reports and deletes. The test plays the coordinator."""

from __future__ import annotations

import asyncio
import time

import pytest

from coord import Agent, Task
from coord.errors import AgentSuperseded
from coord.models.facts import (
    AgentDeregistered,
    AgentHeartbeat,
    AgentLeasesListed,
    AgentRegistered,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
)
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


async def test_a_short_task_is_claimed_run_and_reported_in_one_word(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """Its outcome carries the lease and when it started; there is no other report."""
    await agent.start()
    lease = await coordinator.assign("a", "echo", {"n": 1})
    (report,) = await coordinator.wait_for("in:reports", TaskCompleted)
    assert (report.task_id, report.lease, bytes(report.result)) == ("task-1", lease, b'{"n":1}')
    assert report.started_ms_ago is not None
    assert len(await coordinator.facts("in:reports")) == 1
    assert await coordinator.inbox("a") == 0


async def test_a_task_that_runs_a_while_is_reported_as_started(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """After 100 ms, with how long before the report it was; the outcome follows."""
    release = asyncio.Event()

    @agent.task("long")
    async def long(task: Task) -> None:
        await release.wait()

    await agent.start()
    lease = await coordinator.assign("a", "long")
    (started,) = await coordinator.wait_for("in:reports", TaskStarted)
    assert (started.lease, started.started_ms_ago >= 100) == (lease, True)
    release.set()
    (done,) = await coordinator.wait_for("in:reports", TaskCompleted)
    assert done.started_ms_ago is not None
    assert done.started_ms_ago >= started.started_ms_ago


async def test_it_registers_what_it_is_and_what_its_handlers_do(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Capabilities are those that were given and the task types; the incarnation is drawn for the run."""
    await agent.start()
    (fact,) = await coordinator.wait_for("in:registry", AgentRegistered)
    assert (fact.agent_id, fact.capabilities, fact.capacity) == ("a", ("echo",), 2)
    first = fact.incarnation
    await agent.stop()
    await agent.start()
    facts = await coordinator.wait_for("in:registry", AgentRegistered, 2)
    assert facts[1].incarnation not in ("", first)


async def test_it_beats_with_the_machines_load_and_its_leases(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Fractions for cpu and memory; the number of leases that it holds."""
    await agent.start()
    beats = await coordinator.wait_for("in:beats", AgentHeartbeat, 2)
    assert beats[-1].leases == 0
    assert set(beats[-1].load_metrics) == {"cpu", "memory"}
    assert all(0 <= value <= 1 for value in beats[-1].load_metrics.values())


async def test_an_unknown_agent_registers_again(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """The registry forgot it: a beat is answered so, and the agent registers with the same incarnation."""
    await agent.start()
    await coordinator.wait_for("in:beats", AgentHeartbeat)
    ((entry, _fields), *_rest) = await coordinator.entries("in:beats")
    await coordinator.answer("a", "in:beats", entry.decode(), "unknown_agent")
    first, second, *_ = await coordinator.wait_for("in:registry", AgentRegistered, 2)
    assert first == second


async def test_a_superseded_agent_stops_for_good(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Its handlers are cancelled, it takes nothing more, and serve says why."""
    running = asyncio.Event()

    @agent.task("hang")
    async def hang(task: Task) -> None:
        running.set()
        await asyncio.Event().wait()

    serving = asyncio.create_task(agent.serve())
    await coordinator.assign("a", "hang")
    await running.wait()
    await coordinator.wait_for("in:beats", AgentHeartbeat)
    ((entry, _fields), *_rest) = await coordinator.entries("in:beats")
    await coordinator.answer("a", "in:beats", entry.decode(), "superseded")
    with pytest.raises(AgentSuperseded, match="because superseded"):
        await serving
    assert (agent.running, agent.is_serving) == (0, False)
    assert not [fact for fact in await coordinator.facts("in:registry") if isinstance(fact, AgentDeregistered)]
    await coordinator.assign("a", "echo")
    assert await coordinator.inbox("a") == 1


async def test_what_a_superseded_agent_runs_is_stopped_at_once(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Also without ``serve``, which would stop it: its tasks belong to others now, so it gives them back."""
    running = asyncio.Event()

    @agent.task("hang")
    async def hang(task: Task) -> None:
        running.set()
        await asyncio.Event().wait()

    await agent.start()
    lease = await coordinator.assign("a", "hang")
    await running.wait()
    await coordinator.wait_for("in:beats", AgentHeartbeat)
    ((entry, _fields), *_rest) = await coordinator.entries("in:beats")
    await coordinator.answer("a", "in:beats", entry.decode(), "superseded")
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.reason) == (lease, "because superseded")
    assert agent.running == 0


async def test_a_superseded_registration_ends_the_start(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """A process that came late finds that a newer one has its id."""
    coordinator.answers["agent.registered"] = "superseded"
    with pytest.raises(AgentSuperseded):
        await agent.start()


async def test_a_stop_order_cancels_its_handler_and_the_task_is_released(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """The handler cleans up; the report tells the reason; the order is deleted."""
    running, cleaned = asyncio.Event(), asyncio.Event()

    @agent.task("hang")
    async def hang(task: Task) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    await agent.start()
    lease = await coordinator.assign("a", "hang")
    await running.wait()
    await coordinator.order_stop("a", lease, "its deadline passed")
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.reason) == (lease, "its deadline passed")
    assert cleaned.is_set()
    await wait_until(lambda: agent.leases == 0, "the lease is free")
    assert await coordinator.inbox("a", "critical") == 0


async def test_it_is_asked_once_which_leases_it_holds(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It answers with what it runs, and deletes the question, which each reconnect would find again."""
    release = asyncio.Event()

    @agent.task("hold")
    async def hold(task: Task) -> None:
        await release.wait()

    await agent.start()
    lease = await coordinator.assign("a", "hold", task_id="held")
    await wait_until(lambda: agent.running == 1, "it runs")
    await coordinator.order_list("a", "1-1")
    (answer,) = await coordinator.wait_for("in:registry", AgentLeasesListed)
    assert (answer.ask, answer.leases) == ("1-1", {lease: "held"})

    async def is_deleted() -> bool:
        return await coordinator.inbox("a", "critical") == 0

    await wait_until(is_deleted, "the question is deleted")
    release.set()


async def test_a_stop_order_that_is_read_with_its_assignment_is_obeyed(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """The handler never runs: the task is released for the order's reason, and the slot is free."""
    lease = await coordinator.assign("a", "echo", lane="critical")
    await coordinator.order_stop("a", lease)
    await agent.start()
    (report,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (report.lease, report.reason) == (lease, "cancelled")
    await wait_until(lambda: agent.leases == 0, "the lease is free")
    await coordinator.assign("a", "echo")
    await coordinator.wait_for("in:reports", TaskCompleted)
    assert [type(fact) for fact in await coordinator.facts("in:reports")] == [TaskReleased, TaskCompleted]


async def test_what_it_cannot_understand_is_left_and_the_rest_goes_on(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """An entry without the fields that belong to it does not keep the agent from the next."""
    await coordinator.redis.xadd(coordinator.keys.inbox("a", "normal"), {"message_type": "task_assignment", "odd": "1"})
    await coordinator.redis.xadd(coordinator.keys.inbox("a", "normal"), {"odd": "1"})
    await agent.start()
    await coordinator.assign("a", "echo")
    await coordinator.wait_for("in:reports", TaskCompleted)
    assert await coordinator.inbox("a") == 2


async def test_progress_is_recorded_the_newest_last(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """From an async handler and from a thread; what comes too fast is skipped, never the last."""
    release = asyncio.Event()

    @agent.task("steps")
    async def steps(task: Task) -> None:
        for n in range(50):
            await task.progress(n)
        await release.wait()

    @agent.task("threaded")
    def threaded(task: Task) -> None:
        task.report_progress({"half": True})
        deadline = time.monotonic() + 10
        while not release.is_set() and time.monotonic() < deadline:
            time.sleep(0.001)

    await agent.start()

    async def seen(last: bytes) -> bool:
        facts = [fact for fact in await coordinator.facts("in:reports") if isinstance(fact, TaskProgressed)]
        return any(bytes(fact.progress) == last for fact in facts)

    await coordinator.assign("a", "steps")
    await wait_until(lambda: seen(b"49"), "the last step is reported")
    await coordinator.assign("a", "threaded")
    await wait_until(lambda: seen(b'{"half":true}'), "the thread's progress is reported")
    release.set()
    await coordinator.wait_for("in:reports", TaskCompleted, 2)


async def test_errors_are_described_within_limits(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """A message is cut at 4,096 characters, halves of surrogate pairs are replaced, a broken __str__ is survived."""

    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no words")

    errors = {"long": ValueError("x" * 9_000), "odd": ValueError("\ud800"), "mute": Mute(), "exit": SystemExit(3)}

    @agent.task("raise")
    async def fail(task: Task) -> None:
        raise errors[task.payload]

    await agent.start()
    messages: dict[str, str] = {}
    for count, name in enumerate(errors, 1):
        await coordinator.assign("a", "raise", name)
        messages[name] = (await coordinator.wait_for("in:reports", TaskFailed, count))[-1].message
    assert (len(messages["long"]), messages["odd"], messages["mute"], messages["exit"]) == (
        4_096, "ValueError: ?", "Mute", "SystemExit: 3",
    )  # fmt: skip
