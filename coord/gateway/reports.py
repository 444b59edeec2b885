"""Handlers of what an agent reports about a task that it holds, with the lease that came with the task."""

from __future__ import annotations

from typing import Any

import msgspec
from msgspec import Struct

from coord.gateway.body import check_decodable
from coord.gateway.inboxes import Report
from coord.gateway.routes import Answer, Call, written
from coord.models.facts import (
    Elapsed,
    Explanation,
    Lease,
    Name,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
)


def _null() -> msgspec.Raw:
    return msgspec.Raw(b"null")


class StartBody(Struct, frozen=True):
    """POST /tasks/{id}/start."""

    lease: Lease
    started_ms_ago: Elapsed = 0  #: milliseconds


class ProgressBody(Struct, frozen=True):
    """POST /tasks/{id}/progress."""

    lease: Lease
    progress: msgspec.Raw  #: any JSON


class CompleteBody(Struct, frozen=True):
    """POST /tasks/{id}/complete."""

    lease: Lease
    result: msgspec.Raw = msgspec.field(default_factory=_null)  #: any JSON
    started_ms_ago: Elapsed | None = None


class FailBody(Struct, frozen=True):
    """POST /tasks/{id}/fail."""

    lease: Lease
    code: Name = "handler_failed"
    message: Explanation = ""
    retryable: bool = True
    detail: msgspec.Raw = msgspec.field(default_factory=_null)
    started_ms_ago: Elapsed | None = None


class ReleaseBody(Struct, frozen=True):
    """POST /tasks/{id}/release."""

    lease: Lease
    reason: Explanation = ""
    code: Name = "released"
    started_ms_ago: Elapsed | None = None  #: null: the task was not started


class Reported(Struct, frozen=True, kw_only=True):
    """The response to each of them."""

    status: str = "success"
    message: str
    task_id: str
    reported_at: str


async def start(call: Call[StartBody, None]) -> Struct | Answer:
    """Record that the work on a task has begun."""
    body = call.body
    return await _report(call, TaskStarted(call.params["task_id"], body.lease, body.started_ms_ago), "Task started")


async def progress(call: Call[ProgressBody, None]) -> Struct | Answer:
    """Record how far the work on a task is."""
    body = call.body
    check_decodable(bytes(body.progress), "progress")
    return await _report(call, TaskProgressed(call.params["task_id"], body.lease, body.progress), "Progress recorded")


async def complete(call: Call[CompleteBody, None]) -> Struct | Answer:
    """Record the result of a task."""
    body = call.body
    check_decodable(bytes(body.result), "result")
    report = TaskCompleted(call.params["task_id"], body.lease, body.result, body.started_ms_ago)
    return await _report(call, report, "Task completed")


async def fail(call: Call[FailBody, None]) -> Struct | Answer:
    """Record that the attempt at a task has failed."""
    body = call.body
    check_decodable(bytes(body.detail), "detail")
    report = TaskFailed(
        call.params["task_id"], body.lease, body.code, body.message, body.retryable, body.started_ms_ago, body.detail
    )
    return await _report(call, report, "Failure recorded")


async def release(call: Call[ReleaseBody, None]) -> Struct | Answer:
    """Give a task back unfinished, which is no failure."""
    body = call.body
    report = TaskReleased(call.params["task_id"], body.lease, body.reason, body.code, body.started_ms_ago)
    return await _report(call, report, "Task released")


async def _report(call: Call[Any, None], report: Report, message: str) -> Struct | Answer:
    at, answered = await call.gateway.inboxes.report(report, call.wait_s)
    reported = Reported(message=message, task_id=report.task_id, reported_at=at)
    return written(call, reported, answered=answered, path=f"/tasks/{report.task_id}")
