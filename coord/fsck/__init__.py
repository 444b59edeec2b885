"""Whether the books of a cell balance: counters against records, records against every structure that names them.

Nothing here writes, and a live cell may be looked at. What differs in one look is looked at again, and only what
differs in the same way each time is told: a move is one script, so what is under way at the next look is another one.
The sum ``submitted = scheduled + queued + assigned + running + terminal`` is read at one moment and holds at each.
"""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Struct

from coord.config import Settings
from coord.fsck.books import Books, Finding, read_books
from coord.fsck.checks import alarms, caps, claims, ends, gauges, leases, lifetimes, structures, sums
from coord.keys import Keys

__all__ = ["Books", "Finding", "Report", "examine", "read_books"]

#: What is looked at task by task and key by key; ``gauges``, the totals, only mean something when nothing moves.
SINGLE = (sums, structures, leases, alarms, claims, ends, lifetimes, caps)
#: Looks at a cell that moves: what at least three have seen is there. Totals are compared in looks during which none of
#: them moved, in two at least; where there are no two such, no more than five are taken.
LOOKS, LOOKS_MOST = 3, 5
#: Seconds between two looks.
AGAIN_S = 0.3


class FsckReport(Struct, frozen=True):
    """What ``examine`` has found."""

    findings: list[Finding]
    tasks: int  #: how many records there were
    dropped: int  #: of them gave up result and payload to free memory, which is no finding
    compared: bool  #: totals were compared with records; False: they never stood still for as long as a look takes


async def examine(
    redis: Any, keys: Keys, *, quiet: bool = False, trimmed: bool = True, settings: Settings | None = None
) -> FsckReport:
    """Look at a cell until what is found is certain; sorted findings.

    Args:
        redis: any asyncio client that answers in bytes; a replica will do.
        keys: of the cell.
        quiet: nothing moves, so one look is enough.
        trimmed: records of ended tasks may have been forgotten, so the totals may be above what is left of them.
        settings: those of the cell's workers, for how large each stream may be.

    Raises:
        redis.exceptions.RedisError: the server cannot be read.
    """
    single: list[set[Finding]] = []
    totals: list[set[Finding]] = []
    while True:
        books = await read_books(redis, keys, settings or Settings())
        single.append(set(books.odd).union(*(check(books) for check in SINGLE)))
        if books.still or quiet:
            totals.append(set(gauges(books, trimmed=trimmed)))
        found = set.intersection(*single)
        differing = set.intersection(*totals) if totals else set()
        if quiet or len(single) == LOOKS_MOST or (totals and not found and not differing):
            break
        if len(single) >= LOOKS and len(totals) > 1:
            break
        await asyncio.sleep(AGAIN_S)
    compared = quiet or len(totals) > 1 or (bool(totals) and not differing)
    dropped = sum("dropped" in one for one in books.records.values())
    return FsckReport(sorted(found | differing if compared else found), len(books.records), dropped, compared)
