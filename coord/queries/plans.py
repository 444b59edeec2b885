"""Reads recorded plans from ``log:plans``."""

from __future__ import annotations

import msgspec
from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.ids import entry_ms
from coord.models.plans import PLANS_VERSION, PlanEntry, Plans, PlansHeader
from coord.queries.reads import decode_text

#: Entries that are read in one round trip: a snapshot of a large fleet has some MiB.
STEP = 50


async def export_plans(redis: Redis, keys: Keys, begin: int, end: int) -> Plans:
    """Return what distributors recorded in this time.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        begin: the beginning, in ms since 1970 on the server's clock.
        end: the end.
    """
    found: list[PlanEntry] = []
    since = str(begin)
    while True:
        entries = await redis.execute_command("XRANGE", keys.of("log:plans"), since, end, "COUNT", STEP)
        for entry_id, fields in entries:
            since = f"({decode_text(entry_id)}"
            if fields.get(b"type") == b"plans.recorded":
                found.append(_entry(entry_ms(decode_text(entry_id)), fields))
        if len(entries) < STEP:
            return Plans(PlansHeader(PLANS_VERSION, begin, end), tuple(found))


def _entry(at: int, fields: dict[bytes, bytes]) -> PlanEntry:
    numbers = [int(fields[name]) for name in (b"version", b"segment", b"number")]
    version, segment, number = numbers
    return PlanEntry(version, at, decode_text(fields[b"by"]), segment, number, msgspec.Raw(fields[b"data"]))
