"""Messages to an agent: in which order, how often, and what their handlers may do. The test plays the coordinator."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from contextlib import suppress
from typing import Any

import msgspec
import pytest
import structlog

from coord import Agent, Message, Task
from coord.agent import messages as mail
from coord.models.facts import TaskCompleted
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


def in_a_minute() -> int:
    """Ms since 1970."""
    return int(time.time() * 1000) + 60_000


@pytest.mark.guarantee("expired-before-handler")
async def test_a_message_is_not_handled_after_its_expiry(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """By the server's time; its entry is left to the router, which records that it expired unread."""
    got: list[str] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message.payload)

    await agent.start()
    await coordinator.deliver("a", "stale", expires_at=int(time.time() * 1000) - 500)
    await coordinator.deliver("a", "fresh", expires_at=in_a_minute())

    async def one_is_left() -> bool:
        return await coordinator.inbox("a") == 1

    await wait_until(one_is_left, "the fresh one is deleted")
    assert got == ["fresh"]
    ((_, left),) = await coordinator.entries("inbox:a:normal")
    assert left[b"id"] == b"stale"


@pytest.mark.guarantee("expired-during-handler")
async def test_a_message_that_expires_while_it_is_handled_is_deleted_then(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """⚠ It did not expire unread, so the router must not find it in the inbox."""
    release = asyncio.Event()

    @agent.on_message
    async def hear(message: Message) -> None:
        await release.wait()

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=int(time.time() * 1000) + 1_000)

    async def is_deleted() -> bool:
        return await coordinator.inbox("a") == 0

    await wait_until(is_deleted, "it is deleted while its handler runs")
    assert not release.is_set()
    release.set()


