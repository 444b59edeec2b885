"""One life of a program that is kept: what is said to it, and what it answers."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coord.agent.task import NonRetryable, Release, Retryable, Task
from coord.codec import BAD_JSON
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.guard import Guard
from coord.programs.lines import Lines
from coord.programs.outcome import how
from coord.programs.process import LINGER_S, ProgramProcess, finish
from coord.programs.progress import Progress
from coord.values import why_undecodable

log = get_logger()

#: What an answer's line may have besides its result.
SLACK = 4_096
#: Of a line that is passed over, in the log; and of one that is no answer, in the error.
_SHOWN = 200
#: The beginning of an object, also of one that is written over several lines.
_OBJECT = re.compile(rb"""\s*[{"']""")
#: The names of what ends a task.
_OUTCOMES = (b"result", b"error", b"release")
#: The beginning of an answer that does not name its task.
_ANSWER = re.compile(rb"""\s*\{\s*["'](?:result|error|release)["']\s*:""")


class _Head(msgspec.Struct):
    task_id: str  # decoded alone, so that output of another kind is not taken for an answer


class _Error(msgspec.Struct):
    message: str = ""
    code: str = "program_failed"
    retryable: bool = True
    detail: Raw | UnsetType = UNSET


class _Said(msgspec.Struct):
    task_id: str
    progress: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: _Error | UnsetType = UNSET
    release: str | UnsetType = UNSET


_head = msgspec.json.Decoder(_Head).decode
_said = msgspec.json.Decoder(_Said).decode


class KeptProcess:
    """From the start of a program to its end; it has one task at a time."""

    def __init__(self, limits: Limits) -> None:
        self.is_ended_by_us = False
        self.has_answered = False  #: any task
        self._program: ProgramProcess
        self._ended: asyncio.Task[int]
        self._lines = Lines(limits.output_bytes + SLACK, self._line, self._too_long)
        self._limits = limits
        self._passed_over = 0
        self._task: Task | None = None
        self._progress: Progress | None = None
        self._answer: asyncio.Future[Any] | None = None

    @classmethod
    async def start(cls, command: Command, environ: dict[str, str], guard: Guard, limits: Limits) -> KeptProcess:
        """Start the program; raises ``OSError``."""
        life = cls(limits)
        life._program = await ProgramProcess.start(
            command.path, command.words({}), environ, guard, output=life._lines.feed
        )  # fmt: skip
        life._ended = asyncio.create_task(life._program.ended())
        return life

    @property
    def has_open_task(self) -> bool:
        """Whether it was given a task and has not answered."""
        return self._task is not None

    @property
    def has_exited(self) -> bool:
        """Whether its first process has ended; it may still have something to say."""
        return self._program.has_exited

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self._ended.done()

    async def over(self) -> str:
        """Wait for its end; how that was, for people."""
        try:
            code = await asyncio.shield(self._ended)
        except asyncio.CancelledError:
            if not self._ended.done():
                await self.end(self._limits.grace_s)
            raise
        return self._how(code)

    async def ask(self, task: Task, line: bytes) -> Any:
        """Have it do a task; its result.

        Raises:
            NonRetryable, Retryable, Release: as it answered, or because it ended.
        """
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._task, self._progress = task, Progress(task)
        self._program.write(line)
        closed, output_closed = self._program.stdin_closed, self._program.stdout_closed
        try:
            await asyncio.wait([answer, self._ended, closed, output_closed], return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and output_closed.done():  # it ends, or can give no answer any more
                await asyncio.wait([answer, self._ended], timeout=LINGER_S, return_when=asyncio.FIRST_COMPLETED)
            if not answer.done() and not self._ended.done():
                # It has ended, or will take nothing more; what it has said meanwhile is still to be read.
                await self._program.end(self._limits.grace_s)
                await self._ended
        finally:
            self._progress.close()
        self._task = None
        if not answer.done():
            raise Retryable("program_died", f"the program ended without an answer: {self._how(self._ended.result())}")
        self.has_answered = True
        outcome = answer.result()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def end(self, grace_s: float) -> None:
        """End it: SIGTERM, SIGKILL after the grace. Goes on to that end when cancelled."""
        self.is_ended_by_us = True
        await finish(self._end(grace_s))

    async def leave(self, grace_s: float) -> None:
        """Let it see the end of its input and end by itself within the grace; then end it."""
        self.is_ended_by_us = True
        self._program.close_stdin()
        await asyncio.wait([self._ended], timeout=grace_s)
        await self.end(grace_s)

    async def _end(self, grace_s: float) -> None:
        await self._program.end(grace_s)
        await self._ended
        self._task = None

    def _line(self, line: bytes) -> None:
        task, answer = self._task, self._answer
        if task is None or answer is None or answer.done():
            self._pass_over(line)
            return
        try:
            task_id = _head(line).task_id
        except BAD_JSON as error:
            if _is_meant_as_answer(line, task.task_id):
                why = why_undecodable(line, "answer", error)
                answer.set_result(_invalid(f"the program's answer cannot be read: {why}", line))
            else:
                self._pass_over(line)
            return
        if task_id != task.task_id:
            self._pass_over(line)
            return
        try:
            said = _said(line)
        except BAD_JSON as error:
            answer.set_result(_invalid(f"the program's answer does not fit: {error}", line))
            return
        if said.progress is not UNSET and self._progress is not None:
            self._progress.tell(said.progress)
        outcome = _outcome(said, line)
        if outcome is not UNSET:
            answer.set_result(outcome)

    def _pass_over(self, line: bytes) -> None:
        """Log a line that is no answer, the first one as a warning: a library may print where it should not."""
        self._passed_over += 1
        tell = log.warning if self._passed_over == 1 else log.info
        tell(
            "program.line_passed_over",
            pid=self._program.pid, line=_beginning(line),
            hint="standard output is for answers to the task at hand; write anything else to standard error",
        )  # fmt: skip

    def _too_long(self) -> None:
        if self._answer is None or self._answer.done():
            self._pass_over(b"(a line too long to be kept)")
            return
        limit = self._limits.output_bytes
        self._answer.set_result(
            NonRetryable("result_too_large", f"the program wrote a line of more than {limit} bytes")
        )

    def _how(self, code: int) -> str:
        said = self._program.said.text()
        return f"{how(code)}: {said}" if said else f"{how(code)}, and nothing on standard error"


def _is_meant_as_answer(line: bytes, task_id: str) -> bool:
    """Return True if a line that is no JSON was to be the answer to a task, and not output of another kind."""
    if b"progress" in line and not any(word in line for word in _OUTCOMES):
        return False  # progress never fails a task
    if b"task_id" in line:
        return task_id.encode() in line and _OBJECT.match(line) is not None
    return _ANSWER.match(line) is not None


def _invalid(why: str, line: bytes) -> NonRetryable:
    return NonRetryable("answer_invalid", f"{why}; the line begins with: {_beginning(line)}")


def _beginning(line: bytes) -> str:
    return line[:_SHOWN].decode("utf-8", "replace")


def _outcome(said: _Said, line: bytes) -> Any:
    """The result, or the exception that stands for another answer; UNSET where it is progress alone."""
    if said.error is not UNSET:
        kind = Retryable if said.error.retryable else NonRetryable
        detail = None if said.error.detail is UNSET else said.error.detail
        return kind(said.error.code, said.error.message, detail=detail)
    if said.release is not UNSET:
        return Release(said.release)
    if said.result is UNSET and said.progress is UNSET:
        return _invalid("the program's answer has none of result, error, release and progress", line)
    return said.result
