"""Consistency check of a cell: counters against records, and records against all that names tasks or agents.

Nothing here writes, and the cell may be live. A difference is checked again, and reported only if it is the same each
time: a transition is one script, so a task that is in transition at the next check is a different one. The sum
``submitted = scheduled + queued + assigned + running + terminal`` (of each priority, with the tasks that operators have
moved to it and from it) is read at one moment and always holds.
"""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from coord.config import Settings
from coord.fsck.agents import check_agents
from coord.fsck.checks import (
    check_alarms,
    check_api_keys,
    check_broadcasts,
    check_caps,
    check_claims,
    check_conversations,
    check_counters,
    check_ends,
    check_lanes,
    check_leases,
    check_links,
    check_masters,
    check_messages,
    check_requests,
    check_structures,
    check_sums,
    check_tokens,
    check_ttls,
)
from coord.fsck.snapshot import CellSnapshot, Finding, read_snapshot
from coord.fsck.statistics import check_statistics
from coord.keys import Keys

__all__ = ["CellSnapshot", "Finding", "FsckReport", "examine", "read_snapshot"]

#: Checks of single tasks and keys. ``check_counters`` compares totals, which is only valid while nothing changes.
SINGLE = (
    check_sums,
    check_structures,
    check_leases,
    check_alarms,
    check_claims,
    check_ends,
    check_tokens,
    check_api_keys,
    check_ttls,
    check_caps,
    check_agents,
    check_requests,
    check_conversations,
    check_messages,
    check_links,
    check_masters,
    check_lanes,
    check_broadcasts,
    check_statistics,
)
#: Snapshots of a live cell: a finding of at least three is certain. Totals are compared only in snapshots during which
#: no counter changed, at least two of them. If there are no two such, at most five snapshots are taken.
SNAPSHOTS, MAX_SNAPSHOTS = 3, 5
#: Time between two snapshots, in seconds.
PAUSE_S = 0.3


class FsckReport(Struct, frozen=True):
    """The result of ``examine``."""

    findings: list[Finding]
    tasks: int  #: number of task records
    dropped: int  #: records whose result and payload were dropped to free memory, which is not a finding
    compared: bool  #: totals were compared with records; False: they changed during every snapshot


async def examine(
    redis: Any, keys: Keys, *, quiet: bool = False, trimmed: bool = True, settings: Settings | None = None
) -> FsckReport:
    """Check a cell until the findings are certain; the report has them sorted.

    Args:
        redis: an asyncio client that answers in bytes; it may be connected to a replica.
        keys: of the cell.
        quiet: nothing changes, so one snapshot is enough; a living agent that does nothing changes its health.
        trimmed: records of ended tasks may have been removed, so totals may be above the number of records.
        settings: of the cell's workers, for the maximum size of each stream.

    Raises:
        redis.exceptions.RedisError: the server cannot be read.
    """
    single: list[set[Finding]] = []
    totals: list[set[Finding]] = []
    while True:
        snapshot = await read_snapshot(redis, keys, settings or Settings())
        single.append(set(snapshot.unreadable).union(*(check(snapshot) for check in SINGLE)))
        if snapshot.is_stable or quiet:
            totals.append(set(check_counters(snapshot, trimmed=trimmed)))
        found = set.intersection(*single)
        differing = set.intersection(*totals) if totals else set()
        if quiet or len(single) == MAX_SNAPSHOTS or (totals and not found and not differing):
            break
        if len(single) >= SNAPSHOTS and len(totals) > 1:
            break
        await asyncio.sleep(PAUSE_S)
    compared = quiet or len(totals) > 1 or (bool(totals) and not differing)
    dropped = sum("dropped" in record for record in snapshot.records.values())
    return FsckReport(sorted(found | differing if compared else found), len(snapshot.records), dropped, compared)
