"""A table of ``coord top``: it changes only the rows that differ, and keeps the cursor in its place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rich.cells import cell_len
from rich.text import Text
from textual.widgets import DataTable

from coord.top.rows import Row

#: If more rows than this come or go, the table is built again: that is faster.
MANY = 50


class RowTable(DataTable[Text]):
    """Rows by key, in the order of a mapping.

    Args:
        name: id of the widget.
        columns: their headings.

    Attributes:
        shown: the rows on display.
        updates: rows that were added, removed or changed so far.
    """

    def __init__(self, name: str, columns: Sequence[str]) -> None:
        super().__init__(id=name, cursor_type="row")
        self.names = columns
        self.shown: Mapping[str, Row] = {}
        self.updates = 0

    def on_mount(self) -> None:
        """Add the columns."""
        for number, name in enumerate(self.names):
            self.add_column(name, key=str(number))

    @property
    def selected(self) -> str | None:
        """The key of the row with the cursor; None if there is no row."""
        keys = list(self.shown)
        return keys[self.cursor_row] if 0 <= self.cursor_row < len(keys) else None

    def show(self, wanted: Mapping[str, Row]) -> None:
        """Show these rows in their order.

        The cursor stays on its row. If that has gone, it goes to the row that follows it, or to the last one.

        Args:
            wanted: key -> row.
        """
        before, self.shown = self.shown, wanted
        gone, new = [key for key in before if key not in wanted], [key for key in wanted if key not in before]
        is_rebuilt = len(gone) + len(new) > MANY
        cursor, offset = _cursor(list(before), self.cursor_row, wanted), self.scroll_offset.y
        if is_rebuilt:
            self.clear()
            gone, new = [], list(wanted)
        for key in gone:
            self.remove_row(key)
        for key in new:
            self._add(key, wanted[key])
        self.updates += len(gone) + len(new)
        if not is_rebuilt:
            for key, row in wanted.items():
                if key in before and row != before[key]:
                    self._change(key, before[key], row)
            if list(before) == list(wanted):
                return
            places = {id(self.get_cell(key, "0")): place for place, key in enumerate(wanted)}
            self.sort("0", key=lambda cell: places[id(cell)])
        if cursor is not None:
            self.move_cursor(row=cursor, animate=False, scroll=False)
        self.scroll_to(y=offset, animate=False)

    def _add(self, key: str, row: Row) -> None:
        cells = [_text(cell) for cell in row]
        self.add_row(*cells, key=key)
        # The table measures its rows when it is idle, and on a busy machine it has missed that.
        for column, cell in zip(self.ordered_columns, cells, strict=True):
            column.content_width = max(column.content_width, cell_len(cell.plain))

    def _change(self, key: str, before: Row, row: Row) -> None:
        self.updates += 1
        for number, (cell, old) in enumerate(zip(row, before, strict=True)):
            if cell != old:
                self.update_cell(key, str(number), _text(cell), update_width=True)


def _text(cell: Text | str) -> Text:
    """Return a cell of its own, in which brackets are text and no markup."""
    return cell.copy() if isinstance(cell, Text) else Text(cell)


def _cursor(before: Sequence[str], place: int, wanted: Mapping[str, Row]) -> int | None:
    """Return the place of the row with the cursor, of the one that follows it, or of the last one; None: no row.

    Args:
        before: keys that were on display.
        place: of the cursor among them.
        wanted: the rows that will be on display.
    """
    places = {key: number for number, key in enumerate(wanted)}
    following = [places[key] for key in before[place:] if key in places]
    return following[0] if following else len(wanted) - 1 if wanted and before else None
