"""Measures the cost of pools that no agent can serve: latency of other tasks, CPU time of an idle distributor."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import psutil

from .drain import roomy, type_names
from .latency import WARM_UP
from .stage import Stage

#: Seconds for which an idle distributor is measured.
IDLE_S = 10.0
#: Seconds between the admission of the pools and the measurement, so that garbage collections are over.
REST_S = 2.0


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure milliseconds at two quantiles for each size, and CPU share and memory of the distributor.

    Options: tasks and per_s (ordinary tasks, and their rate), sizes (name -> unserved pools that wait).
    """
    figures: dict[str, Any] = {"detail": {}}
    for name, pools in options["sizes"].items():
        found = _latency(folder / name, options["tasks"], options["per_s"], pools)
        figures["detail"][name] = found.pop("detail")
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
    return figures


def _latency(folder: Path, tasks: int, per_s: float, pools: int) -> dict[str, Any]:
    """Measure with one idle agent, and this many waiting pools with different requirements."""
    types = type_names(1)
    with Stage(folder, settings=roomy(pools + tasks)) as stage:
        registry, distributor = stage.worker("registry"), stage.worker("distributor")
        agents = stage.program("agents", agents=1, capacity=8, types=types, timed=True)
        agents.send("go")
        agents.receive()
        if pools:
            filler = stage.program("submitter", tasks=pools, types=["unserved"], apart=True)
            filler.send("go")
            filler.receive()
            filler.stop()
            stage.wait(lambda: stage.counter("queued"), pools, "admitting")
        count = tasks + WARM_UP
        client = stage.program("submitter", tasks=count, types=types, per_s=per_s)
        time.sleep(REST_S)
        idle = _cpu_percent(distributor.pid)
        meter = stage.meter(registry=registry, distributor=distributor, agents=agents, client=client)
        meter.begin()
        client.send("go")
        client.receive()
        stage.wait(lambda: stage.counter("completed"), count, "completing")
        figures = {"detail": meter.end(count)["detail"]}
        agents.send("latencies")
        waited = sorted(agents.receive()[WARM_UP:])
        for name, share in (("p50", 0.5), ("p99", 0.99)):
            figures[f"{name}_ms"] = waited[min(len(waited) - 1, int(share * len(waited)))] / 1e6
        figures["idle_percent"] = idle
        figures["mib"] = psutil.Process(distributor.pid).memory_info().rss / 2**20
        return figures


def _cpu_percent(pid: int) -> float:
    """Return the percentage of a core that an idle process uses."""
    process = psutil.Process(pid)
    before, begin = process.cpu_times(), time.monotonic()
    time.sleep(IDLE_S)
    after, took = process.cpu_times(), time.monotonic() - begin
    return float(after.user + after.system - before.user - before.system) / took * 100
