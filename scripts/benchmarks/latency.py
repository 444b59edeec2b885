"""Measures how long a task waits on an idle cell: from the call that submits it to the start of its handler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .drain import type_names
from .stage import Stage

#: Tasks before those that are measured: then connections are open and scripts loaded.
WARM_UP = 100


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure milliseconds at several quantiles. Options: tasks, agents, per_s (rate of submissions)."""
    types = type_names(1)
    with Stage(folder) as stage:
        registry, distributor = stage.worker("registry"), stage.worker("distributor")
        agents = stage.program("agents", agents=options["agents"], capacity=8, types=types, timed=True)
        tasks = options["tasks"] + WARM_UP
        client = stage.program("submitter", tasks=tasks, types=types, per_s=options["per_s"])
        agents.send("go")
        agents.receive()
        meter = stage.meter(registry=registry, distributor=distributor, agents=agents, client=client)
        meter.begin()
        client.send("go")
        client.receive()
        stage.wait(lambda: stage.counter("completed"), tasks, "completing")
        figures = meter.end(tasks)
        agents.send("latencies")
        waited = sorted(agents.receive()[WARM_UP:])
        for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99), ("max", 1.0)):
            figures[f"{name}_ms"] = waited[min(len(waited) - 1, int(share * len(waited)))] / 1e6
        return figures
