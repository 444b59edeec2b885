"""Measures what a large idle fleet costs: heartbeats of many agents, as CPU time and commands of the server.

The agents are only registrations; one process sends the heartbeats of all of them, evenly spread.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

from .fleet import register
from .stage import Stage

#: Seconds before the measurement, so that heartbeats come at their rate.
REST_S = 2.0


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure percentages of a core, and commands per agent and minute.

    Options: agents, interval_s (between two heartbeats of an agent), for_s (the time that is measured).
    """
    agents, interval_s, for_s = options["agents"], options["interval_s"], options["for_s"]
    with Stage(folder) as stage:
        registry = stage.worker("registry")
        asyncio.run(register(stage, agents, ["work"], capacity=8, interval_s=interval_s))
        beater = stage.program("beater", agents=agents, interval_s=interval_s)
        beater.send("go")
        time.sleep(REST_S)
        meter = stage.meter(registry=registry, beater=beater)
        meter.begin()
        began = time.monotonic()
        time.sleep(for_s)
        took = time.monotonic() - began
        figures = meter.end(1)
        stage.wait(lambda: stage.size("SCARD", "agents:active"), agents, "being alive")
        return {
            "redis_percent": figures["redis_us"] / took / 1e4,
            "registry_percent": figures["registry_us"] / took / 1e4,
            "commands_per_minute": figures["commands"] / agents / took * 60,
            "slowest_ms": figures["detail"]["slowest_ms"],
            "waiting": stage.size("XLEN", "in:beats"),
            "detail": figures["detail"],
        }
