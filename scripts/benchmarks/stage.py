"""The server of one measurement in its own data folder, the processes that use it, and waiting for their progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from coord.embedded import EmbeddedServer
from coord.keys import Keys

from .child import Child, ChildFailed
from .usage import Meter

#: Seconds between two checks of the progress: costs the server a thousandth of its time.
POLL_S = 0.01
#: Seconds without progress after which a measurement has failed.
STALL_S = 60.0

AOF: Mapping[bool, Sequence[str]] = {
    False: ("--appendonly", "no"),
    True: ("--appendonly", "yes", "--appendfsync", "everysec"),
}


class Stage:
    """A server and the processes that use it; all end with the ``with`` block."""

    def __init__(self, folder: Path, *, aof: bool = False, settings: Mapping[str, str] | None = None) -> None:
        self.folder = folder
        self.keys = Keys("coord")
        self._extra = AOF[aof]
        self._settings = dict(settings or {})
        self._children: list[Child] = []

    def __enter__(self) -> Self:
        """Start the server."""
        self.server = EmbeddedServer.start(self.folder, extra=self._extra)
        self.redis = redis.Redis.from_url(self.server.url, protocol=3)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all: the latest processes first, the server last."""
        for child in reversed(self._children):
            child.stop()
        self.redis.close()
        self.server.stop(force=True)

    def worker(self, kind: str, number: int = 1) -> Child:
        """Start a worker of the measured tree."""
        name = f"{kind}-{number}"
        return self._start(name, ["-m", "workers", kind, "--name", name, "--watch-stdin"])

    def command(self, *words: str) -> Child:
        """Start a command of coord."""
        return self._start(words[0], ["-m", "coord.cli", *words])

    def program(self, module: str, *, wait: bool = True, **options: Any) -> Child:
        """Start a program of this folder, and wait until it is ready for ``go`` unless ``wait`` is False."""
        child = self._start(module, ["-m", f"benchmarks.{module}", json.dumps({"url": self.server.url, **options})])
        if wait:
            child.receive()
        return child

    def meter(self, **children: Child) -> Meter:
        """Return a meter of the server and these processes."""
        return Meter(self.redis, {"redis": self.server.pid, **{name: child.pid for name, child in children.items()}})

    def wait(self, count: Callable[[], int], target: int, activity: str) -> None:
        """Wait until ``count()`` is ``target`` or more; raise if there is no progress, or a process has ended."""
        best, moved_at = -1, time.monotonic()
        while (now := count()) < target:
            if now != best:
                best, moved_at = now, time.monotonic()
            elif time.monotonic() - moved_at > STALL_S:
                raise ChildFailed(f"{activity}: no progress at {now} of {target}")
            for child in self._children:
                child.check()
            time.sleep(POLL_S)

    def counter(self, state: str) -> int:
        """Return the counter of tasks of normal priority in this state."""
        return int(self.redis.execute_command("HGET", self.keys.of("counters"), f"{state}:normal") or 0)

    def size(self, command: str, name: str) -> int:
        """Return the answer of a command such as ``SCARD`` or ``XLEN`` for a key without variable parts."""
        return int(self.redis.execute_command(command, self.keys.of(name)))

    def memory(self) -> int:
        """Return the bytes in use."""
        info: Any = self.redis.info("memory")
        return int(info["used_memory"])

    def _start(self, name: str, arguments: Sequence[str]) -> Child:
        environ = {
            **os.environ,
            "COORD_REDIS_URL": self.server.url,
            "COORD_LOG_LEVEL": "warning",
            **self._settings,
        }
        child = Child(name, arguments, environ, self.folder / f"{name}.log")
        self._children.append(child)
        return child
