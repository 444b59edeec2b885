"""Profiles of running processes with py-spy: raw stacks in files, and shares of functions."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from .child import Child, ChildFailed

#: Samples per second; a prime number, so that it is not in step with periodic work.
RATE = 499
START_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0


def find() -> str | None:
    """Return the path of py-spy, beside this interpreter or on PATH."""
    beside = Path(sys.executable).with_name("py-spy")
    return str(beside) if beside.exists() else shutil.which("py-spy")


class Sampling:
    """Samples processes during a ``with`` block; does nothing without a folder.

    Raises:
        ChildFailed: py-spy is missing, or has no permission to sample other processes.
    """

    def __init__(self, folder: str | None, children: Mapping[str, Child]) -> None:
        self._folder = None if folder is None else Path(folder)
        self._children = children
        self._running: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> None:
        """Start; return once samples are taken."""
        if self._folder is None:
            return
        program = find()
        if program is None:
            raise ChildFailed("py-spy is missing: scripts/venv installs it")
        for name, child in self._children.items():
            log = self._folder / f"{name}.log"
            command = [program, "record", "--pid", str(child.pid), "--format", "raw", "--rate", str(RATE)]
            # Not blocking: pausing the process for every sample would distort the profile.
            command += ["--nonblocking", "--output", str(self._folder / f"{name}.txt")]
            with log.open("wb") as output:
                process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
            self._running.append(process)
            deadline = time.monotonic() + START_LIMIT_S
            while "Sampling process" not in (text := log.read_text(errors="replace")):
                if process.poll() is not None or time.monotonic() > deadline:
                    raise ChildFailed(f"py-spy does not sample {name!r}: {text.strip()}")
                time.sleep(0.05)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Stop; py-spy writes its samples when it is interrupted."""
        for process in self._running:
            process.send_signal(signal.SIGINT)
        for process in self._running:
            try:
                process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def read(stacks: Path) -> tuple[list[tuple[str, float]], list[tuple[str, float]]]:
    """Return the shares (0..1) of a raw profile, largest first: of each function itself, and with its callees."""
    alone: Counter[str] = Counter()
    within: Counter[str] = Counter()
    total = 0
    for line in stacks.read_text(errors="replace").splitlines():
        stack, _, count = line.rpartition(" ")
        frames = [_function(frame) for frame in stack.split(";")]
        alone[frames[-1]] += int(count)
        for frame in set(frames):
            within[frame] += int(count)
        total += int(count)
    return _shares(alone, total), _shares(within, total)


def _function(frame: str) -> str:
    """Remove the line from ``execute_command (redis/asyncio/client.py:754)``, so that a function is one row."""
    head, colon, line = frame.rpartition(":")
    return f"{head})" if colon and line.rstrip(")").isdigit() else frame


def _shares(counted: Counter[str], total: int) -> list[tuple[str, float]]:
    return [(name, count / total) for name, count in counted.most_common()] if total else []
