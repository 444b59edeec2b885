"""CPU time of processes and commands of the server between two points in time, per task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import psutil
import redis

#: Maximum number of commands that are listed, by time.
MAX_COMMANDS = 25
#: A script that blocks the server for longer is recorded, in microseconds.
SLOW_US = 1_000
#: The same while scripts are profiled: it covers nearly every script, but no command inside scripts.
PROFILED_US = 30


class Meter:
    """Reads CPU times and command counts; ``begin``, then ``end``."""

    def __init__(self, server: redis.Redis, pids: Mapping[str, int]) -> None:
        self._server = server
        self._processes = {name: psutil.Process(pid) for name, pid in pids.items()}
        self._before: dict[str, float] = {}
        self._scripts = False

    def begin(self, *, scripts: bool = False) -> None:
        """Start; with ``scripts``, also measure each script, which costs some time itself."""
        self._scripts = scripts
        slow_us = PROFILED_US if scripts else SLOW_US
        self._server.execute_command("CONFIG", "SET", "slowlog-log-slower-than", slow_us, "slowlog-max-len", 100_000)
        self._server.execute_command("CONFIG", "RESETSTAT")
        self._server.execute_command("SLOWLOG", "RESET")
        self._before = self._cpu()

    def end(self, tasks: int) -> dict[str, Any]:
        """Return figures per task: CPU time ``{name}_us`` of each process, ``commands``, and the commands by name.

        As in the statistics of the server, ``commands`` counts scripts and the commands inside them.
        """
        after = self._cpu()
        stats: Any = self._server.info("commandstats")
        table = [
            {
                "command": name.removeprefix("cmdstat_"),
                "us_per_task": round(float(stat["usec"]) / tasks, 3),
                "calls_per_task": round(float(stat["calls"]) / tasks, 4),
            }
            for name, stat in sorted(stats.items(), key=lambda item: -float(item[1]["usec"]))
        ]
        figures: dict[str, Any] = {
            f"{name}_us": (after[name] - before) / tasks * 1e6 for name, before in self._before.items()
        }
        figures["commands"] = sum(float(stat["calls"]) for stat in stats.values()) / tasks
        slow: Any = self._server.slowlog_get(-1)
        figures["detail"] = {
            "commands": table[:MAX_COMMANDS],
            "slow_calls": len(slow),
            "slowest_ms": max((int(entry["duration"]) for entry in slow), default=0) / 1000,
            "scripts": _by_script(slow, tasks) if self._scripts else [],
        }
        return figures

    def _cpu(self) -> dict[str, float]:
        times = {name: process.cpu_times() for name, process in self._processes.items()}
        return {name: float(used.user + used.system) for name, used in times.items()}


def _by_script(slow: Sequence[Mapping[str, Any]], tasks: int) -> list[dict[str, Any]]:
    """Return the time of each script of coord, from the log of slow commands."""
    # Earlier commits have the scripts in coord.
    lua: Any = import_module("workers.lua" if find_spec("workers.lua") else "coord.lua")
    names = {lua.load(name).sha.encode(): name for name in lua.NAMES}
    taken: dict[str, list[int]] = {}
    for entry in slow:
        words = entry["command"].split(b" ", 2)
        if words[0].upper() == b"EVALSHA" and words[1] in names:
            taken.setdefault(names[words[1]], []).append(int(entry["duration"]))
    return [
        {"script": name, "us_per_task": sum(us) / tasks, "calls": len(us), "worst_ms": max(us) / 1000}
        for name, us in sorted(taken.items(), key=lambda item: -sum(item[1]))
    ]
