"""Submissions on their way to ``admit``."""

from __future__ import annotations

from typing import Any

from coord import codec
from coord.models.tasks import HEAD_START_MS, Priority, TaskSubmitted
from workers.service import ReceivedFact
from workers.transitions import Submission

#: stream of submissions -> priority, its head start in ms.
_BY_STREAM = {f"in:tasks:{one}": (one.value, HEAD_START_MS[one]) for one in Priority}


def submission_of(received: ReceivedFact[Any], fact: TaskSubmitted, pool: str) -> Submission:
    """One task of what was submitted, as ``admit`` takes it."""
    entry, whole, caller = received
    priority, head_start = _BY_STREAM[entry.stream]
    submitted_at = int(entry.id.partition("-")[0])
    run_at = _run_at_of(fact, submitted_at)
    return Submission(
        entry=entry.id,
        priority=priority,
        task_id=fact.task_id,
        digest=codec.digest_of(fact),
        pool=pool,
        score=(submitted_at if run_at is None else run_at) - head_start,
        run_at=run_at,
        caller=caller,
        notify=fact.notify,
        body=entry.fields[b"data"] if fact is whole else codec.encode(fact),
        options=_options_of(fact),
    )


def _run_at_of(fact: TaskSubmitted, submitted_at: int) -> int | None:
    """The moment before which a task must not run, in ms; None when it may at once."""
    if fact.delay:
        return submitted_at + int(fact.delay * 1000)
    if fact.run_at is not None:
        return max(submitted_at, int(fact.run_at.timestamp() * 1000))
    return None


def _options_of(fact: TaskSubmitted) -> dict[str, int]:
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
