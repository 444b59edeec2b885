"""The runner: handlers that must stop, or do not end in time."""

from __future__ import annotations

import asyncio
import math
import os
import re
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import pytest
import structlog

from coord import Agent, NonRetryable, Release, Retryable, Task
from coord.agent import runner as runner_module
from coord.agent.handlers import read_handler
from coord.agent.runner import Runner
from coord.agent.task import Attempt
from coord.models.agents import AgentStatus
from coord.models.facts import AgentRegistered, AgentStatusChanged, TaskCompleted, TaskReleased
from tests.agent.desk import Desk
from tests.agent.played_coordinator import PlayedCoordinator
from tests.waiting import wait_until


def nothing(*_args: object) -> None:
    """Do nothing, in place of a callback."""


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    """For handlers that are not async."""
    with ThreadPoolExecutor(1) as pool:
        yield pool


@pytest.mark.parametrize("kind", ["async", "thread"])
async def test_the_late_result_of_an_abandoned_handler_is_dropped(
    desk: Desk, threads: ThreadPoolExecutor, kind: str
) -> None:
    """Its task was given back, and another agent may run it: a later result is not reported."""
    gate, may_end = asyncio.Event(), threading.Event()

    async def deaf(task: Task) -> str:
        while not gate.is_set():
            try:
                await gate.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    def threaded(task: Task) -> str:
        may_end.wait(30)
        return "late"

    handler: Callable[..., object] = deaf if kind == "async" else threaded
    runner = Runner(
        "a", {"hold": read_handler(handler)}, None, threads, desk.reports, on_ended=nothing, on_stuck=nothing
    )
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b'{"task_type":"hold"}')
    runner.start(attempt)
    assert attempt.future is not None
    handled = attempt.future
    await runner.finish(0, 0)
    assert (runner.has_abandoned, runner.running) == (True, 0)
    gate.set()
    may_end.set()
    await asyncio.gather(handled, return_exceptions=True)
    await asyncio.sleep(0)  # reports go out at the end of the turn
    runner.close()
    assert [one[3] for one in desk.link.commands(b"XADD")] == [b"task.released"]


async def test_a_handler_that_is_stopped_before_its_first_step_is_given_back(
    desk: Desk, threads: ThreadPoolExecutor
) -> None:
    """A coroutine that never began could not report its end: the slot would be taken for good."""

    async def hang(task: Task) -> None:
        await asyncio.Event().wait()

    runner = Runner("a", {"hang": read_handler(hang)}, None, threads, desk.reports, on_ended=nothing, on_stuck=nothing)
    attempt = Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b'{"task_type":"hang"}')
    runner.start(attempt)
    assert attempt.future is not None
    handled = attempt.future
    runner.stop(attempt, "cancelled")
    await asyncio.gather(handled, return_exceptions=True)
    runner.close()
    (report,) = desk.link.commands(b"XADD")
    assert (report[3], b"cancelled" in report[5], runner.running) == (b"task.released", True, 0)


class Unspeakable(Exception):
    """An error that cannot be described."""

    def __str__(self) -> str:
        raise SystemExit(3)


class Checked(msgspec.Struct):
    """A payload with a check of its own."""

    n: int

    def __post_init__(self) -> None:
        raise KeyError(self.n)


async def checked(payload: Checked) -> None:
    """Never called."""


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (NonRetryable(404, "gone"), b"task.failed", b'"code":"404","message":"gone"'),  # type: ignore[arg-type]
        (NonRetryable("bad", ValueError("x")), b"task.failed", b'"message":"x"'),  # type: ignore[arg-type]
        (
            NonRetryable("bad", detail={"page": 3}),
            b"task.failed",
            b'"retryable":false,"started_ms_ago":0,"detail":{"page":3}',
        ),
        (Retryable("bad", detail=[None]), b"task.failed", b'"detail":[null]'),
        (Retryable("bad", "no", detail=object()), b"task.failed", b'"message":"no","started_ms_ago":0}'),
        (Retryable("bad", "no", detail="x" * 4_096), b"task.failed", b'"message":"no","started_ms_ago":0}'),
        (Retryable("bad", None), b"task.failed", b'"message":"None"'),  # type: ignore[arg-type]
        (Release(ValueError("later")), b"task.released", b'"reason":"later"'),  # type: ignore[arg-type]
        (Unspeakable(), b"task.failed", b'"message":"Unspeakable"'),
    ],
    ids=["code", "message", "detail", "list", "odd", "large", "none", "reason", "unspeakable"],
)
async def test_whatever_a_handler_raises_ends_its_attempt(
    desk: Desk, threads: ThreadPoolExecutor, error: Exception, kind: bytes, says: bytes
) -> None:
    """The slot is free again, and the coordinator hears of it, whatever the exception was made of."""

    async def handler(task: Task) -> None:
        raise error

    (report,) = await _outcomes(desk, threads, handler)
    assert report[3] == kind
    assert says in re.sub(rb'"started_ms_ago":\d+', b'"started_ms_ago":0', report[5])


