"""Tables that are readable on a terminal and valid Markdown."""

from __future__ import annotations

from collections.abc import Sequence


def markdown(rows: Sequence[Sequence[str]], *, texts: int = 1) -> str:
    """Return a table; the first row is its heading.

    Args:
        rows: the cells, with the same number in every row.
        texts: number of columns, from the left, that are text; the others are numbers.
    """
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]

    def line(cells: Sequence[str]) -> str:
        padded = [
            cell.ljust(width) if at < texts else cell.rjust(width)
            for at, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(padded)} |"

    rules = ["-" * width if at < texts else "-" * (width - 1) + ":" for at, width in enumerate(widths)]
    return "\n".join([line(rows[0]), f"| {' | '.join(rules)} |", *map(line, rows[1:])])
