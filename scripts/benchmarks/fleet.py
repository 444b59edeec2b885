"""Measures what a large fleet costs: memory of an idle agent, and placements per second among few and many.

The agents are only registrations, without processes: this measures the part of the coordinator.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from coord import streams
from coord.config import Settings
from coord.connection import connect
from coord.models.agents import AgentType
from coord.models.facts import AgentHeartbeat, AgentRegistered

from . import records
from .drain import fill, roomy, type_names
from .hops import agent_name
from .stage import Stage

CHUNK = 500
#: Heartbeats of each idle agent, so that its record has all fields of a real one.
HEARTBEATS = 3


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options: tasks, few, many (registered agents)."""
    figures: dict[str, Any] = {"detail": {}}
    for name in ("few", "many"):
        found = _placements(folder / name, options["tasks"], options[name])
        figures["detail"][name] = found.pop("detail")
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
    return figures


def _placements(folder: Path, tasks: int, count: int) -> dict[str, Any]:
    """Place tasks that all wait before the first placement, on agents with capacity for all of them."""
    types = type_names(1)
    with Stage(folder, settings=roomy(tasks)) as stage:
        registry, distributor = stage.worker("registry"), stage.worker("distributor")
        fill(stage, tasks, types)
        distributor.stop()
        before = stage.memory()
        asyncio.run(register(stage, count, types, capacity=max(8, 2 * tasks // count)))
        idle_bytes = (stage.memory() - before) / count
        distributor = stage.worker("distributor", 2)
        # Its view is complete when the first task is placed; the time before is part of its start.
        stage.wait(lambda: stage.counter("assigned"), 1, "starting")
        meter = stage.meter(registry=registry, distributor=distributor)
        meter.begin()
        left = tasks - stage.counter("assigned")
        stage.wait(lambda: stage.counter("assigned"), tasks, "placing")
        figures = meter.end(max(1, left))
        ids = [key.rpartition(b":")[2] for key in stage.redis.scan_iter(stage.keys.task("*"), count=5_000)]
        assigned = records.times(stage.redis, stage.keys, ids, "assigned_at")
        figures["per_s"] = tasks / max(1, max(assigned) - min(assigned)) * 1000
        figures["idle_bytes"] = idle_bytes
        return figures


async def register(stage: Stage, count: int, types: list[str], *, capacity: int) -> None:
    """Register agents without processes; each has sent three heartbeats."""
    redis = connect(stage.server.url, Settings())
    names = [agent_name(number) for number in range(count)]
    registered = [
        AgentRegistered(
            agent_id=name,
            agent_type=AgentType.WORKER,
            incarnation=f"incarnation-of-{name}",
            capabilities=(*types, "summarize"),
            tags=("bench",),
            labels={"zone": "a"},
            endpoints={"http": f"http://{name}.example:8080"},
            version="1.0.0",
            capacity=capacity,
            heartbeat_interval=600.0,
        )
        for name in names
    ]
    heartbeats = [
        AgentHeartbeat(
            agent_id=fact.agent_id,
            incarnation=fact.incarnation,
            load_metrics={"cpu_usage": 0.1, "memory_usage": 0.2},
            leases=0,
        )
        for fact in registered
    ]
    try:
        await _append(redis, stage, "in:registry", registered)
        stage.wait(lambda: stage.size("SCARD", "agents:active"), count, "registering")
        for _ in range(HEARTBEATS):
            await _append(redis, stage, "in:beats", heartbeats)
        stage.wait(lambda: -stage.size("XLEN", "in:beats"), 0, "sending heartbeats")
    finally:
        await redis.aclose()


async def _append(redis: Any, stage: Stage, stream: str, facts: Any) -> None:
    for begin in range(0, len(facts), CHUNK):
        chunk = [streams.Append(stream, fact) for fact in facts[begin : begin + CHUNK]]
        await streams.append(redis, stage.keys, chunk)
