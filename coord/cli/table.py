"""A table as lines of text: values stay in one piece, and what has no room beside them goes below, indented.

Only the free column is wrapped, at words; and what is alone wider than the screen.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

#: Between two columns.
GAP = 2
#: What goes below a row begins so far in.
INDENT = 4
#: A free text that is narrower than this is a column of syllables; it goes below instead.
LEAST = 24


def lay_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Collection[str] = (),
    free: str | None = None,
    spare: Sequence[str] = (),
) -> list[list[str]]:
    """The lines of the header, then those of each row.

    Args:
        columns: their names.
        rows: a text for each column, without ends of lines.
        width: of the screen, in cells.
        right: the columns whose values stand at the right.
        free: the column that may be wrapped; default: the last.
        spare: what is left out where there is no room, one after the other.
    """
    cells = [columns, *rows]
    free = columns[-1] if free is None else free
    widths = {name: max(cell_len(row[number]) for row in cells) for number, name in enumerate(columns)}
    kept = list(columns)
    for name in spare:
        if _taken(kept, widths, free) > width:
            kept.remove(name)
    bands = _bands(kept, widths, free, width)
    numbers = {name: number for number, name in enumerate(columns)}
    return [
        [
            line
            for indent, band in bands
            for line in _lines({name: row[numbers[name]] for name in band}, band, indent, right)
        ]
        for row in cells
    ]


def _least(name: str, widths: dict[str, int], free: str) -> int:
    return min(widths[name], LEAST) if name == free else widths[name]


def _taken(names: Sequence[str], widths: dict[str, int], free: str) -> int:
    return sum(_least(name, widths, free) for name in names) + GAP * (len(names) - 1)


def _bands(names: Sequence[str], widths: dict[str, int], free: str, width: int) -> list[tuple[int, dict[str, int]]]:
    """The columns that stand beside each other, with their widths, and how far in: the first band, and those below."""
    split: list[list[str]] = [[]]
    for name in names:
        room = width - (INDENT if len(split) > 1 else 0)
        if split[-1] and _taken([*split[-1], name], widths, free) > room:
            split.append([])
        split[-1].append(name)
    bands: list[tuple[int, dict[str, int]]] = []
    for number, band in enumerate(split):
        indent = INDENT if number else 0
        over = max(0, sum(widths[name] + GAP for name in band) - GAP - (width - indent))
        # Of the free column, or of the only one: any other fits.
        cut = free if free in band else band[0]
        bands.append((indent, {name: max(1, widths[name] - (over if name == cut else 0)) for name in band}))
    return bands


def _lines(texts: dict[str, str], band: dict[str, int], indent: int, right: Collection[str]) -> list[str]:
    wrapped = {name: _wrapped(texts[name], wide) for name, wide in band.items()}
    found: list[str] = []
    for number in range(max(map(len, wrapped.values()))):
        line = " " * indent
        for name, wide in band.items():
            piece = wrapped[name][number] if number < len(wrapped[name]) else ""
            room = " " * max(0, wide - cell_len(piece))
            line += (room + piece if name in right else piece + room) + " " * GAP
        found.append(line.rstrip())
    return found if any(found) or not indent else []


def _wrapped(text: str, width: int) -> list[str]:
    if cell_len(text) <= width:
        return [text]
    lines = Text(text).wrap(Console(width=width, color_system=None), width, overflow="fold")
    return [line.plain.rstrip() for line in lines]
