"""What distributors record of their plans is a log; ``test_capped_streams`` checks that it is capped by bytes."""

from __future__ import annotations

from coord.placement import RecordedEntry
from tests.scripts.cell import Cell


async def test_an_entry_has_its_place(cell: Cell) -> None:
    """The data is stored as it was recorded."""
    entries = [RecordedEntry(3, 0, b'[["begin"]]'), RecordedEntry(3, 1, b"[]")]
    assert await cell.word(cell.scripts.record_plans(1, "d1", entries)) == "OK"
    same = {"type": "plans.recorded", "version": "1", "by": "d1", "segment": "3"}
    assert await cell.stream("log:plans") == [
        same | {"number": "0", "data": '[["begin"]]'},
        same | {"number": "1", "data": "[]"},
    ]


async def test_the_log_is_capped_by_entries(cell: Cell) -> None:
    """The oldest entries are trimmed, whatever their size."""
    cell.change_settings(log_entries=100)
    for n in range(8):
        entries = [RecordedEntry(0, 50 * n + m, b"[]") for m in range(50)]
        await cell.run(cell.scripts.record_plans(1, "d1", entries))
    entries_left = await cell.stream("log:plans")
    assert 100 <= len(entries_left) <= 200
    assert entries_left[-1]["number"] == "399"
