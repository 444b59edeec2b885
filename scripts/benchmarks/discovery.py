"""Measures how long it takes to find agents in a large fleet: one page of ``Client.discover``, by one caller.

The agents are only registrations: of ten zones, a hundred capabilities and two tags, with different health.
"""

from __future__ import annotations

import asyncio
import random
import time
from pathlib import Path
from typing import Any

from coord import Client
from coord.config import Settings
from coord.connection import connect
from coord.models.agents import AgentType
from coord.models.facts import AgentHeartbeat, AgentRegistered

from .fleet import append_all
from .hops import agent_name
from .stage import Stage

#: Searches that are not counted.
WARM_UP = 20


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Measure milliseconds at two quantiles, and the CPU time of the caller and of the server for each search.

    Options: agents, searches, sizes (name -> agents in a page).
    """
    figures: dict[str, Any] = {"detail": {}}
    with Stage(folder) as stage:
        stage.worker("registry")
        asyncio.run(_register(stage, options["agents"]))
        for name, limit in options["sizes"].items():
            meter = stage.meter()
            meter.begin()
            used = time.process_time()
            by_kind = asyncio.run(_search(stage.server.url, options["searches"], limit))
            count = (options["searches"] + WARM_UP) * len(by_kind)
            figures[f"{name}_client_ms"] = (time.process_time() - used) / count * 1000
            figures[f"{name}_redis_ms"] = meter.end(count)["redis_us"] / 1000
            every = sorted(ms for taken in by_kind.values() for ms in taken)
            for quantile, share in (("p50_ms", 0.5), ("p99_ms", 0.99)):
                figures[f"{name}_{quantile}"] = _quantile(every, share)
            figures["detail"][name] = {
                kind: {"p50_ms": _quantile(taken, 0.5), "p99_ms": _quantile(taken, 0.99)}
                for kind, taken in ((kind, sorted(taken)) for kind, taken in by_kind.items())
            }
    return figures


def _quantile(ordered: list[float], share: float) -> float:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


async def _register(stage: Stage, count: int) -> None:
    registered, heartbeats = [], []
    for number in range(count):
        name = agent_name(number)
        registered.append(
            AgentRegistered(
                agent_id=name,
                agent_type=AgentType.WORKER if number % 4 else AgentType.MONITOR,
                capabilities=("work", f"skill-{number % 100}"),
                services=("http",) if number % 2 else (),
                tags=("fast",) if number % 3 else ("slow",),
                labels={"zone": f"z{number % 10}"},
                version="1.0.0",
            )
        )
        heartbeats.append(AgentHeartbeat(name, load_metrics={"cpu": (number % 7) / 7, "memory": 0.5}))
    redis = connect(stage.server.url, Settings())
    try:
        await append_all(redis, stage, "in:registry", registered)
        stage.wait(lambda: stage.size("SCARD", "agents:active"), count, "registering")
        await append_all(redis, stage, "in:beats", heartbeats)
        stage.wait(lambda: -stage.size("XLEN", "in:beats"), 0, "sending heartbeats")
    finally:
        await redis.aclose()


async def _search(url: str, searches: int, limit: int) -> dict[str, list[float]]:
    """Search, each kind in turn; return the milliseconds of each search."""
    rng = random.Random(7)
    async with Client(url) as client:
        deep = (await client.discover(limit=1_000)).next
        kinds: dict[str, Any] = {
            "one of a hundred capabilities": lambda: {"capabilities": [f"skill-{rng.randrange(100)}"]},
            "a type that most have": lambda: {"agent_type": "worker"},
            "status, service, tag, label, health": lambda: {
                "status": "active",
                "services": ["http"],
                "tags": ["fast"],
                "labels": {"zone": f"z{rng.randrange(10)}"},
                "min_health": 0.5,
            },
            "nobody": lambda: {"capabilities": [f"skill-{rng.randrange(1, 100, 2)}"], "labels": {"zone": "z0"}},
            "placeable": lambda: {"placeable": True},
            "a later page": lambda: {"agent_type": "worker", "cursor": deep},
        }
        taken: dict[str, list[float]] = {kind: [] for kind in kinds}
        for number in range(searches + WARM_UP):
            for kind, wanted in kinds.items():
                begin = time.perf_counter()
                await client.discover(limit=limit, **wanted())
                if number >= WARM_UP:
                    taken[kind].append((time.perf_counter() - begin) * 1000)
        return taken