async def test_a_payload_whose_own_check_raises_fails_its_task_alone(desk: Desk, threads: ThreadPoolExecutor) -> None:
    """Whatever it raises: the others of its batch are started."""
    (report,) = await _outcomes(desk, threads, checked)
    assert b'"code":"payload_invalid","message":"payload: KeyError: 1","retryable":false' in report[5]


async def test_an_exception_text_that_is_no_utf8_is_reported(
    desk: Desk, threads: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file's name may hold half of a surrogate pair; the log line about it fails nothing, and keeps it."""
    name = os.fsdecode(b"report-\xff.txt")

    async def handler(task: Task) -> None:
        raise ValueError(f"{name} is damaged")

    structlog.configure(processors=[structlog.processors.format_exc_info, _as_json])
    try:
        (report,) = await _outcomes(desk, threads, handler)
    finally:
        structlog.reset_defaults()
    assert b'"message":"ValueError: report-?.txt is damaged"' in report[5]
    assert "report-\\\\udcff.txt is damaged" in capsys.readouterr().err


def _as_json(_logger: object, _method: str, event: Any) -> str:
    return msgspec.json.encode(event).decode()


@pytest.mark.parametrize(
    ("payload", "path"),
    [
        (b'{"n":1e999}', b"payload.n: the number 1e999"),
        (b"[" + b"7" * 5_000 + b"]", "payload[0]: the number 777777777777… (5000 characters)".encode()),
    ],
    ids=["large", "digits"],
)
@pytest.mark.parametrize("kind", ["async", "thread", "annotated"])
async def test_a_payload_that_cannot_be_decoded_fails_its_task_for_good(
    desk: Desk, threads: ThreadPoolExecutor, payload: bytes, path: bytes, kind: str
) -> None:
    """No retry can decode it either; the message has the path."""

    async def handler(task: Task) -> object:
        return task.payload

    def in_thread(task: Task) -> object:
        return task.payload

    async def annotated(payload: dict[str, float] | list[int]) -> object:
        return payload

    handlers: dict[str, Callable[..., object]] = {"async": handler, "thread": in_thread, "annotated": annotated}
    (report,) = await _outcomes(desk, threads, handlers[kind], payload)
    assert b'"code":"payload_invalid","message":"%b is out of range","retryable":false' % path in report[5]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        ({"pages": [{"score": math.nan}]}, b"result.pages[0].score: nan is not a JSON number; use null or a string"),
        (msgspec.Raw(b'{"n":1e999}'), b"result.n: the number 1e999 is out of range"),
        ({"image": object, "text": "paid for"}, b"'text': 'paid for'"),
    ],
    ids=["nan", "raw", "type"],
)
async def test_a_result_that_is_no_json_fails_with_its_path_and_its_text(
    desk: Desk, threads: ThreadPoolExecutor, result: object, says: bytes
) -> None:
    """The work is paid for: what it made is kept in the error, up to a limit."""

    async def handler(task: Task) -> object:
        return result

    (report,) = await _outcomes(desk, threads, handler)
    assert says in report[5]
    assert b'"code":"result_invalid"' in report[5]
    assert b"; the result was: " in report[5]


