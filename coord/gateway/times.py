"""Times as HTTP callers see them: ISO 8601, UTC, milliseconds, with the offset."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from coord.clock import now_ms

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LIMITS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_FIRST_MS, _LAST_MS = ((limit - _EPOCH) // timedelta(milliseconds=1) for limit in _LIMITS)


def iso(ms: int) -> str:
    """Milliseconds since 1970 -> ``2026-01-31T12:00:00.000+00:00``.

    A moment outside the years 1 to 9999, which none is admitted with now, is shown as the first or the last of them.
    """
    ms = min(max(ms, _FIRST_MS), _LAST_MS)
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")


def iso_or_none(ms: int | None) -> str | None:
    """The same for what may not have happened yet; 0 is how a record says never."""
    return iso(ms) if ms else None


def now() -> str:
    """This machine's time."""
    return iso(now_ms())


def of_entry(entry_id: str) -> str:
    """When Redis took an entry, by its own clock."""
    return iso(int(entry_id.partition("-")[0]))
