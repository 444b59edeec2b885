"""``scripts/bench`` runs, and keeps what it measured. What it measures is no test's business: machines differ."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def test_a_quick_run_keeps_every_row_it_was_asked_for(tmp_path: Path) -> None:
    """Given two rows, the file holds a run of each with all its figures, and a summary."""
    file = tmp_path / "bench.json"
    done = subprocess.run(
        [BENCH, "--quick", "--repeat", "1", "--rows", "drain,latency", "--json", file],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    kept: dict[str, Any] = json.loads(file.read_text())
    assert [(run["row"], run["error"]) for run in kept["runs"]] == [("drain", ""), ("latency", "")]
    drain, latency = (run["figures"] for run in kept["runs"])
    assert {"per_s", "redis_us", "commands", "distributor_us", "agents_us"} <= set(drain)
    assert 0 < latency["p50_ms"] <= latency["p95_ms"] <= latency["p99_ms"] <= latency["max_ms"]
    assert {line["row"] for line in kept["summary"]} == {"drain", "latency"}


def test_an_unknown_row_is_answered_with_the_known_ones() -> None:
    """A misspelt row measures nothing and ends with 2."""
    done = subprocess.run([BENCH, "--rows", "drian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no row 'drian'; there are floor, drain" in done.stderr


def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a measurement ends the servers, workers and agents that it had started."""
    bench = subprocess.Popen(
        [BENCH, "--rows", "drain", "--json", tmp_path / "bench.json"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    started: list[psutil.Process] = []
    deadline = time.monotonic() + 60
    while not any(_is_worker(one) for one in started):
        assert time.monotonic() < deadline, "no worker was started"
        started = psutil.Process(bench.pid).children(recursive=True)
        time.sleep(0.05)
    bench.send_signal(signal.SIGINT)
    assert bench.wait(60) == 130
    _, alive = psutil.wait_procs(started, timeout=10)
    assert alive == []


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "workers" in process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return False
