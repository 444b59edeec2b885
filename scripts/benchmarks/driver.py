"""Runs one measurement and prints its figures as JSON: ``python -m benchmarks.driver NAME FOLDER TREE OPTIONS``.

It ends when its standard input closes, together with its processes.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

import coord

from .child import ChildFailed


def _leave(_number: int, _frame: FrameType | None) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)  # the processes are being ended already
    sys.exit(1)


def _watch() -> None:
    while os.read(sys.stdin.fileno(), 4096):
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    """Measure."""
    name, folder, tree, options = sys.argv[1:]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    threading.Thread(target=_watch, daemon=True).start()
    found = Path(coord.__file__).resolve().parents[1]
    if found != Path(tree).resolve():
        sys.stderr.write(f"coord was imported from {found}, not from {tree}\n")
        return 2
    module = importlib.import_module(f"benchmarks.{name}")
    try:
        figures = module.measure(Path(folder), json.loads(options))
    except ChildFailed as error:
        sys.stderr.write(f"{error}\n")
        return 1
    sys.stdout.write(json.dumps(figures) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
