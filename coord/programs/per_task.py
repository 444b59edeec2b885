"""A program that is started for each task: payload in, result out, and it has ended."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from collections.abc import Callable
from typing import Any

from coord.agent.task import NonRetryable, Retryable, Task
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.guard import Guard
from coord.programs.outcome import Output, check, result
from coord.programs.process import ProgramProcess, prepare
from coord.programs.progress import Progress

log = get_logger()


class ProcessPerTask:
    """Starts the command for each task, as many at a time as there are tasks."""

    def __init__(self, command: Command, agent_id: str, limits: Limits, output: Output) -> None:
        self._command = command
        self._agent_id = agent_id
        self._limits = limits
        self._output = output
        self._guard: Guard | None = None

    async def start(self) -> None:
        """Make ready; before the first task."""
        prepare()
        self._guard = Guard(self._limits.grace_s)

    async def stop(self) -> None:
        """After the last task."""
        if self._guard is not None:
            await asyncio.to_thread(self._guard.close)

    async def handle(self, task: Task) -> Any:
        """Run the command for one task; cancelled, it ends the program before it returns."""
        command, limits = self._command, self._limits
        assert self._guard is not None  # noqa: S101 -- for the type checker: the agent starts it first
        words = _words(command, task)
        collected = _Collected(limits.output_bytes)
        progress = Progress(task)
        try:
            program = await ProgramProcess.start(
                command.path, words, command.environ(self._agent_id, task), self._guard,
                output=collected.take, progress=progress.lines.feed,
            )  # fmt: skip
        except OSError as error:
            kind = NonRetryable if error.errno == errno.E2BIG else Retryable
            raise kind("not_started", f"{command.path} cannot be started: {error.strerror}") from None
        collected.over = lambda: program.end_soon(limits.grace_s)
        code: int | None = None
        try:
            program.write(task.payload_json + b"\n")
            program.close_stdin()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.timeout_s):
                    code = await program.ended()
        finally:
            await program.end(limits.grace_s)
            progress.close()
        said = program.said.text()
        if code is None:
            raise Retryable("timed_out", f"the program had not ended after {limits.timeout_s:g} s: {said}".rstrip(": "))
        if collected.is_over:
            raise NonRetryable(
                "result_too_large", f"the program wrote more than {limits.output_bytes} bytes to standard output"
            )
        check(code, said)
        log.debug("program.ended", task_id=task.task_id, pid=program.pid, stderr=said)
        return result(bytes(collected.kept), self._output)


class _Collected:
    """Standard output, up to a limit; ``over`` is called when there is more."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.is_over = False
        self.over: Callable[[], None] = lambda: None
        self._limit = limit

    def take(self, data: bytes) -> None:
        if self.is_over:
            return
        self.kept += data
        if len(self.kept) > self._limit:
            self.kept.clear()
            self.is_over = True
            self.over()


def _words(command: Command, task: Task) -> list[str]:
    return command.words(task.payload if command.arguments.fields else None)
