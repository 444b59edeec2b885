"""A bar on standard error while something takes its time; nothing where no person looks."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Self

from coord.cli.output import hint
from coord.terminal import plain

if TYPE_CHECKING:
    from rich.progress import Progress as Bar
    from rich.progress import TaskID


class Progress:
    """One bar at a time; use it as ``with Progress() as progress``."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._shown: TaskID | None = None

    def __enter__(self) -> Self:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.TextColumn("{task.description}"),
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TimeElapsedColumn(),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True, markup=False, highlight=False),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def begin(self, what: str, total: int | None) -> None:
        """Show a new bar; ``total`` None: it is not known how much there is."""
        if self._bar is not None:
            if self._shown is not None:
                self._bar.remove_task(self._shown)
            self._shown = self._bar.add_task(what, total=total)

    def to(self, done: int) -> None:
        """So much is done."""
        if self._bar is not None and self._shown is not None:
            self._bar.update(self._shown, completed=done)

    def say(self, text: str) -> None:
        """One line above the bar."""
        if self._bar is not None:
            self._bar.console.print(plain(text))
        else:
            hint(text)

    def end(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None
