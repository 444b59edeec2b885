"""Whether the books of a cell balance, for any test, at any moment between two scripts: what ``coord fsck`` looks at.

``await assert_ledger(redis, keys)``.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from coord.client.events import follow_events
from coord.config import Settings
from coord.fsck import CellSnapshot, Finding, read_snapshot
from coord.fsck.checks import (
    check_alarms,
    check_claims,
    check_counters,
    check_ends,
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
    """Fail unless the books balance exactly.

    Args:
        redis: any asyncio client that answers in bytes.
        keys: of the cell.
        trimmed: records of ended tasks were forgotten meanwhile, so the totals may be above what is left of them.
    """
    books = await read_snapshot(redis, keys, Settings())
    _assert_none(books.unreadable)
    _assert_counters(books, trimmed=trimmed)
    _assert_structures(books)
    _assert_alarms(books)
    _assert_ends(books)


async def assert_keys_end(redis: Any, keys: Keys) -> None:
    """Fail if a key that should end by itself has no TTL, or one of a living thing has one."""
    _assert_none(check_ttls(await read_snapshot(redis, keys, Settings())))


async def events_of_tasks(redis: Any, keys: Keys) -> list[Event]:
    """What the logs tell of tasks, oldest first."""
    events = follow_events(redis, keys, since="0-0", follow=False)
    return [event async for event in events if event.log in {"tasks", "progress"}]


def _assert_counters(books: CellSnapshot, *, trimmed: bool) -> None:
    _assert_none([*check_sums(books), *check_counters(_with_sizes(books), trimmed=trimmed)])


def _assert_structures(books: CellSnapshot) -> None:
    _assert_none(check_structures(_only_assignments(books)))


def _assert_alarms(books: CellSnapshot) -> None:
    _assert_none([*check_alarms(books), *check_claims(books)])


def _assert_ends(books: CellSnapshot) -> None:
    _assert_none(check_ends(books))


def _with_sizes(books: CellSnapshot) -> CellSnapshot:
    """CellSnapshot of whole records, as a test may have made them: with the size of each body."""
    sized = {
        task: one if "body_bytes" in one else one | {"body_bytes": str(len(_raw(one.get("body", ""))))}
        for task, one in books.records.items()
    }
    return books._replace(records=sized)


def _only_assignments(books: CellSnapshot) -> CellSnapshot:
    """CellSnapshot of whole inboxes: without what is no assignment."""
    inboxes = {
        inbox: {
            entry: fields
            for entry, fields in entries.items()
            if fields.get("message_type", "task_assignment") == "task_assignment"
        }
        for inbox, entries in books.inboxes.items()
    }
    return books._replace(inboxes=inboxes)


def _raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _assert_none(findings: Iterable[Finding]) -> None:
    found = list(findings)
    assert not found, "\n".join(f"{one.code} {one.key}: {one.message}" for one in found)
