"""The progress of the survey: bars on a terminal, a line every second elsewhere."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from examples.file_survey.jobs import Job, Outcome

#: Seconds between two lines without a terminal.
LINE_S = 1.0


class Live:
    """Shows progress while it is entered; other output of the console appears above it."""

    def __init__(self, console: Console, jobs: Sequence[Job]) -> None:
        self._console = console
        self._totals = Counter(job.kind.task_type for job in jobs)
        self._finished: Counter[str] = Counter()
        self._failed = 0
        self._submitted = 0
        self._begin = self._printed_at = time.monotonic()
        self._bars: dict[str, TaskID] = {}
        self._progress = Progress(
            TextColumn("{task.description:<15}"),
            BarColumn(bar_width=40),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}"),
            TimeElapsedColumn(),
            console=console,
            disable=not console.is_terminal,
        )

    def __enter__(self) -> Self:
        self._begin = self._printed_at = time.monotonic()
        self._progress.start()
        self._bars = {name: self._progress.add_task(name, total=total, note="") for name, total in self._totals.items()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # After an interruption another message contains the progress, so bars and line are not needed.
        self._progress.live.transient = error is not None
        self._progress.stop()
        if error is None and not self._console.is_terminal and self._submitted:
            self._line()

    @property
    def done(self) -> int:
        """Number of tasks with an outcome."""
        return self._finished.total()

    def submitted(self, count: int) -> None:
        """Count submitted tasks."""
        self._submitted += count

    def finished(self, outcome: Outcome) -> None:
        """Count a finished task."""
        name = outcome.job.kind.task_type
        self._finished[name] += 1
        self._failed += not outcome.is_done
        if self._console.is_terminal:
            self._progress.update(self._bars[name], advance=1, note=f"{self._finished[name] / self._elapsed():,.0f}/s")
        elif time.monotonic() - self._printed_at >= LINE_S:
            self._line()

    def _line(self) -> None:
        self._printed_at = time.monotonic()
        self._console.print(
            f"{self._finished.total():,} of {self._totals.total():,} tasks finished, {self._failed:,} failed, "
            f"{self._submitted - self._finished.total():,} running or waiting, {self._rate():,.0f}/s"
        )

    def _rate(self) -> float:
        return self._finished.total() / self._elapsed()

    def _elapsed(self) -> float:
        return max(0.001, time.monotonic() - self._begin)
