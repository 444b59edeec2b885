"""Consistency check of a cell for any test, at any moment between two scripts: the checks of ``coord fsck``.

``await assert_ledger(redis, keys)``.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from coord.client.events import follow_events
from coord.config import Settings
from coord.fsck import PAUSE_S, SNAPSHOTS, CellSnapshot, Finding, read_snapshot
from coord.fsck.agents import check_agents
from coord.fsck.checks import (
    check_alarms,
    check_claims,
    check_conversations,
    check_counters,
    check_ends,
    check_requests,
    check_structures,
    check_sums,
    check_ttls,
)
from coord.fsck.snapshot import END_INDEX, HELD, WAITING, Record
from coord.keys import Keys
from coord.models.events import Event

__all__ = [
    "END_INDEX",
    "HELD",
    "WAITING",
    "CellSnapshot",
    "Record",
    "assert_keys_end",
    "assert_ledger",
    "events_of_tasks",
    "read_snapshot",
]


async def assert_ledger(redis: Any, keys: Keys, *, trimmed: bool = False) -> None:
    """Fail unless the cell is exactly consistent.

    A snapshot is not taken at one moment, and agents that are alive change their health: so what one snapshot shows
    counts if the next ones show a difference as well.

    Args:
        redis: any asyncio client that answers in bytes.
        keys: of the cell.
        trimmed: records of ended tasks were removed, so the totals may be above the number of records.
    """
    for _ in range(SNAPSHOTS - 1):
        with suppress(AssertionError):
            return _assert_snapshot(await read_snapshot(redis, keys, Settings()), trimmed=trimmed)
        await asyncio.sleep(PAUSE_S)
    return _assert_snapshot(await read_snapshot(redis, keys, Settings()), trimmed=trimmed)


async def assert_keys_end(redis: Any, keys: Keys) -> None:
    """Fail if a key that should expire has no TTL, or one that should not expire has one."""
    _assert_none(check_ttls(await read_snapshot(redis, keys, Settings())))


async def events_of_tasks(redis: Any, keys: Keys) -> list[Event]:
    """What the logs tell of tasks, oldest first."""
    events = follow_events(redis, keys, since="0-0", follow=False)
    return [event async for event in events if event.log in {"tasks", "progress"}]


def _assert_snapshot(snapshot: CellSnapshot, *, trimmed: bool) -> None:
    _assert_none(snapshot.unreadable)
    _assert_counters(snapshot, trimmed=trimmed)
    _assert_structures(snapshot)
    _assert_alarms(snapshot)
    _assert_ends(snapshot)
    _assert_none(check_agents(snapshot))
    _assert_none([*check_requests(snapshot), *check_conversations(snapshot)])


def _assert_counters(snapshot: CellSnapshot, *, trimmed: bool) -> None:
    _assert_none([*check_sums(snapshot), *check_counters(_with_sizes(snapshot), trimmed=trimmed)])


def _assert_structures(snapshot: CellSnapshot) -> None:
    _assert_none(check_structures(_only_assignments(snapshot)))


def _assert_alarms(snapshot: CellSnapshot) -> None:
    _assert_none([*check_alarms(snapshot), *check_claims(snapshot)])


def _assert_ends(snapshot: CellSnapshot) -> None:
    _assert_none(check_ends(snapshot))


def _with_sizes(snapshot: CellSnapshot) -> CellSnapshot:
    """Return the snapshot with the size of each body, for a snapshot of whole records that a test made."""
    sized = {
        task: one if "body_bytes" in one else one | {"body_bytes": str(len(_raw(one.get("body", ""))))}
        for task, one in snapshot.records.items()
    }
    return snapshot._replace(records=sized)


def _only_assignments(snapshot: CellSnapshot) -> CellSnapshot:
    """Return the snapshot without entries that are not assignments, for a snapshot of whole inboxes."""
    inboxes = {
        inbox: {
            entry: fields
            for entry, fields in entries.items()
            if fields.get("message_type", "task_assignment") == "task_assignment"
        }
        for inbox, entries in snapshot.inboxes.items()
    }
    return snapshot._replace(inboxes=inboxes)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _assert_none(findings: Iterable[Finding]) -> None:
    found = list(findings)
    assert not found, "\n".join(f"{one.code} {one.key}: {one.message}" for one in found)
