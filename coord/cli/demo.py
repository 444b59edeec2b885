"""``coord demo``: what coord does, in two minutes on this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli.output import hint, write_line


def demo(
    *,
    fast: Annotated[
        bool, typer.Option("--fast", help="Do not pause between the steps, and run shorter tasks.")
    ] = False,
) -> None:
    """Show the features of coord in two minutes, on a cell of its own in a temporary folder.

    It starts Redis, workers and agents, and runs the commands that it prints: placement with its reasons, priorities,
    a task that waits, an agent that crashes, drain, messages, and the doctor. It works offline, changes no other cell,
    and removes everything at the end, also after Ctrl-C.

    Examples:
        coord demo
        coord demo --fast
    """
    from coord.demo.cell import DemoCell
    from coord.demo.tour import NEXT_STEPS, Tour

    write_line("starting a cell in a temporary folder …")
    cell = DemoCell()
    try:
        with cell:
            Tour(cell, write_line, fast=fast).run()
    except KeyboardInterrupt:
        hint("interrupted: the cell has ended, and its folder is removed")
        raise
    write_line()
    for line in NEXT_STEPS.splitlines():
        write_line(line)
