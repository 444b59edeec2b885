"""One life of a program that is kept: what is said to it, and what it answers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from coord.agent.task import NonRetryable, Release, Retryable, Task
from coord.aio import CANCEL_S
from coord.codec import BAD_JSON
from coord.codec import encode as _encode
from coord.logs import get_logger
from coord.programs.command import Command, Limits
from coord.programs.guard import Guard
from coord.programs.lines import Lines
from coord.programs.outcome import how
from coord.programs.process import ProgramProcess, finish
from coord.programs.progress import Progress

log = get_logger()

#: Seconds of a cancelled handler that are left for its report, after the program's answer and its end.
LEAVING_S = 0.2
#: Seconds between two looks at whether the program has read its first line.
LOOK_S = 0.05
#: What an answer's line may have besides its result.
SLACK = 4_096
#: Of a line that is passed over, in the log.
_SHOWN = 200


class _Ready(msgspec.Struct):
    ready: bool
    task_id: UnsetType = UNSET


class _Head(msgspec.Struct):
    task_id: str


class _Cancel(msgspec.Struct):
    cancel: str  #: the task's id
    attempt: int


class _Error(msgspec.Struct):
    message: str = ""
    code: str = "program_failed"
    retryable: bool = True


class _Said(msgspec.Struct):
    task_id: str
    progress: Raw | UnsetType = UNSET
    result: Raw | UnsetType = UNSET
    error: _Error | UnsetType = UNSET
    release: str | UnsetType = UNSET


_ready = msgspec.json.Decoder(_Ready).decode
_head = msgspec.json.Decoder(_Head).decode
_said = msgspec.json.Decoder(_Said).decode


def _nothing() -> None:
    """Do nothing."""


class KeptProcess:
    """From the start of a program to its end; it has one task at a time."""

    def __init__(self, limits: Limits, on_ready: Callable[[], None] = _nothing) -> None:
        self.is_ended_by_us = False
        self.has_answered = False  #: any task
        self.on_ready = on_ready
        self.is_ready = False  #: it has printed that it is
        self.has_loaded = False  #: it is ready, or has read a task
        self.on_loaded: Callable[[], None] = _nothing  #: called when it has loaded
        self._changed = asyncio.Event()  # it is ready, or has ended
        self._program: ProgramProcess
        self._ended: asyncio.Task[int]
        self._lines = Lines(limits.output_bytes + SLACK, self._line, self._too_long)
        self._limits = limits
        self._passed_over = 0
        self._task: Task | None = None
        self._progress: Progress | None = None
        self._answer: asyncio.Future[Any] | None = None

    @classmethod
    async def start(
        cls, command: Command, environ: dict[str, str], guard: Guard, limits: Limits, on_ready: Callable[[], None]
    ) -> KeptProcess:
        """Start the program; ``on_ready`` is called when it prints that it is ready. Raises ``OSError``."""
        life = cls(limits, on_ready)
        life._program = await ProgramProcess.start(
            command.path, command.words({}), environ, guard, output=life._lines.feed
        )  # fmt: skip
        life._ended = asyncio.create_task(life._program.ended())
        life._ended.add_done_callback(lambda _: life._changed.set())
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

    async def wait_until_ready(self) -> bool:
        """Wait until it has printed that it is ready; return False if it ends before."""
        await self._changed.wait()
        return self.is_ready

    async def ask(self, task: Task, line: bytes) -> Any:
        """Have it do a task; its result.

        Raises:
            NonRetryable, Retryable, Release: as it answered, or because it ended.
        """
        answer = self._answer = asyncio.get_running_loop().create_future()
        self._task, self._progress = task, Progress(task)
        self._program.write(line)
        if not self.has_loaded:
            self._look_later(len(line))
        closed = self._program.stdin_closed
        try:
            await asyncio.wait([answer, self._ended, closed], return_when=asyncio.FIRST_COMPLETED)
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

    async def let_go(self, grace_s: float) -> None:
        """Stop the open task: ask the program to, and end the program if it does not answer.

        Only a program that has printed that it is ready is asked: another one would take the line for a task. It has
        what is left of the time of a cancelled handler after ``grace_s``.
        """
        await finish(self._let_go(grace_s))

    async def _let_go(self, grace_s: float) -> None:
        answer = self._answer
        if self.is_ready and not self.is_over and self._task is not None and answer is not None:
            self._progress = None
            self._program.write(_encode(_Cancel(self._task.task_id, self._task.attempt)) + b"\n")
            waits = [answer, self._ended, self._program.stdin_closed]
            limit_s = max(0.0, CANCEL_S - LEAVING_S - grace_s)
            await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            if answer.done() and not self.is_over:
                log.info("program.task_stopped", pid=self._program.pid, task_id=self._task.task_id)
                self.has_answered, self._task = True, None
                return
        await self.end(grace_s)

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

    def _look_later(self, length: int) -> None:
        """Look soon, and then repeatedly, whether the program has begun to read a line of this length."""
        if self.has_loaded or self._ended.done():
            return
        if self._program.unread < length:
            self._loaded()
        else:
            asyncio.get_running_loop().call_later(LOOK_S, self._look_later, length)

    def _loaded(self) -> None:
        if not self.has_loaded:
            self.has_loaded = True
            self.on_loaded()

    def _is_ready_line(self, line: bytes) -> bool:
        """Note that the program is ready if its line says so; return True for such a line."""
        try:
            is_ready = b'"ready"' in line and _ready(line).ready
        except BAD_JSON:
            return False
        if is_ready and not self.is_ready:
            self.is_ready = True
            log.info("program.ready", pid=self._program.pid)
            self._loaded()
            self._changed.set()
            self.on_ready()
        return is_ready

    def _line(self, line: bytes) -> None:
        if self._is_ready_line(line):
            return
        task, answer = self._task, self._answer
        try:
            task_id = _head(line).task_id if line.lstrip().startswith(b"{") else None
        except BAD_JSON:
            task_id = None
        if task is None or answer is None or answer.done() or task_id != task.task_id:
            self._pass_over(line)
            return
        try:
            said = _said(line)
        except BAD_JSON as error:
            answer.set_result(NonRetryable("answer_invalid", f"the program's answer does not fit: {error}"))
            return
        if said.progress is not UNSET and self._progress is not None:
            self._progress.tell(said.progress)
        outcome = _outcome(said)
        if outcome is not UNSET:
            answer.set_result(outcome)

    def _pass_over(self, line: bytes) -> None:
        """Once loudly: a library that prints where it should not is worth a word, not one for each line."""
        self._passed_over += 1
        tell = log.warning if self._passed_over == 1 else log.debug
        tell(
            "program.line_passed_over",
            pid=self._program.pid, line=line[:_SHOWN].decode("utf-8", "replace"),
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


def _outcome(said: _Said) -> Any:
    """The result, or the exception that stands for another answer; UNSET where it is progress alone."""
    if said.error is not UNSET:
        kind = Retryable if said.error.retryable else NonRetryable
        return kind(said.error.code, said.error.message)
    if said.release is not UNSET:
        return Release(said.release)
    if said.result is UNSET and said.progress is UNSET:
        return NonRetryable("answer_invalid", "the program's answer has none of result, error, release and progress")
    return said.result
