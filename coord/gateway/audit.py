"""Handler of the audit: what operators have changed, and who asked for it."""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from coord.gateway.routes import Call
from coord.gateway.schemas import iso, now
from coord.models.audit import AuditEntry

#: Maximum number of entries in a response: the default, and the limit of the limit.
ENTRIES, MOST_ENTRIES = 100, 1_000


class AuditQuery(Struct, frozen=True):
    """The query of GET /audit."""

    limit: Annotated[int, Meta(ge=1, le=MOST_ENTRIES)] = ENTRIES
    cursor: str | None = None


class AuditSchema(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One change that an operator asked for."""

    id: str
    at: str
    by: str
    action: str
    target: str
    outcome: str
    reason: str = ""
    query: str | None = None
    operation: str | None = None
    count: int | None = None
    done: int | None = None
    stopping: int | None = None
    skipped: dict[str, int] | None = None

    @classmethod
    def of(cls, entry: AuditEntry) -> AuditSchema:
        """Build it from an entry."""
        values = {name: getattr(entry, name) for name in cls.__struct_fields__}
        return cls(**values | {"at": iso(entry.at)})


class AuditFound(Struct, frozen=True, kw_only=True):
    """GET /audit."""

    status: str = "success"
    entries: list[AuditSchema]  #: the latest first
    next: str | None  #: cursor of the next page; null: this is the last one
    timestamp: str


async def audit(call: Call[None, AuditQuery]) -> AuditFound:
    """Return what operators have changed, and who asked for it; the latest first."""
    page = await call.backend.audit(limit=call.query.limit, cursor=call.query.cursor)
    return AuditFound(entries=[AuditSchema.of(entry) for entry in page.entries], next=page.next, timestamp=now())
