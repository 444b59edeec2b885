"""Colours of values in a table on a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping

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
