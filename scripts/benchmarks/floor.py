"""Measures the floor: bare redis-py, three processes, one minimal script; for waiting tasks, and end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .child import Child
from .hops import GROUP, LOADS, RESULTS, TASKS, agent_name
from .stage import Stage


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure both ways in one run, each on its own server; figures start with ``drain_`` and ``end_to_end_``."""
    figures: dict[str, Any] = {"detail": {}}
    for name, waits in (("drain", True), ("end_to_end", False)):
        found = _run(folder / name, waits=waits, tasks=options["tasks"], agents=options["agents"])
        figures["detail"][name] = found.pop("detail")
        figures |= {f"{name}_{figure}": value for figure, value in found.items()}
    return figures


def _run(folder: Path, *, waits: bool, tasks: int, agents: int) -> dict[str, Any]:
    with Stage(folder) as stage:
        redis = stage.redis
        redis.xgroup_create(TASKS, GROUP, id="0", mkstream=True)
        for number in range(agents):
            redis.xgroup_create(f"inbox:{agent_name(number)}", GROUP, id="0", mkstream=True)
            redis.zadd(LOADS, {agent_name(number): 0})

        def start(role: str) -> Child:
            return stage.program("hops", role=role, tasks=tasks, agents=agents)

        producer, middle, agents_process = start("producer"), start("middle"), start("agents")
        if waits:
            producer.send("go")
            stage.wait(lambda: int(redis.xlen(TASKS)), tasks, "appending")
        meter = stage.meter(client=producer, distributor=middle, agents=agents_process)
        meter.begin()
        for child in (agents_process, middle) if waits else (agents_process, middle, producer):
            child.send("go")
        agents_process.receive()
        figures = meter.end(tasks)
        begin = _first_assigned(redis) if waits else _ms(redis.xrange(TASKS, count=1))
        figures["per_s"] = tasks / max(1.0, _ms(redis.xrevrange(RESULTS, count=1)) - begin) * 1000
        return figures


def _ms(entries: Any) -> float:
    """Return the time at which the only entry of this answer was appended."""
    return float(entries[0][0].partition(b"-")[0])


def _first_assigned(redis: Any) -> float:
    first: bytes = redis.xrange(TASKS, count=1)[0][1][b"task_id"]
    return float(redis.hget(b"task:" + first, "assigned_at"))
