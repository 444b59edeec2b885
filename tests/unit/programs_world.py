"""What the tests of programs share: tasks without a server, and whether processes live."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from coord.agent.task import Attempt, Task
from coord.codec import decode_json, encode
from coord.config import MIB
from coord.programs.command import Command, Limits
from coord.programs.outcome import Output
from coord.programs.per_task import ProcessPerTask
from coord.programs.pool import ProcessPool
from coord.programs.stdio import Input

#: Long enough for whatever shall happen on a busy machine.
LONG_S = 60.0


class Asked:
    """A task, and its reported progress."""

    def __init__(self, payload: Any = None, *, raw: bytes | None = None, task_id: str = "t1") -> None:
        attempt = Attempt(task_id, "0" * 16, 2, lane=0, entry=b"1-1", raw=b"")
        attempt.raw = msgspec.Raw(encode(payload if payload is not None else {}) if raw is None else raw)
        attempt.task_type = "demo"
        self.progress: list[Any] = []
        self.task = Task(attempt, lambda _attempt, shown: self.progress.append(decode_json(shown)))


def limits(
    *,
    timeout_s: float | None = LONG_S,
    grace_s: float = LONG_S,
    output_bytes: int = MIB,
    load_timeout_s: float = LONG_S,
) -> Limits:
    """Limits that nothing reaches, unless the test says so."""
    return Limits(timeout_s=timeout_s, grace_s=grace_s, output_bytes=output_bytes, load_timeout_s=load_timeout_s)


@asynccontextmanager
async def each(
    *words: str,
    output: Output = Output.AUTO,
    input_format: Input = Input.JSON,
    environ: dict[str, str] | None = None,
    **limited: Any,
) -> AsyncIterator[ProcessPerTask]:
    """A program that is started for each task."""
    programs = ProcessPerTask(Command(words, environ or dict(os.environ)), "a", limits(**limited), output, input_format)
    await programs.start()
    try:
        yield programs
    finally:
        await programs.stop()


@asynccontextmanager
async def kept(
    *words: str,
    count: int = 1,
    wait_ready: bool = False,
    hold_slots: Callable[[int], None] | None = None,
    **limited: Any,
) -> AsyncIterator[ProcessPool]:
    """Programs that are kept."""
    command = Command(words, dict(os.environ))
    programs = ProcessPool(command, "a", limits(**limited), count, wait_ready=wait_ready, hold_slots=hold_slots)
    try:
        await programs.start()
        yield programs
    finally:
        await programs.stop()


def script(path: Path, text: str) -> str:
    """A file that can be run."""
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def lives(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be buried."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def written(path: Path) -> int:
    """The process id that a file holds; 0 until it does."""
    text = path.read_text() if path.exists() else ""
    return int(text) if text.endswith("\n") else 0
