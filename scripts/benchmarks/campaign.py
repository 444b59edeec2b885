"""Runs all repetitions of the rows, one driver at a time, and collects their figures."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from coord.embedded import EmbeddedServer

from .rows import Row
from .tree import Tree

#: Timeout of a measurement in seconds.
LIMIT_S = 900.0
#: Seconds that a driver gets to end its processes.
STOP_LIMIT_S = 60.0


@dataclass
class Run:
    """One measurement of one row in one tree."""

    row: str
    tree: str
    repetition: int
    load: float  #: load average of the machine at the start
    figures: dict[str, float] = field(default_factory=dict)
    detail: dict[str, Any] = field(default_factory=dict)
    error: str = ""

    def as_json(self) -> dict[str, Any]:
        """Return it for the file."""
        return asdict(self)


def campaign(
    rows: Sequence[Row], trees: Sequence[Tree], *, repeat: int, quick: bool, on_run: Callable[[Run], None]
) -> Iterator[Run]:
    """Run every row in every tree ``repeat`` times; the trees take turns to go first.

    So slow minutes of the machine affect all rows and trees equally. Ratios are computed within one repetition.
    """
    for repetition in range(repeat):
        for row in rows:
            order = trees if repetition % 2 == 0 else tuple(reversed(trees))
            for tree in order if row.own else trees[:1]:
                run = measure(row, tree, repetition, quick=quick)
                on_run(run)
                yield run


def measure(row: Row, tree: Tree, repetition: int, *, quick: bool, **more: Any) -> Run:
    """Run one driver in its own data folder; return its figures, or why it failed."""
    run = Run(row.name, tree.label, repetition, os.getloadavg()[0])
    options = {**row.options, **(row.quick if quick else {}), **more}
    with _folder() as folder:
        output, errors_file = folder / "figures.json", folder / "errors.txt"
        with output.open("wb") as out, errors_file.open("wb") as errors:
            code = _drive(tree, [row.driver, str(folder), str(tree.folder), json.dumps(options)], out, errors)
        if code != 0:
            run.error = errors_file.read_text(errors="replace").strip() or f"the driver ended with {code}"
        else:
            run.figures = json.loads(output.read_bytes())
            run.detail = run.figures.pop("detail", {})  # type: ignore[assignment]
    return run


def _drive(tree: Tree, arguments: Sequence[str], out: BinaryIO, errors: BinaryIO) -> int | None:
    """Run a driver; return its exit code, or None after a timeout."""
    driver = subprocess.Popen(
        [sys.executable, "-P", "-m", "benchmarks.driver", *arguments],
        env=tree.environ(),
        stdin=subprocess.PIPE,  # a driver ends when this pipe closes
        stdout=out,
        stderr=errors,
        start_new_session=True,  # Ctrl-C reaches this process, which then ends the driver
    )
    try:
        return driver.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        return None
    finally:
        _end(driver)


def _end(driver: subprocess.Popen[bytes]) -> None:
    if driver.poll() is None:
        driver.terminate()
        try:
            driver.wait(STOP_LIMIT_S)
        except subprocess.TimeoutExpired:
            os.killpg(driver.pid, signal.SIGKILL)
            driver.wait()
    if driver.stdin is not None:
        driver.stdin.close()


@contextmanager
def _folder() -> Iterator[Path]:
    """Yield a folder for one run; afterwards kill a server that a killed driver has left in it."""
    folder = Path(tempfile.mkdtemp(prefix="coord-bench-"))
    try:
        yield folder
    finally:
        for record in folder.rglob("server.json"):
            left = EmbeddedServer.find(record.parent)
            if left is not None:
                left.kill()
        shutil.rmtree(folder, ignore_errors=True)
