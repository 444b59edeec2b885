"""Facts of tasks as arguments of scripts: submissions for ``admit``, reports for ``settle``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from coord import codec
from coord.models.facts import (
    DETAIL_BYTES,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
    parts_of,
)
from coord.models.ids import entry_ms
from coord.models.tasks import HEAD_START_MS, NamedTask, Preferences, Priority, TaskSubmitted
from coord.streams import Entry
from coord.values import find_fault
from workers.service import ReceivedFact
from workers.transitions import Report, Submission

#: Characters of a failure's message that are kept.
MESSAGE_KEPT = 2_000
Ending = TaskCompleted | TaskFailed | TaskReleased
#: The reports that end a lease.
ENDINGS = frozenset({TaskCompleted, TaskFailed, TaskReleased})

#: stream of submissions -> priority, its head start in ms.
_BY_STREAM = {f"in:tasks:{priority}": (priority.value, HEAD_START_MS[priority]) for priority in Priority}


def submissions_of(received: ReceivedFact[Any], pool_of: Callable[[TaskSubmitted], str]) -> list[Submission]:
    """Return the tasks of a submission as ``admit`` takes them; one entry may carry several.

    Args:
        received: the fact as it was received.
        pool_of: returns the pool of a task.
    """
    entry, whole, caller = received
    priority, head_start = _BY_STREAM[entry.stream]
    submitted_at = entry_ms(entry.id)
    found: list[Submission] = []
    for fact in parts_of(whole):
        run_at = _run_at_of(fact, submitted_at)
        score = (submitted_at if run_at is None else run_at) - head_start
        body = entry.fields[b"data"] if fact is whole else codec.encode(fact)
        found.append(
            Submission(  # by position, which is faster
                entry.id, priority, fact.task_id, codec.digest_of(fact), pool_of(fact), score, run_at, caller,
                fact.notify, body, _options_of(fact),
            )
        )  # fmt: skip
    return found


def reports_of(batch: Sequence[ReceivedFact[Any]]) -> list[Report]:
    """Return the reports of a batch as ``settle`` takes them; one entry may carry several."""
    return [_report_of(received.entry, part, received.caller) for received in batch for part in parts_of(received.fact)]


def endings_of(batch: Sequence[ReceivedFact[Any]]) -> list[Ending]:
    """Return those of these reports that end a lease, if they count."""
    return [part for received in batch for part in parts_of(received.fact) if type(part) in ENDINGS]


def _report_of(entry: Entry, fact: Any, caller: str) -> Report:
    match fact:
        case TaskCompleted():  # by position, which is faster: most reports are of this kind
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
                started_ms_ago=fact.started_ms_ago, data=_detail_of(fact), code=fact.code,
                message=fact.message[:MESSAGE_KEPT], retryable=fact.retryable,
            )  # fmt: skip
        case TaskReleased():
            return Report(
                entry=entry.id, kind="released", task_id=fact.task_id, lease=fact.lease, caller=caller,
                started_ms_ago=fact.started_ms_ago, code=fact.code, message=fact.reason[:MESSAGE_KEPT],
            )  # fmt: skip
    raise TypeError(f"{type(fact).__name__} is not a report")


def _detail_of(fact: TaskFailed) -> bytes:
    """Return the detail to store with the error, on one line; empty if it is too large, too deep or cannot be decoded.

    Records hold it within other JSON, a line for each attempt. So one that can just be decoded by itself could make the
    record unreadable.
    """
    raw = bytes(fact.detail)
    if raw == b"null" or len(raw) > DETAIL_BYTES:
        return b""
    try:
        detail = codec.decode_json(raw)
    except codec.BAD_JSON:
        return b""
    return b"" if find_fault(detail, "detail") else b" ".join(raw.splitlines())


def _run_at_of(fact: TaskSubmitted, submitted_at: int) -> int | None:
    """Return the moment before which a task must not run, in ms; None if it may run at once."""
    if fact.delay:
        return submitted_at + int(fact.delay * 1000)
    if fact.run_at is not None:
        return max(submitted_at, int(fact.run_at.timestamp() * 1000))
    return None


def named_task_of(submission: Submission) -> NamedTask:
    """Return the task of a named queue that is about to be admitted."""
    raw = submission.options.get("preferences")
    preferences = codec.parse_preferences(raw if isinstance(raw, bytes) else None)
    return NamedTask(submission.score, submission.task_id, Priority(submission.priority), preferences)


def _options_of(fact: TaskSubmitted) -> dict[str, int | bytes]:
    """Return the limits that a task sets itself, in ms or as counts, and its preferences."""
    options: dict[str, int | bytes] = {}
    if fact.deadline is not None:
        options["deadline"] = int(fact.deadline.timestamp() * 1000)
    if fact.timeout is not None:
        options["timeout"] = int(fact.timeout * 1000)
    retry = fact.retry
    if retry.max_attempts is not None:
        options["max_attempts"] = retry.max_attempts
    if retry.backoff is not None:
        options["backoff_ms"] = int(retry.backoff * 1000)
    if retry.backoff_max is not None:
        options["backoff_max_ms"] = int(retry.backoff_max * 1000)
    if fact.location is not None or fact.affinity_key is not None:
        options["preferences"] = codec.encode(Preferences(fact.location, fact.affinity_key))
    return options
