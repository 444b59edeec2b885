"""Measures taking tasks in: how fast a client appends, how fast they are admitted, what each takes while it waits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from . import records
from .drain import roomy, type_names
from .stage import Stage


def measure(folder: Path, options: dict[str, Any]) -> dict[str, Any]:
    """Options: tasks.

    ``all_bytes`` is what the server has more in use than before; ``bytes`` the same without the log and the replies,
    which are capped and do not grow with the backlog.
    """
    tasks = options["tasks"]
    with Stage(folder, settings=roomy(tasks)) as stage:
        distributor = stage.worker("distributor")
        client = stage.program("submitter", tasks=tasks, types=type_names(1))
        stage.wait(lambda: stage.size("EXISTS", "in:reports"), 1, "starting")
        before = stage.memory()
        meter = stage.meter(distributor=distributor, client=client)
        meter.begin()
        client.tell("go")
        appended_s = client.hear()
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
    """From the first submission to the last admission, as the log tells them."""
    log = stage.keys.of("log:tasks")
    last = stage.redis.execute_command("XREVRANGE", log, "+", "-", "COUNT", 1)[0]
    first = stage.redis.execute_command("XRANGE", log, "-", "+", "COUNT", 1)[0][1][b"task_id"].split()[0]
    (begin,) = records.times(stage.redis, stage.keys, [first], "submitted_at")
    return max(1.0, float(last[0].partition(b"-")[0]) - begin) / 1000
