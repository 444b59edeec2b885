"""What facts say, as the distributor's scripts take it."""

from __future__ import annotations

from typing import Any

from coord.models.facts import TaskCompleted, TaskFailed, TaskProgressed, TaskReleased, TaskStarted
from coord.models.tasks import TaskSubmitted
from coord.transitions import Report
from workers.service import Told

#: Characters of a failure's message that are kept.
MESSAGE_KEPT = 2_000


def run_at_of(fact: TaskSubmitted, submitted_at: int) -> int | None:
    """The moment before which a task must not run, in ms; None when it may at once."""
    if fact.delay:
        return submitted_at + int(fact.delay * 1000)
    if fact.run_at is not None:
        return max(submitted_at, int(fact.run_at.timestamp() * 1000))
    return None


def options_of(fact: TaskSubmitted) -> dict[str, int]:
    """The limits that a task names itself, in ms or as counts."""
    options: dict[str, int] = {}
    if fact.deadline is not None:
        options["deadline"] = int(fact.deadline.timestamp() * 1000)
    if fact.timeout is not None:
        options["timeout"] = int(fact.timeout * 1000)
    if fact.retry.max_attempts is not None:
        options["max_attempts"] = fact.retry.max_attempts
    if fact.retry.backoff is not None:
        options["backoff_ms"] = int(fact.retry.backoff * 1000)
    if fact.retry.backoff_max is not None:
        options["backoff_max_ms"] = int(fact.retry.backoff_max * 1000)
    return options


def report_of(told: Told[Any]) -> Report:
    """A report of whichever kind."""
    entry, fact, caller = told
    match fact:
        case TaskCompleted():  # by position, which is quicker: most reports are of this kind
            return Report(
                entry.id, "completed", fact.task_id, fact.lease, caller, fact.started_ms_ago, bytes(fact.result)
            )
        case TaskStarted():
            return Report(
                entry=entry.id, kind="started", task_id=fact.task_id, lease=fact.lease, caller=caller,
                started_ms_ago=fact.started_ms_ago,
            )  # fmt: skip
        case TaskProgressed():
            return Report(
                entry=entry.id, kind="progressed", task_id=fact.task_id, lease=fact.lease, caller=caller,
                data=bytes(fact.progress),
            )  # fmt: skip
        case TaskFailed():
            return Report(
                entry=entry.id, kind="failed", task_id=fact.task_id, lease=fact.lease, caller=caller,
                started_ms_ago=fact.started_ms_ago, code=fact.code, message=fact.message[:MESSAGE_KEPT],
                retryable=fact.retryable,
            )  # fmt: skip
        case TaskReleased():
            return Report(
                entry=entry.id, kind="released", task_id=fact.task_id, lease=fact.lease, caller=caller,
                code="released", message=fact.reason[:MESSAGE_KEPT],
            )  # fmt: skip
    raise TypeError(f"{type(fact).__name__} is no report")
