"""Entries of the audit, as they are read."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from coord.models.audit import AuditEntry, audit_entry

ENTRY = "1767225600000-0"


def read(kind: str, data: Any) -> AuditEntry:
    """Read an entry of a request that was refused."""
    return audit_entry(ENTRY, {"type": kind, "by": "ann@host", "outcome": "fact_invalid"}, data)


@pytest.mark.parametrize(
    "data",
    [
        None,
        "cut off",
        [1],
        {"action": 7, "priority": {}, "query": 1, "operation": [], "count": "9", "done": True, "skipped": {"x": "y"}},
        {"skipped": [1]},
    ],
)
def test_a_refused_request_may_have_any_data(data: Any) -> None:
    """What does not fit is left out, so that an entry is always as its fields say."""
    entry = read("tasks.change_requested", data)
    assert entry == AuditEntry(id=ENTRY, at=1767225600000, by="ann@host", action="tasks.change", outcome="fact_invalid")
    assert msgspec.convert(msgspec.to_builtins(entry), AuditEntry) == entry


def test_an_unknown_fact_is_named_as_it_was_sent() -> None:
    """It was refused for that."""
    assert read("no.such", {"task_id": "t1"}).action == "no.such"
    assert read("", None).action == ""
