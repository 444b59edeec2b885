"""A message that its handler puts off is tried again until it expires. The test plays the coordinator."""

from __future__ import annotations

import time
from typing import Any

import pytest
from structlog.testing import capture_logs

from coord import Agent, Message, NonRetryable, Retryable, Task
from coord.agent import messages as mail
from coord.errors import FactInvalid
from coord.models.facts import TaskFailed
from coord.redis_protocol import ErrorAnswer
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


def in_a_minute() -> int:
    """Ms since 1970."""
    return int(time.time() * 1000) + 60_000


async def wait_until_empty(coordinator: PlayedCoordinator) -> None:
    """Wait until the agent has deleted all its messages."""

    async def is_empty() -> bool:
        return await coordinator.inbox("a") == 0

    await wait_until(is_empty, "all messages are deleted")


@pytest.mark.guarantee("messages-put-off")
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_message_is_put_off_until_its_task_is_back(
    agent: Agent, coordinator: PlayedCoordinator, is_async: bool
) -> None:
    """More often than a handler may fail; messages that arrive later are handled meanwhile."""
    calls: list[str] = []

    def handle(message: Message) -> None:
        calls.append(message.id)
        if message.id == "decision" and calls.count("decision") < 6:
            raise Retryable("no_task", "its task is not back yet", after=0)

    async def handle_async(message: Message) -> None:
        handle(message)

    agent.on_message(handle_async if is_async else handle)
    await agent.start()
    await coordinator.deliver("a", "decision", expires_at=in_a_minute())
    await coordinator.deliver("a", "later", expires_at=in_a_minute())
    await wait_until_empty(coordinator)
    assert calls.count("decision") == 6
    assert calls.index("later") < 5


async def test_a_message_that_is_put_off_ends_when_it_expires(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """With a warning, and not after the time for which it was put off; its entry is left to the router."""
    calls: list[str] = []

    @agent.on_message
    async def handle(message: Message) -> None:
        calls.append(message.id)
        raise Retryable(after=3_600)

    await agent.start()
    with capture_logs() as logged:
        await coordinator.deliver("a", "decision", expires_at=int(time.time() * 1000) + 2_000)
        expired = await wait_until(
            lambda: [line for line in logged if line["event"] == "message.expired"], "it expires"
        )
    assert calls == ["decision"]
    assert await coordinator.inbox("a") == 1
    assert [(line["log_level"], line["put_off"]) for line in expired] == [("warning", 1)]


async def test_only_the_handler_that_puts_a_message_off_gets_it_again(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """Those before it have handled the message; those after it come when it is done."""
    calls: list[str] = []

    @agent.on_message
    async def first(message: Message) -> None:
        calls.append("first")

    @agent.on_message
    async def second(message: Message) -> None:
        calls.append("second")
        if calls.count("second") < 3:
            raise Retryable(after=0)

    @agent.on_message
    async def third(message: Message) -> None:
        calls.append("third")

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await wait_until_empty(coordinator)
    assert calls == ["first", "second", "second", "second", "third"]


@pytest.mark.guarantee("messages-put-off")
async def test_the_next_process_gets_a_message_that_is_put_off(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """It stays in the inbox while the agent leaves, and does not hold up the end."""
    calls: list[str] = []

    @agent.on_message
    async def handle(message: Message) -> None:
        calls.append(message.id)
        if len(calls) == 1:
            raise Retryable(after=30)

    await agent.start()
    await coordinator.deliver("a", "decision", expires_at=in_a_minute())
    await wait_until(lambda: calls, "it is put off")
    await agent.stop(grace=5)
    assert not agent.has_abandoned
    assert await coordinator.inbox("a") == 1
    await agent.start()
    await wait_until_empty(coordinator)
    assert calls == ["decision", "decision"]


async def test_messages_that_are_put_off_occupy_no_place(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Any number of them; others are handled."""
    handled: list[str] = []
    put_off: set[str] = set()

    @agent.on_message
    async def handle(message: Message) -> None:
        if message.id != "other":
            put_off.add(message.id)
            raise Retryable(after=30)
        handled.append(message.id)

    await agent.start()
    for n in range(100):
        await coordinator.deliver("a", f"m{n}", expires_at=in_a_minute(), sender_id=f"s{n}")
    await wait_until(lambda: len(put_off) == 100, "all are put off")
    await coordinator.deliver("a", "other", expires_at=in_a_minute(), sender_id="s0")
    await wait_until(lambda: handled, "the other one is handled")


async def test_a_message_is_given_up_at_once_if_no_retry_would_help(
    agent: Agent, coordinator: PlayedCoordinator
) -> None:
    """``NonRetryable`` means the same as in the handler of a task."""
    calls: list[str] = []

    @agent.on_message
    async def handle(message: Message) -> None:
        calls.append(message.id)
        raise NonRetryable("unknown_order", message.id)

    await agent.start()
    await coordinator.deliver("a", "m1", expires_at=in_a_minute())
    await wait_until_empty(coordinator)
    assert calls == ["m1"]


async def test_a_message_that_cannot_be_read_again_now_is_kept(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server may refuse the read for a while; an answer that is an error is not a message that is gone."""
    monkeypatch.setattr(mail, "READ_AGAIN_S", 0.0)
    monkeypatch.setattr(mail, "HELD", 0)
    read_again = mail.MessageRunner._read_again
    refused: list[bytes] = []
    handled: list[str] = []

    async def refuse_once(self: mail.MessageRunner, lane: int, entry: bytes) -> Any:
        if not refused:
            refused.append(entry)
            raise ErrorAnswer("NOPERM this user has no permissions")
        return await read_again(self, lane, entry)

    @agent.on_message
    async def handle(message: Message) -> None:
        handled.append(message.id)

    monkeypatch.setattr(mail.MessageRunner, "_read_again", refuse_once)
    for message_id in ("m1", "m2"):
        await coordinator.deliver("a", message_id, expires_at=in_a_minute())
    await agent.start()
    await wait_until_empty(coordinator)
    assert len(refused) == 1
    assert sorted(handled) == ["m1", "m2"]


@pytest.mark.parametrize("after", ["5", float("nan"), float("inf"), True])
def test_a_time_that_does_not_fit_is_refused(after: Any) -> None:
    """The error names the argument."""
    with pytest.raises(FactInvalid, match="after: expected a number of seconds, not"):
        Retryable(after=after)


async def test_a_task_whose_handler_names_no_code_fails_with_one(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """``Retryable()`` alone is enough."""

    @agent.task("flaky")
    async def flaky(task: Task) -> None:
        raise Retryable(after=1)

    await agent.start()
    await coordinator.assign("a", "flaky")
    (failed,) = await coordinator.wait_for("in:reports", TaskFailed)
    assert (failed.code, failed.retryable) == ("try_again", True)
