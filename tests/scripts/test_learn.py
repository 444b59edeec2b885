"""What distributors have learned is shared in a log; ``test_capped_streams`` checks that it is capped by bytes too."""

from __future__ import annotations

from tests.scripts.cell import Cell


async def test_an_entry_names_its_process(cell: Cell) -> None:
    """The data is stored as it was given, and nothing else changes."""
    assert await cell.word(cell.scripts.learn("d1", b'[[["a1","t",[1]]]]')) == "OK"
    (entry,) = await cell.stream("log:learned")
    assert entry == {"type": "agents.learned", "by": "d1", "data": '[[["a1","t",[1]]]]'}


async def test_the_log_is_capped_by_entries(cell: Cell) -> None:
    """The oldest entries are trimmed, whatever their size."""
    cell.change_settings(log_entries=100)
    for n in range(400):
        await cell.run(cell.scripts.learn("d1", b"%d" % n))
    entries = await cell.stream("log:learned")
    assert 100 <= len(entries) <= 200
    assert entries[-1]["data"] == "399"
