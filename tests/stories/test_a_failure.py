"""When a handler fails, gives back, or returns what cannot travel."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from coord import Client, NonRetryable, Release, Task, TaskSpec
from coord.agent import runner
from coord.errors import TaskExpired, TaskFailed
from coord.models.tasks import Retry
from tests.stories.conftest import MakeAgent
from tests.waiting import wait_until

SOON = Retry(max_attempts=3, backoff=0.01)


@pytest.mark.guarantee("retry-elsewhere")
async def test_an_agent_that_fails_at_once_fails_no_task_for_good(client: Client, make_agent: MakeAgent) -> None:
    """⚠ It is always the least loaded one, so it got most tasks, and got them again until no attempt was left."""
    healthy = [make_agent(f"healthy-{number}", capacity=1) for number in range(2)]
    broken = make_agent("broken", capacity=8)

    async def work(task: Task) -> str:
        await asyncio.sleep(0.02)
        return "done"

    async def fail(task: Task) -> str:
        raise ValueError("always")

    for agent in (*healthy, broken):
        agent.task("work")(fail if agent is broken else work)
        await agent.start()
    handles = await client.submit_many([TaskSpec(task_type="work", retry=SOON) for _ in range(40)])
    assert [await handle.result(timeout=30) for handle in handles] == ["done"] * 40
    records = [await handle.record() for handle in handles]
    assert {record.failures for record in records} == {0, 1}
    assert {one.agent_id for record in records for one in record.attempts} == {"broken"}


async def test_a_failed_attempt_is_tried_again(client: Client, make_agent: MakeAgent) -> None:
    """Whatever a handler raises ends one attempt; the story of the failed ones is kept."""
    agent = make_agent("flaky")

    @agent.task("flaky")
    async def flaky(task: Task) -> int:
        if task.attempt < 3:
            raise ValueError("not yet")
        return task.attempt

    await agent.start()
    handle = await client.submit("flaky", retry=SOON)
    assert await handle.result(timeout=20) == 3
    record = await handle.record()
    assert [(one.how, one.code, one.message) for one in record.attempts] == [
        ("failed", "handler_failed", "ValueError: not yet")
    ] * 2


async def test_a_task_fails_when_its_attempts_are_used_up(client: Client, make_agent: MakeAgent) -> None:
    """The last error is the task's, with where it was raised; the exception says at which attempt."""
    agent = make_agent("broken")

    @agent.task("broken")
    def broken(task: Task) -> None:
        raise RuntimeError("always")

    await agent.start()
    handle = await client.submit("broken", retry={"max_attempts": 2, "backoff": 0.01})
    with pytest.raises(TaskFailed, match=r"at attempt 2: handler_failed: RuntimeError: always") as failed:
        await handle.result(timeout=20)
    where = failed.value.detail["traceback"]
    assert where.startswith(f'  File "{__file__}", line ')
    assert where.endswith(' in broken\n    raise RuntimeError("always")\n')
    attempts = (await handle.record()).attempts
    assert [one.detail for one in attempts] == [{"traceback": where}] * 2


async def test_a_failure_that_no_retry_mends_is_final(client: Client, make_agent: MakeAgent) -> None:
    """NonRetryable ends the task at its first attempt, with the handler's own code and message."""
    agent = make_agent("judge")

    @agent.task("parse")
    async def parse(task: Task) -> None:
        raise NonRetryable("syntax_error", "line 7")

    await agent.start()
    handle = await client.submit("parse", retry=SOON)
    with pytest.raises(TaskFailed, match="syntax_error: line 7"):
        await handle.result(timeout=10)
    record = await handle.record()
    assert record.error is not None
    assert (record.attempt, record.error.code, record.error.message) == (1, "syntax_error", "line 7")


async def test_a_handler_may_give_a_task_back(client: Client, make_agent: MakeAgent) -> None:
    """Release counts as no attempt that failed: the task is placed again."""
    agent = make_agent("picky")

    @agent.task("pick")
    async def pick(task: Task) -> str:
        if task.attempt == 1:
            raise Release("not now")
        return "picked"

    await agent.start()
    handle = await client.submit("pick", retry={"max_attempts": 1})
    assert await handle.result(timeout=10) == "picked"
    record = await handle.record()
    assert (record.failures, record.releases, record.attempts[0].how) == (0, 1, "released")


@pytest.mark.parametrize(("result", "code"), [({1, object()}, "result_invalid"), ("x" * 2_000_000, "result_too_large")])
async def test_a_result_that_cannot_travel_is_a_failure(
    client: Client, make_agent: MakeAgent, result: Any, code: str
) -> None:
    """What is no JSON, or too large, fails the task for good, and the message says so."""
    agent = make_agent("strange")

    @agent.task("strange")
    async def strange(task: Task) -> Any:
        return result

    await agent.start()
    handle = await client.submit("strange")
    with pytest.raises(TaskFailed, match=code):
        await handle.result(timeout=10)


async def test_a_task_expires_at_its_deadline(client: Client) -> None:
    """Nobody did it in time: it ends, and its caller is told."""
    handle = await client.submit("late", deadline=datetime.now(UTC) + timedelta(seconds=0.3))
    with pytest.raises(TaskExpired):
        await handle.result(timeout=10)


async def test_an_attempt_that_takes_longer_than_its_timeout_is_stopped(client: Client, make_agent: MakeAgent) -> None:
    """The agent is told to stop it, and the task is tried again elsewhere or fails."""
    agent = make_agent("slow")
    begun: list[int] = []
    stopped: list[int] = []

    @agent.task("slow")
    async def slow(task: Task) -> None:
        begun.append(task.attempt)
        try:
            await asyncio.Event().wait()
        finally:
            stopped.append(task.attempt)

    await agent.start()
    # More than one, for an attempt's time also runs while a busy machine has not come to begin its handler.
    handle = await client.submit("slow", timeout=0.3, retry=SOON)
    with pytest.raises(TaskFailed, match=r"at attempt \d+: timed_out"):
        await handle.result(timeout=20)
    await wait_until(lambda: begun and stopped == begun, "every handler that began was stopped")


async def test_nothing_is_sent_to_slots_that_cannot_be_freed(
    client: Client, make_agent: MakeAgent, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handler in a thread goes on when its attempt has timed out: the next task goes to an agent that has room."""
    monkeypatch.setattr(runner, "STUCK_S", 0.1)
    may_end = threading.Event()
    stuck, free = make_agent("stuck", capacity=1), make_agent("free", capacity=1)

    @stuck.task("work")
    def hold(task: Task) -> str:
        may_end.wait(60)
        return "stuck"

    await stuck.start()
    held = await client.submit("work", timeout=0.3, retry={"max_attempts": 1})
    with pytest.raises(TaskFailed, match="timed_out"):
        await held.result(timeout=20)

    async def is_busy() -> bool:
        return (await client.agent("stuck")).status == "busy"

    await wait_until(is_busy, "it says that it has no room")

    @free.task("work")
    async def work(task: Task) -> str:
        return "free"

    await free.start()
    handles = await client.submit_many([TaskSpec(task_type="work")] * 5)
    assert [await handle.result(timeout=20) for handle in handles] == ["free"] * 5
    may_end.set()
    await free.stop()
    assert await (await client.submit("work")).result(timeout=20) == "stuck", "it has room again"
