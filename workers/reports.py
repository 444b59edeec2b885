"""Agents' reports on their way to ``settle``: an entry tells of one task, or of many that were completed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from coord.models.facts import TaskCompleted, TaskFailed, TaskProgressed, TaskReleased, TaskStarted, parts_of
from coord.streams import Entry
from workers.refusals import Refusal, redirected
from workers.service import ReceivedFact, word_for_each
from workers.transitions import Call, Report, Scripts, TaskBatch

#: Characters of a failure's message that are kept.
MESSAGE_KEPT = 2_000
#: The reports that end a lease.
ENDINGS = frozenset({TaskCompleted, TaskFailed, TaskReleased})


def settle(
    scripts: Scripts, batch: Sequence[ReceivedFact[Any]], refusals: Mapping[str, Refusal] | None = None
) -> Call[TaskBatch]:
    """``settle`` for a batch of entries; answers a word for each.

    Args:
        scripts: of the worker.
        batch: entries with reports.
        refusals: lease -> where a task waits whose payload its agent could not decode.
    """
    reports = [_report_of(one.entry, part, one.caller) for one in batch for part in parts_of(one.fact)]
    if refusals:
        reports = [redirected(report, refusals) for report in reports]
    return word_for_each(batch, scripts.settle(reports))


def ending_leases(batch: Sequence[ReceivedFact[Any]]) -> list[str]:
    """The leases that these reports end, if they count."""
    return [part.lease for one in batch for part in parts_of(one.fact) if type(part) in ENDINGS]


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
                started_ms_ago=fact.started_ms_ago, code=fact.code, message=fact.message[:MESSAGE_KEPT],
                retryable=fact.retryable,
            )  # fmt: skip
        case TaskReleased():
            return Report(
                entry=entry.id, kind="released", task_id=fact.task_id, lease=fact.lease, caller=caller,
                started_ms_ago=fact.started_ms_ago, code=fact.code, message=fact.reason[:MESSAGE_KEPT],
            )  # fmt: skip
    raise TypeError(f"{type(fact).__name__} is no report")
