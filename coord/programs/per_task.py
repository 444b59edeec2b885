"""One process per task: the payload is its standard input, the result its standard output."""

from __future__ import annotations

import asyncio
import contextlib
import errno
from typing import Any

from coord.agent.task import NonRetryable, Retryable, Task
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.outcome import Output, check, result
from coord.programs.process import ProgramProcess, prepare
from coord.programs.reaper import Reaper
from coord.programs.stdio import Input, LimitedOutput, Progress, stdin_bytes

log = get_logger()


class ProcessPerTask:
    """Starts the command for each task; tasks run concurrently."""

    def __init__(
        self, command: Command, agent_id: str, limits: Limits, output: Output, input_format: Input = Input.JSON
    ) -> None:
        self._command = command
        self._agent_id = agent_id
        self._limits = limits
        self._output = output
        self._input_format = input_format
        self._reaper: Reaper | None = None

    async def start(self) -> None:
        """Prepare this process; call it before the first task."""
        prepare()
        self._reaper = Reaper(self._limits.grace_s)

    async def stop(self) -> None:
        """Release resources; call it after the last task."""
        if self._reaper is not None:
            await asyncio.to_thread(self._reaper.close)

    async def handle(self, task: Task) -> Any:
        """Run the command for one task and return its result; on cancel, end the program before returning."""
        command, limits = self._command, self._limits
        assert self._reaper is not None  # noqa: S101 -- for the type checker: the agent starts it first
        words = _words(command, task)
        stdin = stdin_bytes(task, self._input_format)
        stdout = LimitedOutput(limits.output_bytes)
        progress = Progress(task)
        try:
            program = await ProgramProcess.start(
                command.path, words, command.environ(self._agent_id, task), self._reaper,
                on_output=stdout.feed, on_progress=progress.lines.feed,
            )  # fmt: skip
        except OSError as error:
            kind = NonRetryable if error.errno == errno.E2BIG else Retryable
            raise kind("not_started", f"{command.path} cannot be started: {error.strerror}") from None
        stdout.on_overflow = lambda: program.end_soon(limits.grace_s)
        code: int | None = None
        try:
            program.write(stdin)
            program.close_stdin()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(limits.timeout_s):
                    code = await program.wait()
        finally:
            await program.end(limits.grace_s)
            progress.close()
        stderr = program.stderr.text()
        if code is None:
            message = f"the program had not ended after {limits.timeout_s:g} s: {stderr}".rstrip(": ")
            raise Retryable("timed_out", message)
        if stdout.has_overflowed:
            raise NonRetryable(
                "result_too_large", f"the program wrote more than {limits.output_bytes} bytes to standard output"
            )
        check(code, stderr)
        log.debug("program.ended", task_id=task.task_id, pid=program.pid, stderr=stderr)
        return result(bytes(stdout.kept), self._output)


def _words(command: Command, task: Task) -> list[str]:
    return command.words(task.payload if command.arguments.fields else None)
