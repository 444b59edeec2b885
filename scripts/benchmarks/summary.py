"""Medians, ranges and ratios over the repetitions of a row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import median

from msgspec import Struct

from .campaign import Run
from .rows import Figure, Row

#: Minimum ratio to the other commit.
ENOUGH = 0.9


class Spread(Struct, frozen=True):
    """A figure over its repetitions."""

    median: float
    low: float
    high: float
    count: int


class Line(Struct, frozen=True):
    """The summary of one figure of one row."""

    row: str
    figure: str
    unit: str
    wanted: str
    value: Spread | None  #: in this tree; None if every run failed
    of_floor: Spread | None  #: ratio to the floor's figure of the same repetition
    against: Spread | None  #: in the other tree
    ratio: (
        Spread | None
    )  #: to the other tree in the same repetition; above 1 means that this tree is better, for any unit
    judged: bool

    @property
    def is_slower(self) -> bool:
        """True if the ratio is below the minimum."""
        return self.judged and self.ratio is not None and self.ratio.median < ENOUGH


def summarize(rows: Sequence[Row], runs: Sequence[Run], now: str, other: str | None) -> list[Line]:
    """Return one line for each figure of each row."""
    found = {(run.row, run.tree, run.repetition): run.figures for run in runs if not run.error}
    repetitions = sorted({run.repetition for run in runs})

    def each(row: str, tree: str | None, figure: str) -> dict[int, float]:
        values = ((number, found.get((row, tree or "", number), {}).get(figure)) for number in repetitions)
        return {number: value for number, value in values if value is not None}

    lines: list[Line] = []
    for row in rows:
        for figure in row.figures:
            here, there = each(row.name, now, figure.name), each(row.name, other, figure.name)
            lines.append(
                Line(
                    row=row.name,
                    figure=figure.name,
                    unit=figure.unit,
                    wanted=figure.wanted,
                    value=_spread(here.values()),
                    of_floor=_ratio(here, each("floor", now, figure.floor)) if figure.floor else None,
                    against=_spread(there.values()),
                    ratio=_better(figure, here, there),
                    judged=figure.judged,
                )
            )
    return lines


def _better(figure: Figure, here: dict[int, float], there: dict[int, float]) -> Spread | None:
    return _ratio(here, there) if figure.better == "more" else _ratio(there, here)


def _ratio(over: dict[int, float], under: dict[int, float]) -> Spread | None:
    return _spread(value / under[number] for number, value in over.items() if under.get(number))


def _spread(values: Iterable[float]) -> Spread | None:
    known = list(values)
    return Spread(median(known), min(known), max(known), len(known)) if known else None
