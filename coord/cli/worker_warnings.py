"""What is wrong with the workers of a cell, a sentence each: missing, standing still, not keeping up."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.cli.output import duration
from coord.models.workers import WAITS_FOR, StreamBacklog

if TYPE_CHECKING:
    from coord.queries import WorkersSnapshot

#: An entry that has waited for longer says that nobody keeps up; batches take milliseconds.
WAITED_MS = 5_000
#: A loop comes round every two seconds even when there is nothing to do.
STILL_MS = 10_000


def is_late(backlog: StreamBacklog, now: int) -> bool:
    """Whether an entry has waited longer than it should."""
    return waited_ms(backlog, now) > WAITED_MS


def warnings(found: WorkersSnapshot, before: WorkersSnapshot | None = None) -> list[str]:
    """What is wrong, a sentence each, with the next step; ``before``: half a second earlier."""
    told = [
        f"no {kind} is there, so {WAITS_FOR[kind]} wait; start one: coord worker {kind}"
        for kind in dict.fromkeys(one.kind for one in found.backlogs)
        if not any(worker.kind == kind for worker in found.workers)
    ]
    told += [
        f"{worker.name} (pid {worker.pid} on {worker.host}) has not come round for "
        f"{duration(found.now - worker.progress_at)}; its own log says why"
        for worker in found.workers
        if found.now - worker.progress_at > STILL_MS
    ]
    lengths = {one.stream: one.length for one in before.backlogs} if before else {}
    for one in found.backlogs:
        if is_late(one, found.now):
            waited = duration(waited_ms(one, found.now))
            grown = one.length - lengths.get(one.stream, one.length)
            way = "and it grows" if grown > 0 else "and it shrinks" if grown < 0 else "and it does not shrink"
            entries = "1 entry waits" if one.length == 1 else f"{one.length:,} entries wait"
            told.append(f"{one.stream}: {entries}, the oldest for {waited}, {way}")
    return told


def waited_ms(backlog: StreamBacklog, now: int) -> int:
    """How long the oldest entry of a stream has waited at ``now``, both in milliseconds."""
    return 0 if backlog.oldest_at is None else now - backlog.oldest_at
