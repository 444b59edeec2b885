"""docs/guarantees.md: every promise names its fault and has tests, which the markers of the tests say."""

from __future__ import annotations

from tests.guarantees_table import MARKER, PAGE, ROW, marked_tests, page, proving
from tests.repo.documents import ROOT

#: anchor, promise (empty: that of the row above), fault and tests of each row.
ROWS = [found.groups() for found in ROW.finditer(PAGE.read_text())]


def test_the_page_is_current() -> None:
    """The tests of each row are those with its marker."""
    assert PAGE.read_text() == page(), "docs/guarantees.md is not current: run scripts/guarantees_table"


def test_every_row_is_read() -> None:
    """Each has an anchor of its own, and a fault; a table does not begin with the rest of another promise."""
    lines = [line for line in PAGE.read_text().splitlines() if line.startswith("|")]
    assert len(ROWS) == sum(not line.startswith(("| promise |", "|---")) for line in lines) > 130
    assert len({name for name, *_ in ROWS}) == len(ROWS)
    assert [name for name, _, fault, _ in ROWS if not fault] == []
    begins = [lines[number + 2] for number, line in enumerate(lines) if line.startswith("| promise |")]
    assert [line for line in begins if "</a> |" in line] == []


def test_every_guarantee_has_a_test() -> None:
    """One that runs without ``--long``, so in every run of the gate."""
    without = [name for name, *_ in ROWS if not proving(name)]
    assert without == [], f"no test is marked with {MARKER}(NAME)"
    assert [(name, test.name) for name, *_ in ROWS for test in proving(name) if test.is_long] == []


def test_every_marker_has_a_row() -> None:
    """Each name is the anchor of a row; pytest would collect the function."""
    known = {name for name, *_ in ROWS}
    unknown = [(str(test.file.relative_to(ROOT)), test.name, set(test.guarantees) - known) for test in marked_tests()]
    assert [one for one in unknown if one[2]] == []
    assert [test.name for test in marked_tests() if not test.name.startswith("test_")] == []