async def test_progress_that_is_no_json_fails_no_task(
    desk: Desk, threads: ThreadPoolExecutor, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is left out, and the log names the value."""

    async def handler(task: Task) -> str:
        await task.progress({"rate": math.inf})
        await task.progress({"model": object()})
        return "done"

    (report,) = await _outcomes(desk, threads, handler)
    assert report[3] == b"task.completed"
    logged = capsys.readouterr().err
    assert "progress.rate: inf is not a JSON number" in logged
    assert "progress.model: cannot be encoded as JSON" in logged


async def _outcomes(
    desk: Desk, threads: ThreadPoolExecutor, handler: Callable[..., object], payload: bytes = b'{"n":1}'
) -> list[list[bytes]]:
    """Return the reports of one attempt, after which nothing runs."""
    ended: list[bool] = []
    runner = Runner(
        "a",
        {"hold": read_handler(handler)},
        None,
        threads,
        desk.reports,
        on_ended=lambda: ended.append(True),
        on_stuck=nothing,
    )
    runner.start(Attempt("t", "f" * 16, 1, lane=2, entry=b"1-1", raw=b'{"task_type":"hold","payload":%b}' % payload))
    await wait_until(lambda: ended, "the slot is free")
    assert runner.running == 0
    await asyncio.sleep(0)  # reports go out at the end of the turn
    runner.close()
    return desk.link.commands(b"XADD")


async def test_what_a_stopped_handler_returns_is_dropped(agent: Agent, coordinator: PlayedCoordinator) -> None:
    """Async or in a thread: its task is given back, so that a cancel that was accepted holds."""

    @agent.task("deaf")
    async def deaf(task: Task) -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            return "swallowed"
        return ""

    await agent.start()
    lease = await coordinator.assign("a", "deaf")
    await wait_until(lambda: agent.running == 1, "it runs")
    await coordinator.order_stop("a", lease, "why")
    (released,) = await coordinator.wait_for("in:reports", TaskReleased)
    assert (released.lease, released.reason) == (lease, "why")


async def test_slots_of_handlers_that_go_on_are_offered_to_nobody(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread cannot be ended: until it ends by itself its agent has less room, or is busy and gives back all."""
    monkeypatch.setattr(runner_module, "STUCK_S", 0.05)
    may_end = threading.Event()

    @agent.task("hold")
    def hold(task: Task) -> str:
        may_end.wait(30)
        return "late"

    await agent.start()
    leases = [await coordinator.assign("a", "hold") for _ in range(2)]
    await wait_until(lambda: agent.running == 2, "both run")
    await coordinator.order_stop("a", leases[0])
    assert [one.capacity for one in await coordinator.wait_for("in:registry", AgentRegistered, 2)] == [2, 1]
    assert not [one for one in await coordinator.facts("in:registry") if isinstance(one, AgentStatusChanged)]
    third = await coordinator.assign("a", "echo")
    await coordinator.order_stop("a", leases[1])
    (released,) = await coordinator.wait_for("in:reports", TaskReleased)
    fourth = await coordinator.assign("a", "echo")
    released, again = await coordinator.wait_for("in:reports", TaskReleased, 2)
    assert [released.lease, again.lease] == [third, fourth]
    assert "handlers that must stop still run" in released.reason
    may_end.set()
    reported = await coordinator.wait_for("in:registry", AgentStatusChanged, 2)
    assert [one.status for one in reported] == [AgentStatus.BUSY, AgentStatus.ACTIVE]
    assert [one.capacity for one in await coordinator.wait_for("in:registry", AgentRegistered, 5)] == [2, 1, 1, 1, 2]
    await coordinator.assign("a", "echo", 7)
    await coordinator.wait_for("in:reports", TaskCompleted)


async def test_maintenance_stays_maintenance_whatever_its_handlers_do(
    agent: Agent, coordinator: PlayedCoordinator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Busy replaces only active."""
    monkeypatch.setattr(runner_module, "STUCK_S", 0.05)
    may_end = threading.Event()
    agent.task("hold")(lambda _task: may_end.wait(30))
    await agent.start()
    leases = [await coordinator.assign("a", "hold") for _ in range(2)]
    await wait_until(lambda: agent.running == 2, "both run")
    await agent.set_status(AgentStatus.MAINTENANCE)
    for lease in leases:
        await coordinator.order_stop("a", lease)
    await coordinator.wait_for("in:registry", AgentRegistered, 3)
    may_end.set()
    await coordinator.wait_for("in:registry", AgentRegistered, 5)
    reported = await coordinator.wait_for("in:registry", AgentStatusChanged, 3)
    assert {one.status for one in reported} == {AgentStatus.MAINTENANCE}
