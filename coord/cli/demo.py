"""``coord demo``: what coord does, in two minutes on this machine."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Annotated

import typer

from coord.cli.output import hint, write_line

#: Exit code, as a shell gives it -> the signal that ends the demo: SIGHUP comes when the terminal is closed.
_SIGNALS = {128 + number: number for number in (signal.SIGTERM, signal.SIGHUP)}


def demo(
    *,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not pause between the steps, and run shorter tasks.")
    ] = False,
) -> None:
    """Show the features of coord in two minutes, on a cell of its own in a temporary folder.

    It starts Redis, workers and agents, and runs the commands that it prints: placement with its reasons, priorities,
    a task that waits, an agent that crashes, drain, messages, and the doctor. It works offline, changes no other cell,
    and removes everything at the end, also after Ctrl-C, SIGTERM, and when the terminal is closed.

    Examples:
        coord demo
        coord demo --fast
    """
    from coord.demo.cell import DemoCell
    from coord.demo.tour import NEXT_STEPS, Tour

    write_line("starting a cell in a temporary folder …")
    try:
        with _ended_by_signals(), DemoCell() as cell:
            Tour(cell, write_line, fast=fast).run()
    except (KeyboardInterrupt, SystemExit) as error:
        if isinstance(error, KeyboardInterrupt) or error.code in _SIGNALS:
            hint("interrupted: the cell has ended, and its folder is removed")
        raise
    write_line()
    for line in NEXT_STEPS.splitlines():
        write_line(line)


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Raise ``SystemExit`` in this block on SIGTERM, and on SIGHUP unless ``nohup`` ignores it.

    Only the first one counts: several may come at the end of a session, and the end of the cell must not be cut off.
    """
    is_ending = False

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal is_ending
        if not is_ending:
            is_ending = True
            raise SystemExit(128 + number)

    handled = [number for number in _SIGNALS.values() if signal.getsignal(number) is not signal.SIG_IGN]
    before = {number: signal.signal(number, end) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
