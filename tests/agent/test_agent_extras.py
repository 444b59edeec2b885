"""What programs are built on: a handler for any task, failures with a code, and what happens before and after."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from coord import Agent, Retryable, Task
from coord.config import Settings
from coord.errors import ConfigError, ServerUnavailable
from coord.models.facts import AgentDeregistered, AgentRegistered, TaskCompleted, TaskFailed
from tests.agent.played_coordinator import PlayedCoordinator


async def test_a_handler_for_any_task_has_what_no_other_has(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It adds no capability; the payload can be had as it was sent."""

    @agent.any_task
    async def anything(task: Task) -> Any:
        return [task.task_type, task.payload_json.decode()]

    await agent.start()
    await coordinator.assign("a", "echo", 1)
    await coordinator.assign("a", "odd", {"n": 1})
    facts = await coordinator.wait_for("in:reports", TaskCompleted, 2)
    assert sorted(bytes(fact.result) for fact in facts) == [b"1", rb'["odd","{\"n\":1}"]']
    (registered,) = await coordinator.wait_for("in:registry", AgentRegistered)
    assert registered.capabilities == ("echo",)
    with pytest.raises(ConfigError, match="handler for any task already"):
        agent.any_task(anything)


async def test_a_failure_may_have_a_code_and_be_tried_again(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Without the exception's name in its message."""

    @agent.task("fail")
    async def fail(task: Task) -> None:
        raise Retryable("no_page", "page 3 is missing")

    await agent.start()
    await coordinator.assign("a", "fail")
    (fact,) = await coordinator.wait_for("in:reports", TaskFailed)
    assert (fact.code, fact.message, fact.retryable) == ("no_page", "page 3 is missing", True)
    assert str(Retryable("alone")) == "alone"


async def test_something_is_done_before_it_registers_and_after_it_has_left(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """Each time; the last prepared is cleaned up first; handlers have ended by then."""
    done: list[str] = []

    async def registry_has(kind: type[Any]) -> str:
        return "sent" if any(isinstance(fact, kind) for fact in await coordinator.facts("in:registry")) else "silent"

    @agent.on_start
    async def first() -> None:
        done.append(f"first, registered: {await registry_has(AgentRegistered)}")

    @agent.on_start
    async def second() -> None:
        done.append("second")

    @agent.on_stop
    async def last() -> None:
        done.append("last")

    @agent.on_stop
    async def last_but_one() -> None:
        done.append(f"last but one, running: {agent.running}, left: {await registry_has(AgentDeregistered)}")

    await agent.start()
    await agent.stop()
    await agent.stop()
    assert done == [
        "first, registered: silent", "second", "last but one, running: 0, left: sent", "last",
    ]  # fmt: skip


async def test_what_was_prepared_is_cleaned_up_if_the_start_fails(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Also if the preparation itself fails, or the start was cancelled."""
    cleaned = 0

    @agent.on_stop
    async def clean() -> None:
        nonlocal cleaned
        cleaned += 1

    broken = Agent("b", settings=coordinator.settings, url=agent._url)
    broken.on_stop(clean)

    @broken.on_start
    async def fail() -> None:
        raise ConfigError("no model")

    with pytest.raises(ConfigError, match="no model"):
        await broken.serve()
    assert cleaned == 1
    coordinator.answers["agent.registered"] = "superseded"
    starting = asyncio.create_task(agent.start())
    await coordinator.wait_for("in:registry", AgentRegistered)
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    assert cleaned == 2


async def test_nothing_is_prepared_where_no_redis_is(unused_port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A model is not loaded in vain."""
    lonely = Agent("c", url=f"redis://127.0.0.1:{unused_port}", settings=Settings())
    prepared: list[str] = []

    @lonely.on_start
    async def prepare() -> None:
        prepared.append("model")

    with pytest.raises((ServerUnavailable, TimeoutError)):
        await asyncio.wait_for(lonely.start(), 1.0)
    assert prepared == []
