"""Keeps programs running: each is started again when it ends, later and later while it keeps ending at once.

A program is a process of its own, and leads a process group of its own. Its standard input is a pipe that nobody
writes to: when this process is gone, however it went, the pipe closes, and a program that watches it
(``--watch-stdin``) ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from coord.up.child_output import ChildOutput
from coord.up.log import last_words
from coord.up.shutdown import Stop

#: Between two requests to end at once.
HURRY_S = 0.5


#: Ends in a row with one error, without ever having been ready, after which a program is not started again.
SAME_ENDS = 5
#: Signals by which others end a program: no error of its own.
OTHERS = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """How long the supervisor waits, in seconds."""

    #: Before the first restart: at once, for a person.
    first_s: float = 0.1
    #: The longest wait; it doubles up to here, so a program that cannot run does not take the machine with it.
    longest_s: float = 5.0
    #: A program that lived this long was well: its next end counts as the first one.
    well_s: float = 10.0
    #: What a program has to finish what it holds after SIGTERM; then it is killed.
    drain_s: float = 10.0


class ManagedProgram(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept running."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    #: Where its output goes, appended; None: where this process's own goes.
    log: Path | None = None
    #: Exit codes that no restart mends, such as 2 for a wrong option.
    final_codes: frozenset[int] = frozenset()
    #: Where it runs; None: where this process does.
    folder: Path | None = None
    #: Its own time to finish what it holds; None: the supervisor's.
    drain_s: float | None = None
    #: Time to end what it has started, after a SIGTERM more, when it is to end at once; 0: it is killed then.
    hurry_s: float = 0.0


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a program."""

    name: str
    what: str  #: started, ended (by itself), failed (could not be started), killed (it did not drain), gave_up
    pid: int | None = None
    code: int | None = None  #: exit code; negative: the signal that ended it
    again_in_s: float | None = None  #: when it is started again; None: it is not
    reason: str = ""
    ends: int = 0  #: how often in a row it has ended without having been well before
    last_line: str = ""  #: what it wrote last, where its output is heard

    @property
    def how(self) -> str:
        """How it ended, for people: ``exit code 3``, ``SIGKILL``."""
        if self.code is None:
            return self.reason
        if self.code >= 0:
            return f"exit code {self.code}"
        with contextlib.suppress(ValueError):
            return signal.Signals(-self.code).name
        return f"signal {-self.code}"


class GaveUp(Exception):
    """A program ended with one of its final codes, or again and again with one error before it was ever ready."""

    def __init__(self, program: ManagedProgram, event: Event) -> None:
        super().__init__(f"{program.name} ended with {event.how}")
        self.program = program
        self.event = event


def backoff(timing: Timing) -> Iterator[float]:
    """The waits before one restart after the other, in seconds: doubling from first to longest."""
    wait_s = timing.first_s
    while True:
        yield wait_s
        wait_s = min(wait_s * 2, timing.longest_s)