async def test_messages_are_handled_one_by_one_higher_lanes_first(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Also when more of them wait than are held in memory."""
    got: list[str] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message.payload)

    soon = in_a_minute()
    for n in range(100):
        await coordinator.deliver("a", f"low-{n:03d}", expires_at=soon, lane="low")
    await coordinator.deliver("a", "critical", expires_at=soon, lane="critical")
    await agent.start()
    await wait_until(lambda: len(got) == 101, "all are handled")
    assert got == ["critical", *(f"low-{n:03d}" for n in range(100))]


async def test_a_message_without_a_handler_is_deleted(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It would only fill the inbox."""
    await agent.start()
    await coordinator.deliver("a", "unheard", expires_at=in_a_minute())

    async def empty() -> bool:
        return await coordinator.inbox("a") == 0

    await wait_until(empty, "it is deleted")


@pytest.mark.guarantee("failing-message-handler")
@pytest.mark.parametrize("is_async", [False, True])
@pytest.mark.parametrize(
    "error", [ValueError("odd"), StopIteration(1), SystemExit(3), KeyboardInterrupt(), asyncio.CancelledError("own")]
)
async def test_whatever_its_handler_raises_a_message_is_tried_again_and_the_others_come(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch, error: BaseException, is_async: bool
) -> None:
    """⚠ Also what a future cannot hold, what would end the process, and a cancel without a request."""
    monkeypatch.setattr(mail, "RETRY_WAITS_S", (0.0, 0.0))
    got: list[str] = []

    def hear(message: Message) -> None:
        got.append(message.id)
        if message.id == "bad":
            raise error

    async def hear_async(message: Message) -> None:
        hear(message)

    agent.on_message(hear_async if is_async else hear)
    await agent.start()
    for message_id in ("bad", "good"):
        await coordinator.deliver("a", message_id, expires_at=in_a_minute())

    async def empty() -> bool:
        return await coordinator.inbox("a") == 0

    await wait_until(empty, "both are deleted")
    assert got == ["bad", "bad", "bad", "good"]


async def test_a_log_line_that_cannot_be_written_stops_no_message(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """⚠ Such as about a file's name that is no UTF-8: the others come all the same."""
    monkeypatch.setattr(mail, "RETRY_WAITS_S", (0.0, 0.0))
    got: list[str] = []

    @agent.on_message
    async def hear(message: Message) -> None:
        got.append(message.id)
        if message.id == "bad":
            raise ValueError(os.fsdecode(b"report-\xff.txt"))

    def refuse(*_args: object) -> str:
        raise TypeError("a processor of the program's own")

    await agent.start()
    structlog.configure(processors=[refuse])
    try:
        for message_id in ("bad", "good"):
            await coordinator.deliver("a", message_id, expires_at=in_a_minute())
        await wait_until(lambda: "good" in got, "the next one is handled")
    finally:
        structlog.reset_defaults()
    assert got == ["bad", "bad", "bad", "good"]


@pytest.mark.guarantee("expired-before-handler")
async def test_a_message_comes_while_handlers_of_tasks_have_all_threads(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """One of them may be waiting for it; and it is not kept waiting until it has expired."""
    came = threading.Event()

    @agent.task("wait")
    def wait(task: Task) -> bool:
        return came.wait(20)

    @agent.on_message
    def hear(message: Message) -> None:
        came.set()

    await agent.start()
    for _ in range(2):
        await coordinator.assign("a", "wait")
    await wait_until(lambda: agent.running == 2, "both threads are taken")
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    results = await coordinator.wait_for("in:reports", TaskCompleted, 2)
    assert [msgspec.json.decode(one.result) for one in results] == [True, True]


async def test_a_message_that_cannot_be_read_is_no_hindrance(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Only coord writes there; still it is logged and dropped, and the next one is handled."""
    got: list[Any] = []
    agent.on_message(lambda message: got.append(message.payload))
    await agent.start()
    odd: dict[Any, Any] = {"message_type": "direct", "data": "{", "id": "odd"}
    await coordinator.redis.xadd(coordinator.keys.inbox("a", "normal"), odd)
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await wait_until(lambda: got, "the next one is handled")
    assert got == ["m1"]


async def test_a_handler_of_messages_that_never_ends_is_left_behind(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """A thread cannot be stopped; ``has_abandoned`` says that one is left."""
    begun, over = threading.Event(), threading.Event()

    @agent.on_message
    def hear(message: Message) -> None:
        begun.set()
        over.wait(30)

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await asyncio.to_thread(begun.wait, 10)
    try:
        await agent.stop(grace=0.05)
        assert agent.has_abandoned
        assert await coordinator.inbox("a") == 1, "the next process handles it"
    finally:
        over.set()


async def test_one_that_rests_between_two_tries_is_not_left_behind(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing runs then; the message stays for the next process, and the mail's thread ends."""
    monkeypatch.setattr(mail, "RETRY_WAITS_S", (30.0, 30.0))
    tried: list[threading.Thread] = []

    @agent.on_message
    def hear(message: Message) -> None:
        tried.append(threading.current_thread())
        raise ValueError(message.id)

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await wait_until(lambda: tried, "it was tried once")
    await asyncio.sleep(0.05)
    await agent.stop(grace=0.05)
    assert not agent.has_abandoned
    assert await coordinator.inbox("a") == 1
    await wait_until(lambda: not tried[0].is_alive(), "the thread has ended")


async def test_an_async_handler_has_time_to_clean_up(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It is cancelled once, and waited for."""
    done: list[str] = []
    begun = asyncio.Event()

    @agent.on_message
    async def hear(message: Message) -> None:
        try:
            begun.set()
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.2)
            done.append("cleaned up")

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await begun.wait()
    await agent.stop(grace=0.05)
    assert done == ["cleaned up"]
    assert not agent.has_abandoned


async def test_an_async_handler_that_goes_on_is_left_behind(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though it was cancelled: the agent ends all the same, and says that something still runs."""
    monkeypatch.setattr(mail, "CANCEL_S", 0.1)
    begun, over = asyncio.Event(), asyncio.Event()

    @agent.on_message
    async def hear(message: Message) -> None:
        begun.set()
        while not over.is_set():
            with suppress(asyncio.CancelledError):
                await over.wait()

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await begun.wait()
    try:
        await asyncio.wait_for(agent.stop(grace=0.05), 10)
        assert agent.has_abandoned
    finally:
        over.set()
