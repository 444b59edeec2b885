"""Lays out a table as lines of text: values stay in one piece; columns without room continue below, indented.

Only the free column is wrapped, between words, and a value that alone is wider than the screen. On a terminal, values
may have colours.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

#: Spaces between two columns.
GAP = 2
#: Indent of columns that continue below.
INDENT = 4
#: Minimum width of the free column; with less room, text would break after every word, so it continues below.
MIN_FREE = 24


def lay_out(
    columns: Sequence[str],
    rows: Sequence[Sequence[str]],
    width: int,
    *,
    right: Collection[str] = (),
    free: str | None = None,
    spare: Sequence[str] = (),
    paint: Callable[[str, str, str], str] | None = None,
) -> list[list[str]]:
    """Return the lines of the header, then those of each row.

    Args:
        columns: names of the columns.
        rows: one text per column, without line ends.
        width: width of the screen in cells.
        right: columns that are aligned to the right.
        free: the column that may be wrapped; default: the last.
        spare: columns that are omitted one after the other if there is no room.
        paint: colours a piece of a value: name of the column, the value, the piece.
    """
    cells = [columns, *rows]
    free = columns[-1] if free is None else free
    widths = {name: max(cell_len(row[number]) for row in cells) for number, name in enumerate(columns)}
    kept = list(columns)
    for name in spare:
        if _total_width(kept, widths, free) > width:
            kept.remove(name)
    bands = _bands(kept, widths, free, width)
    numbers = {name: number for number, name in enumerate(columns)}
    return [
        [
            line
            for indent, band in bands
            for line in _lines({name: row[numbers[name]] for name in band}, band, indent, right, paint)
        ]
        for row in cells
    ]


def _min_width(name: str, widths: dict[str, int], free: str) -> int:
    return min(widths[name], MIN_FREE) if name == free else widths[name]


def _total_width(names: Sequence[str], widths: dict[str, int], free: str) -> int:
    return sum(_min_width(name, widths, free) for name in names) + GAP * (len(names) - 1)


def _bands(names: Sequence[str], widths: dict[str, int], free: str, width: int) -> list[tuple[int, dict[str, int]]]:
    """Split the columns into bands, the top line first: the indent of each, and its columns with their widths."""
    split: list[list[str]] = [[]]
    for name in names:
        room = width - (INDENT if len(split) > 1 else 0)
        if split[-1] and _total_width([*split[-1], name], widths, free) > room:
            split.append([])
        split[-1].append(name)
    bands: list[tuple[int, dict[str, int]]] = []
    for number, band in enumerate(split):
        indent = INDENT if number else 0
        excess = max(0, sum(widths[name] + GAP for name in band) - GAP - (width - indent))
        # The free column, or the only one, gives up width: all others fit.
        cut = free if free in band else band[0]
        bands.append((indent, {name: max(1, widths[name] - (excess if name == cut else 0)) for name in band}))
    return bands


def _lines(
    texts: dict[str, str],
    band: dict[str, int],
    indent: int,
    right: Collection[str],
    paint: Callable[[str, str, str], str] | None,
) -> list[str]:
    wrapped = {name: _wrapped(texts[name], wide) for name, wide in band.items()}
    lines: list[str] = []
    for number in range(max(map(len, wrapped.values()))):
        line = " " * indent
        for name, wide in band.items():
            piece = wrapped[name][number] if number < len(wrapped[name]) else ""
            room = " " * max(0, wide - cell_len(piece))
            if paint is not None and piece:
                piece = paint(name, texts[name], piece)
            line += (room + piece if name in right else piece + room) + " " * GAP
        lines.append(line.rstrip())
    return lines if any(lines) or not indent else []


def _wrapped(text: str, width: int) -> list[str]:
    if cell_len(text) <= width:
        return [text]
    lines = Text(text).wrap(Console(width=width, color_system=None), width, overflow="fold")
    return [line.plain.rstrip() for line in lines]


#: Name of the column, its value, the part of the value in one line -> that part in colour.
Paint = Callable[[str, str, str], str]


def painter(styles: Mapping[str, Mapping[str, str]]) -> Paint | None:
    """Return a function that colours values; None if standard output shows no colours (a pipe, NO_COLOR).

    Args:
        styles: name of a column -> value -> style.
    """
    if not styles or not sys.stdout.isatty():
        return None
    from rich.console import Console
    from rich.style import Style

    console = Console()
    colours = console._color_system  # noqa: SLF001 -- rich offers only its name
    if colours is None or console.no_color:
        return None

    def paint(column: str, value: str, piece: str) -> str:
        style = styles.get(column, {}).get(value)
        return Style.parse(style).render(piece, color_system=colours) if style else piece

    return paint
