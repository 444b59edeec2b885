"""``scripts/bench`` runs, and keeps what it measured. What it measures is no test's business: machines differ."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.waiting import wait_until

BENCH = Path(__file__).resolve().parents[2] / "scripts" / "bench"

#: The commit that the speed of today is compared with.
OLDER = "9cd83a4"

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


def test_an_older_commit_is_measured_beside_this_one(tmp_path: Path) -> None:
    """The benchmarks are of this tree, the code is of the commit: they have to know the names of both."""
    older = ("git", "-C", BENCH.parent, "cat-file", "-e", f"{OLDER}^{{commit}}")
    if subprocess.run(older, capture_output=True, check=False).returncode:
        pytest.skip(f"commit {OLDER} is not here: a shallow clone")
    file = tmp_path / "bench.json"
    rows = ("drain", "end_to_end", "latency", "submit", "pools", "fleet")
    done = subprocess.run(
        [BENCH, "--quick", "--repeat", "1", "--rows", ",".join(rows), "--against", OLDER, "--json", file],
        capture_output=True,
        text=True,
        check=False,
    )
    kept: dict[str, Any] = json.loads(file.read_text())
    assert [run["error"] for run in kept["runs"]] == [""] * 2 * len(rows), done.stderr
    assert {run["tree"] for run in kept["runs"]} == {"now", OLDER}


def test_an_unknown_row_is_answered_with_the_known_ones() -> None:
    """A misspelt row measures nothing and ends with 2."""
    done = subprocess.run([BENCH, "--rows", "drian"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "no row 'drian'; there are floor, drain" in done.stderr


async def test_an_interrupted_run_leaves_nothing_behind(tmp_path: Path) -> None:
    """Ctrl-C in the middle of a measurement ends the servers, workers and agents that it had started."""
    bench = _start(tmp_path / "bench.json")

    def has_started() -> list[psutil.Process]:
        assert bench.poll() is None, "it has ended"
        started = psutil.Process(bench.pid).children(recursive=True)
        return started if any(_is_worker(one) for one in started) else []

    try:
        started = await wait_until(has_started, "a worker is started", 120)
        bench.send_signal(signal.SIGINT)
        assert await asyncio.to_thread(bench.wait, 120) == 130
        await wait_until(lambda: not any(one.is_running() for one in started), "nothing of it is left", 30)
    finally:
        bench.kill()
        bench.wait()


def _start(file: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [BENCH, "--rows", "drain", "--json", file], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "workers" in process.cmdline()
    except psutil.Error:  # it has ended meanwhile
        return False
