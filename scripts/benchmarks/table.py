"""The readable table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table

from .rows import BY_NAME
from .summary import ENOUGH, Line, Spread

#: Maximum number of functions and commands of a profile.
MAX_ROWS = 15


def show(console: Console, lines: Sequence[Line], other: str | None) -> None:
    """Print one row for each figure."""
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    for heading in ("row", "figure"):
        table.add_column(heading, no_wrap=True)
    for heading in ("median", "range"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("unit")
    table.add_column("of the floor", justify="right", no_wrap=True)
    if other:
        table.add_column(other, justify="right", no_wrap=True)
        table.add_column("ratio", justify="right", no_wrap=True)
    else:
        table.add_column("target")
    shown = ""
    for line in lines:
        if line.row != shown and shown:
            table.add_section()
        first = line.row if line.row != shown else ""
        shown = line.row
        cells = [first, line.figure, _number(line.value), _range(line.value), line.unit, _ratio(line.of_floor)]
        cells += [_number(line.against), _verdict(line)] if other else [line.wanted]
        table.add_row(*cells)
    console.print(table)
    for row in dict.fromkeys(line.row for line in lines):
        console.print(f"[bold]{row}[/bold]: {BY_NAME[row].what}", highlight=False)


def show_profile(
    console: Console, profiles: Mapping[str, tuple[list[tuple[str, float]], list[tuple[str, float]]]]
) -> None:
    """Print for each process the functions with the largest shares, by themselves and with their callees."""
    for name, (alone, within) in profiles.items():
        table = Table(title=name, title_justify="left", show_edge=False, pad_edge=False, header_style="bold")
        for heading in ("itself", "with callees"):
            table.add_column("%", justify="right")
            table.add_column(heading, overflow="fold")
        for (own, own_share), (whole, whole_share) in zip(alone[:MAX_ROWS], within[:MAX_ROWS], strict=False):
            table.add_row(f"{own_share:.1%}", own, f"{whole_share:.1%}", whole)
        console.print(table, highlight=False, markup=False)
        console.print()


def show_server(console: Console, detail: Mapping[str, Any]) -> None:
    """Print the time of the server for each script and each command; a script includes its commands."""
    scripts = _plain("scripts", "µs/task", "calls", "worst ms")
    for row in detail["scripts"]:
        scripts.add_row(row["script"], f"{row['us_per_task']:.2f}", str(row["calls"]), f"{row['worst_ms']:.1f}")
    commands = _plain("commands", "µs/task", "calls/task")
    for row in detail["commands"][:MAX_ROWS]:
        commands.add_row(row["command"], f"{row['us_per_task']:.2f}", f"{row['calls_per_task']:.3f}")
    for table in (scripts, commands):
        console.print(table)
        console.print()


def _plain(name: str, *numbers: str) -> Table:
    table = Table(show_edge=False, pad_edge=False, header_style="bold")
    table.add_column(name)
    for heading in numbers:
        table.add_column(heading, justify="right")
    return table


def _number(spread: Spread | None) -> str:
    return "failed" if spread is None else _digits(spread.median)


def _range(spread: Spread | None) -> str:
    return "" if spread is None or spread.count < 2 else f"{_digits(spread.low)} to {_digits(spread.high)}"


def _ratio(spread: Spread | None) -> str:
    if spread is None:
        return ""
    return f"{spread.median:.2f}" + (f" ({spread.low:.2f} to {spread.high:.2f})" if spread.count > 1 else "")


def _verdict(line: Line) -> str:
    if line.is_slower:
        return f"[red]{_ratio(line.ratio)} below {ENOUGH}[/red]"
    return _ratio(line.ratio) + ("" if line.judged or line.ratio is None else " (not judged)")


def _digits(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
