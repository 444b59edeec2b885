"""The program of ``scripts/bench``: measures, writes JSON, shows a table.

Exit code 0; 1 if a row failed, or is below 0.9 of the other commit; 2 for invalid options; 130 after Ctrl-C.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import platform
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import Any

import msgspec
from rich.console import Console

from . import gateway, listeners, placement, polls, quality, sampling, table
from .campaign import Run, campaign, measure
from .rows import BY_NAME, ROWS, Row
from .summary import Line, summarize
from .tree import ROOT, NoSuchRevision, Tree, other_tree, this_tree

RESULTS = ROOT / ".bench"

#: Measurements with options of their own.
COMMANDS = {
    "gateway": gateway.main,
    "listeners": listeners.main,
    "placement": placement.main,
    "polls": polls.main,
    "quality": quality.main,
}


def main() -> int:
    """Measure what the command line asks for."""
    if sys.argv[1:2] and sys.argv[1] in COMMANDS:
        return COMMANDS[sys.argv[1]](sys.argv[2:])
    options = _parser().parse_args()
    for number in (signal.SIGINT, signal.SIGTERM):  # a shell starts background processes with SIGINT ignored
        signal.signal(number, _interrupt)
    console = Console(width=max(120, Console().width))
    stamp = time.strftime("%Y%m%d-%H%M%S")
    try:
        if options.profile:
            return _profile(console, BY_NAME[options.profile], RESULTS / f"{stamp}-profile", quick=options.quick)
        file = options.json or RESULTS / f"{stamp}.json"
        with contextlib.ExitStack() as stack:
            trees = [this_tree()]
            if options.against:
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="coord-bench-tree-"))
                trees.append(stack.enter_context(other_tree(options.against, Path(folder))))
            return _compare(console, options, trees, file)
    except NoSuchRevision as error:
        sys.stderr.write(f"scripts/bench: {error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("scripts/bench: stopped; all its processes have ended\n")
        return 130


def _compare(console: Console, options: argparse.Namespace, trees: Sequence[Tree], file: Path) -> int:
    other = trees[1].label if len(trees) > 1 else None
    runs: list[Run] = []
    lines: list[Line] = []
    file.parent.mkdir(parents=True, exist_ok=True)
    started = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    for run in campaign(
        options.rows, trees, repeat=options.repeat, quick=options.quick, on_run=lambda run: _print_run(console, run)
    ):
        runs.append(run)
        lines = summarize(options.rows, runs, trees[0].label, other)
        # Written after every run, so results survive Ctrl-C.
        file.write_bytes(
            msgspec.json.format(msgspec.json.encode(_report(started, options, trees, runs, lines))) + b"\n"
        )
    console.print()
    table.show(console, lines, other)
    console.print(f"results in {_relative(file)}", highlight=False)
    failed = [run for run in runs if run.error]
    for run in failed:
        console.print(f"{run.row} in {run.tree} failed: {run.error}", markup=False, highlight=False)
    slower = [line for line in lines if line.is_slower]
    for line in slower:
        console.print(f"{line.row} {line.figure} is below that of {other}", highlight=False)
    return 1 if failed or slower else 0


def _profile(console: Console, row: Row, folder: Path, *, quick: bool) -> int:
    folder.mkdir(parents=True)
    run = measure(row, this_tree(), 0, quick=quick, profile=str(folder))
    if run.error:
        sys.stderr.write(f"scripts/bench: {run.error}\n")
        return 1
    found = {stacks.stem: sampling.read(stacks) for stacks in sorted(folder.glob("*.txt"))}
    table.show_profile(console, found)
    table.show_server(console, run.detail)
    console.print(
        f"{row.name} under the sampler: {run.figures['per_s']:,.0f} tasks/s; stacks in {_relative(folder)}",
        highlight=False,
    )
    return 0


def _report(
    started: str, options: argparse.Namespace, trees: Sequence[Tree], runs: Sequence[Run], lines: Sequence[Line]
) -> dict[str, Any]:
    return {
        "begun": started,
        "trees": {tree.label: tree.commit for tree in trees},
        "quick": options.quick,
        "repeat": options.repeat,
        "machine": {"system": platform.platform(), "cpus": os.cpu_count(), "python": platform.python_version()},
        "rows": {row.name: {**row.options, **(row.quick if options.quick else {})} for row in options.rows},
        "summary": lines,
        "runs": [run.as_json() for run in runs],
    }


def _print_run(console: Console, run: Run) -> None:
    first = next((f"{name} {value:,.1f}" for name, value in _main_figures(run)), run.error.partition("\n")[0])
    console.print(
        f"{run.repetition + 1}  {run.tree:<10} {run.row:<12} {first}  (load {run.load:.1f})",
        markup=False,
        highlight=False,
    )


def _main_figures(run: Run) -> list[tuple[str, float]]:
    names = [figure.name for figure in BY_NAME[run.row].figures]
    return [(name, run.figures[name]) for name in names if name in run.figures]


def _relative(path: Path) -> str:
    return os.path.relpath(path)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def _rows(text: str) -> list[Row]:
    unknown = [name for name in text.split(",") if name not in BY_NAME]
    if unknown:
        raise argparse.ArgumentTypeError(f"{unknown[0]!r} is not a row; the rows are {', '.join(BY_NAME)}")
    return [row for row in ROWS if row.name in text.split(",")]


def _positive(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a number above 0, got {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    names = "\n".join(f"  {row.name:<12} {row.what}" for row in ROWS)
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Measure coord on the embedded server. Compare ratios within one run; absolute values vary.",
        epilog=f"rows:\n{names}\n\nmore: scripts/bench gateway, listeners, placement, polls, quality; each has --help",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", type=_rows, default=list(ROWS), metavar="A,B", help="rows to measure; default: all")
    parser.add_argument(
        "--repeat", type=_positive, default=3, metavar="N", help="number of repetitions, interleaved (3)"
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a test of the benchmarks, not a measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for all results; default .bench/TIME.json")
    parser.add_argument(
        "--against", metavar="REV", help="also measure this commit, in turns with this tree, and compare"
    )
    parser.add_argument(
        "--profile",
        nargs="?",
        const="drain",
        choices=[row.name for row in ROWS if row.can_be_profiled],
        help="profile one run of a row (drain) with py-spy instead",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
