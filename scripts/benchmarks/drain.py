"""Measures how fast waiting tasks complete: all are admitted and all agents registered before the first is placed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import records
from .child import Child
from .sampling import Sampling
from .stage import Stage


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure from the first assignment to the last completion.

    Options: tasks, agents, distributors, pools (task types), aof, profile (a folder for samples, or None).
    """
    tasks = options["tasks"]
    types = type_names(options.get("pools", 1))
    with Stage(folder, aof=options.get("aof", False), settings=roomy(tasks)) as stage:
        registry = stage.worker("registry")
        distributors = [stage.worker("distributor", number + 1) for number in range(options["distributors"])]
        fill(stage, tasks, types)
        agents = stage.program("agents", agents=options["agents"], capacity=8, types=types)
        named = {f"distributor{number or ''}": worker for number, worker in enumerate(distributors)}
        meter = stage.meter(registry=registry, agents=agents, **named)
        with Sampling(options.get("profile"), {"distributor": distributors[0], "agents": agents}):
            # The distributors are paused while the agents register, so no task is placed before all have.
            for distributor in distributors:
                distributor.pause()
            agents.send("go")
            agents.receive()
            meter.begin(scripts=options.get("profile") is not None)
            for distributor in distributors:
                distributor.resume()
            stage.wait(lambda: stage.counter("completed"), tasks, "draining")
            figures = meter.end(tasks)
        figures["distributor_us"] = sum(figures.pop(f"{name}_us") for name in named)
        figures["per_s"] = tasks / records.span_s(stage.redis, stage.keys, "assigned_at")
        return figures


def type_names(count: int) -> list[str]:
    """Return names of task types; each type has its own pool."""
    return [f"nothing-{number:03}" for number in range(count)]


def roomy(tasks: int) -> dict[str, str]:
    """Return settings with a backlog for this many tasks."""
    return {"COORD_MAX_BACKLOG_TASKS": str(max(100_000, 2 * tasks))}


def fill(stage: Stage, tasks: int, types: list[str]) -> None:
    """Submit tasks and wait until all are admitted; there is no agent yet."""
    submitter: Child = stage.program("submitter", tasks=tasks, types=types)
    submitter.send("go")
    submitter.receive()
    submitter.stop()
    stage.wait(lambda: stage.counter("queued"), tasks, "admitting")
