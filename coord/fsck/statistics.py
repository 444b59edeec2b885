"""The check of the histograms and of the totals of task types. No I/O."""

from __future__ import annotations

from collections.abc import Iterator

from coord.fsck.snapshot import CellSnapshot, Finding
from coord.models.tasks import Priority


def check_statistics(snapshot: CellSnapshot) -> Iterator[Finding]:
    """Check that they are numbers, and that they count no more tasks than the counters, which are read afterwards."""
    completed = 0
    for field, value in snapshot.histograms.items():
        name, _, bucket = field.rpartition(":")
        if not name or not (bucket in {"sum", "inf"} or bucket.isdecimal()) or not value.isdecimal():
            yield Finding("histograms.value", "histograms", f"{field} is {value}")
        elif name == "run:completed" and bucket != "sum":
            completed += int(value)
    total = _total(snapshot, "completed")
    if completed > total:
        yield Finding("histograms.count", "histograms", f"run:completed counts {completed} of {total} completed tasks")
    admitted = 0
    for task_type, value in snapshot.task_types.items():
        if value.isdecimal():
            admitted += int(value)
        else:
            yield Finding("task_types.value", "task_types", f"{task_type!r} is {value}")
    total = _total(snapshot, "submitted")
    if admitted > total:
        yield Finding("task_types.count", "task_types", f"they count {admitted} of {total} submitted tasks")


def _total(snapshot: CellSnapshot, name: str) -> int:
    return sum(snapshot.counters.get(f"{name}:{priority}", 0) for priority in Priority)