class Supervisor:
    """Runs programs until it is asked to stop.

    Args:
        programs: what to run; their names are unique.
        tell: called with each event, in the event loop.
        hear: called with a program's name and each line that it writes, for those without a ``log``; None: their
            output goes where this process's own goes.
        gives_up: called after an end that is the fifth in a row (or a later one) with the same error, of a program
            that was never ready; True: it is not started again, and all others are ended. None: it always is.
        timing: other waits than the usual, for tests.
    """

    def __init__(
        self,
        programs: Sequence[ManagedProgram],
        tell: Callable[[Event], None],
        *,
        hear: Callable[[str, str], None] | None = None,
        gives_up: Callable[[Event], bool] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._programs = tuple(programs)
        self._tell = tell
        self._hear = hear
        self._gives_up = gives_up
        self._ready: set[str] = set()
        self._timing = timing or Timing()
        self._running: dict[str, Process] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The programs that run at the moment, and their process ids."""
        return {name: process.pid for name, process in self._running.items()}

    def ready(self, name: str) -> None:
        """Note that a program has worked once: from now on it is started again whatever it ends with."""
        self._ready.add(name)

    async def run(self, stop: Stop) -> None:
        """Start all, keep them running, and once ``stop`` is asked for, end them: SIGTERM, and SIGKILL when it is late.

        Returns when every process is gone; when it is cancelled, they are killed first.

        Raises:
            GaveUp: a program ended with one of its final codes, or ``gives_up`` said so; the others have been ended.
        """
        if not self._programs:
            await stop.asked.wait()
            return
        kept = [asyncio.create_task(self._keep(program, stop), name=program.name) for program in self._programs]
        try:
            done, rest = await asyncio.wait(kept, return_when=asyncio.FIRST_EXCEPTION)
            if rest:
                stop.ask_once()
                await asyncio.wait(rest)
            for task in done:
                task.result()
        finally:
            for task in kept:
                task.cancel()
            await asyncio.gather(*kept, return_exceptions=True)

    async def _keep(self, program: ManagedProgram, stop: Stop) -> None:
        loop = asyncio.get_running_loop()
        waits, ends = backoff(self._timing), 0
        same = _SameError()
        while not stop.asked.is_set():
            begin = loop.time()
            event = await self._live(program, stop)
            if stop.asked.is_set():
                return
            if loop.time() - begin >= self._timing.well_s:
                waits, ends = backoff(self._timing), 0
                same = _SameError()
            if same.count(event) >= SAME_ENDS and program.name not in self._ready and self._has_enough(event):
                event = msgspec.structs.replace(event, what="gave_up", ends=ends + 1)
                self._tell(event)
                raise GaveUp(program, event)
            is_final = event.code in program.final_codes
            ends += 1
            event = msgspec.structs.replace(event, again_in_s=None if is_final else next(waits), ends=ends)
            self._tell(event)
            if is_final:
                raise GaveUp(program, event)
            await stop.asked_within(event.again_in_s or 0)

    def _has_enough(self, event: Event) -> bool:
        return self._gives_up is not None and self._gives_up(event)

    async def _live(self, program: ManagedProgram, stop: Stop) -> Event:
        """One life of a program: how it ended, or why it could not be started."""
        output = self._output(program)
        try:
            process = await _start(program, output)
        except OSError as error:
            if output is not None:
                await output.close()
            return Event(name=program.name, what="failed", reason=str(error))
        self._running[program.name] = process
        self._tell(Event(name=program.name, what="started", pid=process.pid))
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stop.asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(program, process, ended, stop)
            code = await ended
        finally:
            asked.cancel()
            # Of an orderly end it is known that it left nobody behind; of any other it is not.
            if process.returncode != 0:
                _kill_group(process)
            await ended
            del self._running[program.name]
            if output is not None:
                await output.close()
        last_line = output.last if output is not None else ""
        return Event(name=program.name, what="ended", pid=process.pid, code=code, last_line=last_line)

    def _output(self, program: ManagedProgram) -> ChildOutput | None:
        hear = self._hear
        if hear is None or program.log is not None:
            return None
        return ChildOutput(lambda line: hear(program.name, line))

    async def _drain(self, program: ManagedProgram, process: Process, ended: asyncio.Task[int], stop: Stop) -> None:
        """Return when the process is gone or out of time; then its whole group is killed."""
        _terminate(process)
        urgent = asyncio.create_task(stop.urgent.wait())
        drain_s = self._timing.drain_s if program.drain_s is None else program.drain_s
        try:
            await asyncio.wait({ended, urgent}, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            urgent.cancel()
        if program.hurry_s:
            await _hurry(process, ended, program.hurry_s)
        if not ended.done():
            _kill_group(process)
            self._tell(Event(name=program.name, what="killed", pid=process.pid))


class _SameError:
    """Counts the ends in a row of one program that have the same error; numbers in its last words may differ."""

    def __init__(self) -> None:
        self._error: tuple[int | None, str] | None = None
        self._ends = 0

    def count(self, event: Event) -> int:
        """Return how many ends in a row, up to this one, have its error; 0 if it is none."""
        if event.code == 0 or event.code in OTHERS:
            self._error, self._ends = None, 0
            return 0
        error = (event.code, re.sub(r"\d+", "0", last_words(event.last_line) or event.reason))
        self._ends = self._ends + 1 if error == self._error else 1
        self._error = error
        return self._ends


async def _start(program: ManagedProgram, output: ChildOutput | None) -> Process:
    log = program.log.open("ab") if program.log else None
    writing = await output.open() if output is not None else None
    try:
        return await asyncio.create_subprocess_exec(
            *program.command,
            env=dict(program.environ),
            cwd=program.folder,
            stdin=PIPE,
            stdout=log or writing,
            stderr=STDOUT if log or writing is not None else None,
            # Ctrl-C at the terminal reaches this process alone, which then ends the programs in order.
            process_group=0,
        )
    finally:
        if log:
            log.close()
        if writing is not None:
            os.close(writing)


async def _hurry(process: Process, ended: asyncio.Task[int], limit_s: float) -> None:
    """Ask a program again and again to end at once; return when it has ended or the time is over.

    Two signals that are sent at the same moment can arrive as one, so one more is not enough.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while not ended.done() and loop.time() < deadline:
        _terminate(process)
        await asyncio.wait({ended}, timeout=min(HURRY_S, limit_s))


def _terminate(process: Process) -> None:
    # Not process.terminate: it would reap a process that has just ended, before its exit code is read elsewhere.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def _kill_group(process: Process) -> None:
    """The program and what it has started, also when it is gone itself."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
