"""The table of `coord top`: it changes only the rows that differ, and the cursor stays in its place."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

import pytest
from rich.text import Text
from textual.app import App, ComposeResult
from textual.pilot import Pilot

from coord.top.rows import Row
from coord.top.table import MANY, RowTable
from tests.waiting import wait_until


class Host(App[None]):
    """A screen with one table."""

    def compose(self) -> ComposeResult:
        """Return the table."""
        yield RowTable("rows", ("name", "value"))

    @property
    def table(self) -> RowTable:
        """The table."""
        return self.query_one(RowTable)


@asynccontextmanager
async def hosting() -> AsyncIterator[tuple[RowTable, Pilot[None]]]:
    """A table on a screen of 20 lines, without a terminal."""
    app = Host()
    async with app.run_test(size=(60, 20)) as pilot:
        yield app.table, pilot


def rows(keys: Iterable[str], value: str = "same") -> dict[str, Row]:
    """Rows with these keys, in this order."""
    return {key: (key, Text(value, "red")) for key in keys}


def on_display(table: RowTable) -> list[tuple[str, ...]]:
    """The text of all rows, in the order of the table."""
    return [tuple(cell.plain for cell in table.get_row_at(place)) for place in range(table.row_count)]


NAMES = [f"n-{number:04}" for number in range(1_000)]


async def test_only_rows_that_differ_are_updated() -> None:
    """Of a thousand rows: none, one, one that comes, one that goes, and another order."""
    async with hosting() as (table, _):

        def updates(wanted: dict[str, Row]) -> int:
            before = table.updates
            table.show(wanted)
            assert on_display(table) == [tuple(map(str, row)) for row in wanted.values()]
            return table.updates - before

        assert updates(rows(NAMES)) == 1_000
        assert updates(rows(NAMES)) == 0
        assert updates(rows(NAMES) | rows(["n-0500"], "other")) == 1
        assert updates(rows(NAMES)) == 1
        assert updates(rows([name for name in NAMES if name != "n-0003"])) == 1
        assert updates(rows(NAMES)) == 1  # in the middle
        assert updates(rows(reversed(NAMES))) == 0
        assert updates(rows(NAMES[100:])) == 900  # many have gone: it is built again
        assert updates(rows(["a", *NAMES[101:]], "other")) == 2 + 899
        assert updates({}) == 0
        assert table.selected is None


async def test_the_cursor_stays_in_its_place() -> None:
    """On its row; if that goes, on the one that takes its place, or on the last one."""
    async with hosting() as (table, pilot):
        table.focus()
        table.show(rows(NAMES[:8]))
        await pilot.press(*["down"] * 4)
        assert table.selected == "n-0004"
        table.show(rows(reversed(NAMES[:8])))
        assert table.selected == "n-0004"
        table.show(rows(NAMES[:8]))
        table.show(rows([name for name in NAMES[:8] if name != "n-0004"]))
        assert table.selected == "n-0005"
        table.show(rows(["n-0002", "n-0003", "n-0007", "new"]))  # one before it and those after it go as well
        assert table.selected == "n-0007"
        table.show(rows(["n-0002", "n-0003"]))
        assert table.selected == "n-0003"
        table.show({})
        table.show(rows(NAMES[:3]))
        assert table.selected == "n-0000"


@pytest.mark.parametrize("number", [5, MANY + 200])
async def test_what_is_on_the_screen_stays_there(number: int) -> None:
    """The cursor and the first line, while rows below them come or go, a few or many."""
    async with hosting() as (table, pilot):
        table.focus()
        table.show(rows(NAMES))
        await pilot.pause()
        table.move_cursor(row=400)

        async def is_scrolled() -> bool:
            return table.scroll_offset.y > 300

        await wait_until(is_scrolled, "the cursor is on the screen")
        offset = table.scroll_offset.y
        table.show(rows(NAMES[: 1_000 - number]))
        await pilot.pause()
        assert (table.selected, table.scroll_offset.y) == ("n-0400", offset)


async def test_brackets_are_text() -> None:
    """And no markup, which could be wrong."""
    async with hosting() as (table, _):
        table.show({"a": ("[/red]", "[bold]x")})
        assert on_display(table) == [("[/red]", "[bold]x")]
