"""The audit of operators' changes: ``log:audit``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.audit import AuditEntry, audit_entry
from coord.models.ids import ENTRY_ID
from coord.queries.reads import decode_fields, parse_json


class AuditPage(Struct, frozen=True):
    """A page of the audit, the latest entry first."""

    entries: tuple[AuditEntry, ...]
    next: str | None  #: cursor of the next page; None: last page


async def list_audit(redis: Redis, keys: Keys, *, limit: int = 100, cursor: str | None = None) -> AuditPage:
    """Return the latest changes that operators asked for, the latest first, as far as the log holds them.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        limit: at least 1.
        cursor: ``next`` of the previous page.

    Raises:
        CursorInvalid: the cursor does not come from the audit.
    """
    if cursor is not None and not ENTRY_ID.fullmatch(cursor):
        raise CursorInvalid(f"cursor {cursor[:80]!r} does not come from the audit; leave it out to start at the end")
    until = "+" if cursor is None else f"({cursor}"
    raw = await redis.execute_command("XREVRANGE", keys.of("log:audit"), until, "-", "COUNT", limit + 1)
    entries = _entries(raw[:limit])
    return AuditPage(entries, entries[-1].id if len(raw) > limit else None)


async def get_audit_since(redis: Redis, keys: Keys, entry_id: str, limit: int = 1_000) -> tuple[AuditEntry, ...]:
    """Return the changes after an entry of the audit, the oldest first.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        entry_id: ``0-0``: from the beginning.
        limit: maximum number.
    """
    raw = await redis.execute_command("XRANGE", keys.of("log:audit"), f"({entry_id}", "+", "COUNT", limit)
    return _entries(raw)


def _entries(raw: Sequence[Any]) -> tuple[AuditEntry, ...]:
    found = []
    for entry_id, pairs in raw:
        fields = decode_fields(pairs)
        found.append(audit_entry(entry_id.decode(), fields, parse_json(fields.get("data"))))
    return tuple(found)
