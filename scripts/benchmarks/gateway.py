"""``scripts/bench gateway``: requests per second of one gateway beside a bare HTTP server that appends to Redis.

The gateway and the bare server each have a core of their own; Redis, the workers and wrk have the others. All rows of a
repetition are measured one after the other, and only their ratios count. It needs wrk.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from .child import Child
from .markdown import markdown
from .stage import Stage

#: Goals, as ratios of the bare server's requests per second.
GOALS = {"respond-async": 0.6, "truthful": 0.5}
#: The submission of every request; each gets a task of its own.
BODY = '{"task_data":{"task_type":"echo","required_capabilities":["echo"],"text":"%s"},"priority":"normal"}' % (
    "x" * 120
)
#: Connections of wrk.
CONNECTIONS = 64
#: Seconds that a server gets to start.
START_S = 20.0
#: The core of the measured server.
CORE = 0


class Sample(NamedTuple):
    """One run of one row."""

    per_s: float
    server_us: float  #: CPU of the measured server per request
    redis_us: float
    p99_ms: float
    mib: float  #: resident memory of the measured server at the end
    refused: int  #: responses that are not 2xx


class Row(NamedTuple):
    """Something to measure."""

    name: str
    what: str
    measure: Callable[[Path, float], Sample]


def main(arguments: Sequence[str]) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench gateway",
        description=__doc__,
        epilog="rows:\n" + "\n".join(f"  {row.name:<14} {row.what}" for row in ROWS),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), metavar="A,B", help="rows to measure")
    parser.add_argument("--repeat", type=int, default=3, metavar="N", help="number of repetitions, interleaved (3)")
    parser.add_argument("--seconds", type=float, default=10.0, metavar="S", help="duration of each run (10)")
    options = parser.parse_args(arguments)
    by_name = {row.name: row for row in ROWS}
    names = options.rows.split(",")
    if unknown := [name for name in names if name not in by_name]:
        parser.error(f"{unknown[0]!r} is not a row; the rows are {', '.join(by_name)}")
    if shutil.which("wrk") is None:
        sys.stderr.write("scripts/bench gateway: wrk is not installed: apt-get install wrk\n")
        return 2
    found: dict[str, list[Sample]] = {name: [] for name in names}
    for repetition in range(options.repeat):
        for name in names:
            with tempfile.TemporaryDirectory(prefix="coord-bench-") as folder:
                sample = by_name[name].measure(Path(folder), options.seconds)
            found[name].append(sample)
            shown = f"{sample.per_s:,.0f}/s, {sample.server_us:.0f} us a request, {sample.refused} refused"
            sys.stdout.write(f"{repetition + 1}  {name:<14} {shown}  (load {os.getloadavg()[0]:.1f})\n")
            sys.stdout.flush()
    sys.stdout.write("\n" + markdown([HEAD, *(_line(name, found) for name in names)]) + "\n")
    return 1 if any(sample.refused for samples in found.values() for sample in samples) else 0


HEAD = ("row", "requests/s", "of bare", "goal", "server µs", "bare by CPU", "Redis µs", "p99 ms", "MiB")


def _line(name: str, found: dict[str, list[Sample]]) -> tuple[str, ...]:
    samples, bare = found[name], found.get("bare", [])
    ratios = [mine.per_s / other.per_s for mine, other in zip(samples, bare, strict=False)]
    cheaper = [other.server_us / mine.server_us for mine, other in zip(samples, bare, strict=False)]
    middle = Sample(*(statistics.median(values) for values in zip(*samples, strict=True)))
    goal = f"{GOALS[name]:.1f}" if name in GOALS else ""
    return (
        name, f"{middle.per_s:,.0f}", _range(ratios), goal, f"{middle.server_us:.0f}", _range(cheaper),
        f"{middle.redis_us:.0f}", f"{middle.p99_ms:.1f}", f"{middle.mib:.0f}",
    )  # fmt: skip


def _range(values: Sequence[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})" if values else ""


def _bare(folder: Path, seconds: float) -> Sample:
    with Stage(folder) as stage:
        port = _free_port()
        server = stage.program("bare", wait=False, port=port)
        return _load(stage, server, port, seconds, folder)


def _respond_async(folder: Path, seconds: float) -> Sample:
    with Stage(folder) as stage, _gateway(stage) as (server, port):
        return _load(stage, server, port, seconds, folder, prefer="respond-async")


def _truthful(folder: Path, seconds: float) -> Sample:
    with Stage(folder) as stage:
        _pin_elsewhere(stage.worker("distributor"))
        with _gateway(stage) as (server, port):
            return _load(stage, server, port, seconds, folder)


ROWS = (
    Row("bare", "Falcon on uvicorn (httptools): one XADD per request", _bare),
    Row("respond-async", "POST /tasks/submit with Prefer: respond-async", _respond_async),
    Row("truthful", "POST /tasks/submit, answered after a distributor has admitted the task", _truthful),
)


@contextlib.contextmanager
def _gateway(stage: Stage) -> Iterator[tuple[Child, int]]:
    port = _free_port()
    yield stage.command("gateway", "--port", str(port), "--watch-stdin"), port


def _load(stage: Stage, server: Child, port: int, seconds: float, folder: Path, *, prefer: str = "") -> Sample:
    """Load a server for some seconds, after a second to warm up."""
    _await(server, port)
    os.sched_setaffinity(server.pid, {CORE})
    os.sched_setaffinity(stage.server.pid, _others())
    script = folder / "post.lua"
    headers = {"Content-Type": "application/json"} | ({"Prefer": prefer} if prefer else {})
    lines = [f'wrk.headers["{name}"] = "{value}"' for name, value in headers.items()]
    script.write_text("\n".join(['wrk.method = "POST"', f"wrk.body = '{BODY}'", *lines]))
    _wrk(script, port, 1.0)
    meter = stage.meter(server=server)
    meter.begin()
    text = _wrk(script, port, seconds)
    requests = int(_number(r"(\d+) requests in", text))
    used = meter.end(requests)
    refused = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    return Sample(
        _number(r"Requests/sec:\s+([\d.]+)", text),
        used["server_us"],
        used["redis_us"],
        _latency(text),
        _resident(server.pid),
        int(refused.group(1)) if refused else 0,
    )


def _wrk(script: Path, port: int, seconds: float) -> str:
    command = ["wrk", "-t1", f"-c{CONNECTIONS}", f"-d{seconds:g}s", "--latency", "-s", str(script)]
    url = f"http://127.0.0.1:{port}/tasks/submit"

    def pin() -> None:
        os.sched_setaffinity(0, _others())

    done = subprocess.run([*command, url], capture_output=True, text=True, check=True, preexec_fn=pin)
    return done.stdout


def _others() -> set[int]:
    return (os.sched_getaffinity(0) - {CORE}) or {CORE}


def _pin_elsewhere(child: Child) -> None:
    os.sched_setaffinity(child.pid, _others())


def _await(server: Child, port: int) -> None:
    deadline = time.monotonic() + START_S
    ready = f"http://127.0.0.1:{port}/health/{'live' if server.name == 'bare' else 'ready'}"
    while time.monotonic() < deadline:
        server.check()
        with contextlib.suppress(OSError), urllib.request.urlopen(ready, timeout=2):
            return
        time.sleep(0.05)
    raise server.failure("did not start")


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def _number(pattern: str, text: str) -> float:
    found = re.search(pattern, text)
    if found is None:
        raise RuntimeError(f"wrk printed nothing like {pattern!r}:\n{text}")
    return float(found.group(1))


def _latency(text: str) -> float:
    """Return the 99th percentile in milliseconds."""
    found = re.search(r"99%\s+([\d.]+)(us|ms|s)", text)
    return float(found.group(1)) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[found.group(2)] if found else 0.0


def _resident(pid: int) -> float:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
