"""A process that is kept for many tasks: one task at a time, as JSON lines on standard input and output."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coord.agent.task import NonRetryable, Release, Retryable, Task
from coord.background import CANCEL_S
from coord.codec import BAD_JSON, encode
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.outcome import STOPPED, ProgramStopped, describe_end
from coord.programs.process import LINGER_S, ProgramProcess, finish
from coord.programs.reaper import Reaper
from coord.programs.stdio import Lines, Progress
from coord.values import why_undecodable

log = get_logger()

#: Seconds of a cancelled handler that are left for its report, after the answer of the program and its end.
REPORT_S = 0.2
#: Seconds between two checks whether the program has read its first line.
READ_CHECK_S = 0.05
#: Bytes that the line of an answer may have in addition to its result.
SLACK = 4_096
#: Bytes of a line that the log shows if it is ignored, and the error if it is an invalid answer.
_SHOWN_BYTES = 200
#: The beginning of an object, also of one that is written over several lines.
_OBJECT = re.compile(rb"""\s*[{"']""")
#: Names of the fields that end a task.
_OUTCOMES = (b"result", b"error", b"release")
#: The beginning of an answer that does not name its task.
_ANSWER = re.compile(rb"""\s*\{\s*["'](?:result|error|release)["']\s*:""")


class _Ready(msgspec.Struct):
    ready: bool
    task_id: UnsetType = UNSET  # so that an answer is not taken for this line


class _CancelLine(msgspec.Struct):
    cancel: str  #: id of the task
    attempt: int


class _Head(msgspec.Struct):
    task_id: str  # decoded alone, so that output of another kind is not taken for an answer


class _Error(msgspec.Struct):
    message: str = ""
    code: str = "program_failed"
    retryable: bool = True
    detail: Raw | UnsetType = UNSET


class _Answer(msgspec.Struct):
    task_id: str
    progress: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: _Error | UnsetType = UNSET
    release: str | UnsetType = UNSET


_decode_ready = msgspec.json.Decoder(_Ready).decode
_decode_head = msgspec.json.Decoder(_Head).decode
_decode_answer = msgspec.json.Decoder(_Answer).decode


class KeptProcess:
    """A program from its start to its end.

    Args:
        limits: of the program.
        on_ready: called when it prints that it is ready.
    """

    def __init__(self, limits: Limits, on_ready: Callable[[], None]) -> None:
        self.is_ended_by_us = False
        self.has_answered = False  #: any task
        self.is_ready = False  #: it has printed that it is ready
        self.has_loaded = False  #: it is ready, or has read a task
        self.on_loaded: Callable[[], None] | None = None  #: called when it has loaded
        self._on_ready = on_ready
        self._ready_or_ended = asyncio.Event()
        self._program: ProgramProcess
        self._ended: asyncio.Task[int]
        self._lines = Lines(limits.output_bytes + SLACK, self._on_line, self._on_long_line)
        self._limits = limits
        self._ignored_lines = 0
        self._task: Task | None = None
        self._progress: Progress | None = None
        self._answer: asyncio.Future[Any] | None = None

    @classmethod
    async def start(
        cls, command: Command, environ: dict[str, str], reaper: Reaper, limits: Limits, on_ready: Callable[[], None]
    ) -> KeptProcess:
        """Start the program; raises ``OSError``."""
        process = cls(limits, on_ready)
        process._program = await ProgramProcess.start(
            command.path, command.words({}), environ, reaper, on_output=process._lines.feed
        )  # fmt: skip
        process._ended = asyncio.create_task(process._program.wait())
        process._ended.add_done_callback(lambda _: process._ready_or_ended.set())
        return process

    @property
    def has_open_task(self) -> bool:
        """True if it has a task and has not answered."""
        return self._task is not None

    @property
    def has_exited(self) -> bool:
        """True if its first process has ended; there may be output to read."""
        return self._program.has_exited

    @property
    def has_ended(self) -> bool:
        """True if it has ended and its output has been read."""
        return self._ended.done()

    async def wait(self) -> str:
        """Wait until it has ended; return a description of how."""
        try:
            code = await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            if not self._ended.done():
                await self.end(self._limits.grace_s)
            raise
        return self._describe_end(code)

    async def wait_until_ready(self) -> bool:
        """Wait until it has printed that it is ready; return False if it ends before."""
        await self._ready_or_ended.wait()
        return self.is_ready

    async def run(self, task: Task, line: bytes) -> Any:
        """Give it a task and return the result.

        Args:
            task: the task.
            line: the task as a line for the program.

        Raises:
            NonRetryable, Retryable, Release: its answer, or because it ended.
        """
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._task, self._progress = task, Progress(task)
        self._program.write(line)
        if not self.has_loaded:
            self._check_read(len(line))
        is_stopped_here = False
        closed, output_closed = self._program.stdin_closed, self._program.stdout_closed
        try:
            await asyncio.wait([answer, self._ended, closed, output_closed], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and output_closed.done():  # it ends, or can give no answer any more
                await asyncio.wait([answer, self._ended], timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not self._ended.done():
                # It has closed its standard input; output that it has written so far is still to be read.
                is_stopped_here = True
                await self._program.end(self._limits.grace_s)
                await self._ended
        finally:
            self._progress.close()
        self._task = None
        if not answer.done():
            code = self._ended.result()
            kind = ProgramStopped if code in STOPPED and not (is_stopped_here or self.is_ended_by_us) else Retryable
            raise kind("program_died", f"the program ended without an answer: {self._describe_end(code)}")
        self.has_answered = True
        outcome = answer.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def stop_task(self, grace_s: float) -> None:
        """Stop the open task: ask the program to stop it, and end the program if it does not answer.

        Only a program that has printed that it is ready is asked, because another one could take the line for a task.
        For its answer it has the time of a cancelled handler less ``grace_s`` seconds. A cancel does not stop this.
        """
        await finish(self._stop_task(grace_s))

    async def _stop_task(self, grace_s: float) -> None:
        task, answer = self._task, self._answer
        if self.is_ready and not self.has_ended and task is not None and answer is not None:
            self._progress = None
            self._program.write(encode(_CancelLine(task.task_id, task.attempt)) + b"\n")
            waits = [answer, self._ended, self._program.stdin_closed, self._program.stdout_closed]
            limit_s = max(0.0, CANCEL_S - REPORT_S - grace_s)
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and not self.has_ended:
                log.info("program.task_stopped", pid=self._program.pid, task_id=task.task_id)
                self.has_answered, self._task = True, None
                return
        await self.end(grace_s)

    async def end(self, grace_s: float) -> None:
        """End it: SIGTERM, then SIGKILL after ``grace_s`` seconds. A cancel does not stop this."""
        self.is_ended_by_us = True
        await finish(self._end(grace_s))

    async def close(self, grace_s: float) -> None:
        """Close its standard input, wait up to ``grace_s`` seconds until it ends by itself, then end it."""
        self.is_ended_by_us = True
        self._program.close_stdin()
        await asyncio.wait([self._ended], timeout=grace_s)
        await self.end(grace_s)

    async def _end(self, grace_s: float) -> None:
        await self._program.end(grace_s)
        await self._ended
        self._task = None

    def _check_read(self, length: int) -> None:
        """Check now, and then repeatedly, whether the program has begun to read a line of this length."""
        if self.has_loaded or self._ended.done():
            return
        if self._program.unread < length:
            self._set_loaded()
        else:
            asyncio.get_running_loop().call_later(READ_CHECK_S, self._check_read, length)

    def _set_loaded(self) -> None:
        if not self.has_loaded:
            self.has_loaded = True
            if self.on_loaded is not None:
                self.on_loaded()

    def _handle_ready(self, line: bytes) -> bool:
        """Handle the line with which the program reports that it is ready; return False for any other line."""
        try:
            is_ready = b'"ready"' in line and _decode_ready(line).ready
        except BAD_JSON:
            return False
        if is_ready and not self.is_ready:
            self.is_ready = True
            log.info("program.ready", pid=self._program.pid)
            self._set_loaded()
            self._ready_or_ended.set()
            self._on_ready()
        return is_ready

    def _on_line(self, line: bytes) -> None:
        if self._handle_ready(line):
            return
        task, answer = self._task, self._answer
        if task is None or answer is None or answer.done():
            self._ignore(line)
            return
        try:
            task_id = _decode_head(line).task_id
        except BAD_JSON as error:
            if _is_meant_as_answer(line, task.task_id):
                why = why_undecodable(line, "answer", error)
                answer.set_result(_invalid(f"the program's answer cannot be decoded: {why}", line))
            else:
                self._ignore(line)
            return
        if task_id != task.task_id:
            self._ignore(line)
            return
        try:
            decoded = _decode_answer(line)
        except BAD_JSON as error:
            answer.set_result(_invalid(f"the program's answer is invalid: {error}", line))
            return
        if decoded.progress is not UNSET and self._progress is not None:
            self._progress.update(decoded.progress)
        outcome = _outcome(decoded, line)
        if outcome is not UNSET:
            answer.set_result(outcome)

    def _ignore(self, line: bytes) -> None:
        """Log an ignored line: the first as a warning, since a library may print many of them."""
        self._ignored_lines += 1
        write = log.warning if self._ignored_lines == 1 else log.info
        write(
            "program.line_passed_over",
            pid=self._program.pid, line=_beginning(line),
            hint="standard output is for answers to the current task; write anything else to standard error",
        )  # fmt: skip

    def _on_long_line(self) -> None:
        if self._answer is None or self._answer.done():
            self._ignore(b"(a line over the limit)")
            return
        limit = self._limits.output_bytes
        self._answer.set_result(
            NonRetryable("result_too_large", f"the program wrote a line of more than {limit} bytes")
        )

    def _describe_end(self, code: int) -> str:
        return describe_end(code, self._program.stderr.text())


def _is_meant_as_answer(line: bytes, task_id: str) -> bool:
    """Return True if a line that is not JSON was meant as the answer to a task, and not as other output."""
    if b"progress" in line and not any(word in line for word in _OUTCOMES):
        return False  # progress never fails a task
    if b"task_id" in line:
        return task_id.encode() in line and _OBJECT.match(line) is not None
    return _ANSWER.match(line) is not None


def _invalid(why: str, line: bytes) -> NonRetryable:
    return NonRetryable("answer_invalid", f"{why}; the line begins with: {_beginning(line)}")


def _beginning(line: bytes) -> str:
    return line[:_SHOWN_BYTES].decode("utf-8", "replace")


def _outcome(answer: _Answer, line: bytes) -> Any:
    """Return the result, or the exception for another answer; UNSET for progress alone."""
    if answer.error is not UNSET:
        kind = Retryable if answer.error.retryable else NonRetryable
        detail = None if answer.error.detail is UNSET else answer.error.detail
        return kind(answer.error.code, answer.error.message, detail=detail)
    if answer.release is not UNSET:
        return Release(answer.release)
    if answer.result is UNSET and answer.progress is UNSET:
        return _invalid("the program's answer has none of result, error, release and progress", line)
    return answer.result
