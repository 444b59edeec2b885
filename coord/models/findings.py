"""Findings of ``coord doctor`` and of ``GET /system``: what is well and what is not, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from enum import StrEnum

from msgspec import Struct


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"  #: the check found nothing to do
    WARNING = "warning"  #: the cell works; look at this before it does not
    ERROR = "error"  #: something does not work: tasks or messages wait, or may be lost


class Finding(Struct, frozen=True):
    """The result of a check."""

    level: Level
    code: str  #: area and problem: ``workers.missing``; the area alone where all is well
    message: str  #: what is so, with its values
    advice: str = ""  #: what to do: a command, or words

    @property
    def sentence(self) -> str:
        """The message and the advice."""
        return f"{self.message}; {self.advice}" if self.advice else self.message


#: The levels, the most serious first.
BY_WEIGHT = (Level.ERROR, Level.WARNING, Level.OK)


def worst(findings: Iterable[Finding]) -> Level:
    """Return the most serious level among findings."""
    found = {finding.level for finding in findings}
    return next((level for level in BY_WEIGHT if level in found), Level.OK)
