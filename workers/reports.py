"""Agents' reports on their way to ``settle``: an entry tells of one task, or of many that were completed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from coord.codec import BAD_JSON, decode_json
from coord.models.facts import (
    DETAIL_BYTES,
    TaskCompleted,
    TaskFailed,
    TaskProgressed,
    TaskReleased,
    TaskStarted,
    parts_of,
)
from coord.streams import Entry
from workers.service import ReceivedFact, word_for_each
from workers.transitions import Call, Report, Scripts, TaskBatch

#: Characters of a failure's message that are kept.
MESSAGE_KEPT = 2_000
#: The reports that end a lease.
ENDINGS = frozenset({TaskCompleted, TaskFailed, TaskReleased})


def settle(scripts: Scripts, batch: Sequence[ReceivedFact[Any]]) -> Call[TaskBatch]:
    """``settle`` for a batch of entries; answers a word for each."""
    reports = [_report_of(one.entry, part, one.caller) for one in batch for part in parts_of(one.fact)]
    return word_for_each(batch, scripts.settle(reports))


def ending_leases(batch: Sequence[ReceivedFact[Any]]) -> list[str]:
    """The leases that these reports end, if they count."""
    return [part.lease for one in batch for part in parts_of(one.fact) if type(part) in ENDINGS]


def _detail_of(fact: TaskFailed) -> bytes:
    """The detail that is kept with the error; empty for none, and for one that is too large or cannot be decoded."""
    raw = bytes(fact.detail)
    if raw == b"null" or len(raw) > DETAIL_BYTES:
        return b""
    try:
        decode_json(raw)
    except BAD_JSON:
        return b""
    return raw


def _report_of(entry: Entry, fact: Any, caller: str) -> Report:
    """A report of whichever kind."""
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
                started_ms_ago=fact.started_ms_ago, data=_detail_of(fact), code=fact.code,
                message=fact.message[:MESSAGE_KEPT], retryable=fact.retryable,
            )  # fmt: skip
        case TaskReleased():
            return Report(
                entry=entry.id, kind="released", task_id=fact.task_id, lease=fact.lease, caller=caller,
                started_ms_ago=fact.started_ms_ago, code=fact.code, message=fact.reason[:MESSAGE_KEPT],
            )  # fmt: skip
    raise TypeError(f"{type(fact).__name__} is no report")
