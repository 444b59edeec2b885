"""Measures messages: direct ones per second with one router and with several, and broadcasts to fleets of two sizes.

The agents are only registrations, without processes: this measures the part of the coordinator.
"""

from __future__ import annotations

import asyncio
import os
import signal
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from coord import streams
from coord.config import Settings
from coord.connection import connect
from coord.models.facts import MessageBroadcast, MessageSent
from coord.models.tasks import Lane
from workers import lua

from . import payload
from .child import Child
from .fleet import register
from .hops import agent_name
from .stage import Stage

CHUNK = 500


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options: messages, agents, routers (name -> number), or fleets (name -> agents) and broadcasts."""
    figures: dict[str, Any] = {"detail": {}}
    for name, routers in options.get("routers", {}).items():
        _add(figures, name, _direct(folder / name, options["messages"], options["agents"], routers))
    for name, agents in options.get("fleets", {}).items():
        _add(figures, name, _broadcasts(folder / name, agents, options["broadcasts"]))
    return figures


def _add(figures: dict[str, Any], name: str, found: dict[str, Any]) -> None:
    figures["detail"][name] = found.pop("detail")
    figures |= {f"{name}_{figure}": value for figure, value in found.items()}


def _direct(folder: Path, messages: int, agents: int, count: int) -> dict[str, Any]:
    """Deliver messages that all wait, on all lanes, from the moment when the routers continue."""
    with Stage(folder) as stage:
        registry = stage.worker("registry")
        routers = [stage.worker("router", number) for number in range(1, count + 1)]
        asyncio.run(register(stage, agents, ["echo"], capacity=8))
        registry.stop()
        stage.wait(lambda: len(_holders(stage)), min(count, 4), "sharing the lanes")
        _signal(routers, signal.SIGSTOP)
        try:
            asyncio.run(_send(stage, messages, agents))
        finally:
            _signal(routers, signal.SIGCONT)
        meter = stage.meter(**{f"router{number}": router for number, router in enumerate(routers)})
        meter.begin()
        begun = time.monotonic()
        stage.wait(lambda: _delivered(stage), messages, "delivering")
        elapsed = time.monotonic() - begun
        figures = meter.end(messages)
        figures["router_us"] = sum(figures.pop(f"router{number}_us") for number in range(count))
        figures["per_s"] = messages / elapsed
        return figures


def _broadcasts(folder: Path, agents: int, broadcasts: int) -> dict[str, Any]:
    """Send one broadcast after the other to all agents."""
    with Stage(folder) as stage:
        registry, router = stage.worker("registry"), stage.worker("router")
        asyncio.run(register(stage, agents, ["echo"], capacity=8))
        registry.stop()
        meter = stage.meter(router=router)
        meter.begin()
        stage.redis.execute_command("CONFIG", "SET", "slowlog-log-slower-than", 0)  # a few commands for many copies
        begun = time.monotonic()
        for number in range(broadcasts):
            asyncio.run(_append(stage, [("normal", MessageBroadcast(f"b{number}", "bench", payload=_body()))]))
            stage.wait(lambda: _delivered(stage), agents * (number + 1), "delivering")
        elapsed = time.monotonic() - begun
        figures = meter.end(agents * broadcasts)
        figures["per_s"] = agents * broadcasts / elapsed
        figures["blocked_ms"] = figures["detail"]["slowest_ms"]
        figures["call_ms"] = _median_ms(stage, "deliver_broadcast")
        return figures


def _median_ms(stage: Stage, script: str) -> float:
    """Return the median duration of the calls of a script, from the log of slow commands."""
    prefix = f"EVALSHA {lua.load(script).sha}".encode()
    slow: Any = stage.redis.slowlog_get(-1)
    return statistics.median(int(entry["duration"]) for entry in slow if entry["command"].startswith(prefix)) / 1000


def _body() -> Any:
    return msgspec.Raw(payload.encoded())


async def _send(stage: Stage, messages: int, agents: int) -> None:
    lanes, body = list(Lane), _body()
    for begin in range(0, messages, CHUNK):
        facts = [
            (lanes[number % 4].value, MessageSent(f"m{number}", "bench", agent_name(number % agents), payload=body))
            for number in range(begin, min(begin + CHUNK, messages))
        ]
        await _append(stage, facts)


async def _append(stage: Stage, facts: Sequence[tuple[str, Any]]) -> None:
    redis = connect(stage.server.url, Settings())
    try:
        await streams.append(redis, stage.keys, [streams.Append(f"in:messages:{lane}", fact) for lane, fact in facts])
    finally:
        await redis.aclose()


def _delivered(stage: Stage) -> int:
    return int(stage.redis.execute_command("HGET", stage.keys.of("counters"), "messages_delivered") or 0)


def _holders(stage: Stage) -> set[bytes]:
    """Return the routers that hold a lane."""
    leases = stage.redis.execute_command("HMGET", stage.keys.of("lanes"), *(lane.value for lane in Lane))
    return {lease.partition(b"/")[2] for lease in leases if lease} - {b""}


def _signal(processes: Sequence[Child], number: int) -> None:
    for process in processes:
        os.kill(process.pid, number)
