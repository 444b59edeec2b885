"""Measures the intake of tasks: rate of appends and admissions, and the memory of a waiting task."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import records
from .drain import roomy, type_names
from .stage import Stage


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options: tasks.

    ``all_bytes`` is the increase of the memory in use; ``bytes`` is the same without log and replies, which are
    capped and do not grow with the backlog.
    """
    tasks = options["tasks"]
    with Stage(folder, settings=roomy(tasks)) as stage:
        distributor = stage.worker("distributor")
        client = stage.program("submitter", tasks=tasks, types=type_names(1))
        stage.wait(lambda: stage.size("EXISTS", "in:reports"), 1, "starting")
        before = stage.memory()
        meter = stage.meter(distributor=distributor, client=client)
        meter.begin()
        client.send("go")
        appended_s = client.receive()
        stage.wait(lambda: stage.counter("queued"), tasks, "admitting")
        figures = meter.end(tasks)
        client.stop()
        figures["appended_per_s"] = tasks / appended_s
        figures["admitted_per_s"] = tasks / _admitting_s(stage)
        figures["all_bytes"] = (stage.memory() - before) / tasks
        capped = sum(_bytes(stage, key) for key in stage.redis.scan_iter(stage.keys.replies("*"), count=5_000))
        figures["bytes"] = figures["all_bytes"] - (capped + _bytes(stage, stage.keys.of("log:tasks"))) / tasks
        return figures


def _bytes(stage: Stage, key: bytes | str) -> int:
    return int(stage.redis.memory_usage(key, samples=0) or 0)


def _admitting_s(stage: Stage) -> float:
    """Return the seconds from the first submission to the last admission, from the log."""
    log = stage.keys.of("log:tasks")
    last = stage.redis.execute_command("XREVRANGE", log, "+", "-", "COUNT", 1)[0]
    first = stage.redis.execute_command("XRANGE", log, "-", "+", "COUNT", 1)[0][1][b"task_id"].split()[0]
    (begin,) = records.times(stage.redis, stage.keys, [first], "submitted_at")
    return max(1.0, float(last[0].partition(b"-")[0]) - begin) / 1000
