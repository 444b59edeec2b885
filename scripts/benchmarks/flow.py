"""Measures tasks that are submitted while others run: from the first submission to the last completion."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import records
from .drain import roomy, type_names
from .sampling import Sampling
from .stage import Stage


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options: tasks, agents, notify (the client waits for each outcome), profile (as in ``drain``)."""
    tasks = options["tasks"]
    types = type_names(1)
    with Stage(folder, settings=roomy(tasks)) as stage:
        registry, distributor = stage.worker("registry"), stage.worker("distributor")
        agents = stage.program("agents", agents=options["agents"], capacity=8, types=types)
        client = stage.program("submitter", tasks=tasks, types=types, notify=options.get("notify", False))
        agents.send("go")
        agents.receive()
        meter = stage.meter(registry=registry, distributor=distributor, agents=agents, client=client)
        profile = options.get("profile")
        with Sampling(profile, {"distributor": distributor, "agents": agents, "client": client}):
            meter.begin(scripts=profile is not None)
            client.send("go")
            client.receive()
            stage.wait(lambda: stage.counter("completed"), tasks, "completing")
            figures = meter.end(tasks)
        figures["per_s"] = tasks / records.span_s(stage.redis, stage.keys, "submitted_at")
        return figures
