"""Keeps programs running: each is started again when it ends, later and later while it keeps ending at once.

A program is a process of its own. Its standard input is a pipe that nobody writes to: when this process is gone,
however it went, the pipe closes, and a program that watches it (``--watch-stdin``) ends by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import msgspec

from coord.cli.stop import Stop


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


class Program(msgspec.Struct, frozen=True, kw_only=True):
    """What is kept running."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    #: Where its output goes, appended; None: where this process's own goes.
    log: Path | None = None
    #: Exit codes that no restart mends, such as 2 for a wrong option.
    final_codes: frozenset[int] = frozenset()


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a program."""

    name: str
    what: str  #: started, ended (by itself), failed (could not be started), killed (it did not drain)
    pid: int | None = None
    code: int | None = None  #: exit code; negative: the signal that ended it
    again_in_s: float | None = None  #: when it is started again; None: it is not
    reason: str = ""

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
    """A program ended with one of its final codes."""

    def __init__(self, program: Program, event: Event) -> None:
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
        timing: other waits than the usual, for tests.
    """

    def __init__(
        self, programs: Sequence[Program], tell: Callable[[Event], None], *, timing: Timing | None = None
    ) -> None:
        self._programs = tuple(programs)
        self._tell = tell
        self._timing = timing or Timing()
        self._running: dict[str, Process] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The programs that run at the moment, and their process ids."""
        return {name: process.pid for name, process in self._running.items()}

    async def run(self, stop: Stop) -> None:
        """Start all, keep them running, and once ``stop`` is asked for, end them: SIGTERM, and SIGKILL when it is late.

        Returns when every process is gone; when it is cancelled, they are killed first.

        Raises:
            GaveUp: a program ended with one of its final codes; the others have been ended.
        """
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

    async def _keep(self, program: Program, stop: Stop) -> None:
        loop = asyncio.get_running_loop()
        waits = backoff(self._timing)
        while not stop.asked.is_set():
            begin = loop.time()
            pid, code, reason = await self._live(program, stop)
            if stop.asked.is_set():
                return
            if loop.time() - begin >= self._timing.well_s:
                waits = backoff(self._timing)
            is_final = code in program.final_codes
            again_in_s = None if is_final else next(waits)
            what = "failed" if pid is None else "ended"
            event = Event(name=program.name, what=what, pid=pid, code=code, again_in_s=again_in_s, reason=reason)
            self._tell(event)
            if is_final:
                raise GaveUp(program, event)
            await stop.asked_within(again_in_s or 0)

    async def _live(self, program: Program, stop: Stop) -> tuple[int | None, int | None, str]:
        """One life of a program: its pid, exit code, and why it could not be started."""
        try:
            process = await _start(program)
        except OSError as error:
            return None, None, str(error)
        self._running[program.name] = process
        self._tell(Event(name=program.name, what="started", pid=process.pid))
        ended = asyncio.create_task(process.wait())
        asked = asyncio.create_task(stop.asked.wait())
        try:
            await asyncio.wait({ended, asked}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(process, ended, stop)
            return process.pid, await ended, ""
        finally:
            asked.cancel()
            if process.returncode is None:
                _signal(process, signal.SIGKILL)
            await ended
            del self._running[program.name]

    async def _drain(self, process: Process, ended: asyncio.Task[int], stop: Stop) -> None:
        """Return when the process is gone or out of time; SIGKILL is left to the caller."""
        _signal(process, signal.SIGTERM)
        urgent = asyncio.create_task(stop.urgent.wait())
        try:
            await asyncio.wait({ended, urgent}, timeout=self._timing.drain_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            urgent.cancel()
        if not ended.done():
            _signal(process, signal.SIGKILL)
            name = next(name for name, other in self._running.items() if other is process)
            self._tell(Event(name=name, what="killed", pid=process.pid))


async def _start(program: Program) -> Process:
    log = program.log.open("ab") if program.log else None
    try:
        return await asyncio.create_subprocess_exec(
            *program.command,
            env=dict(program.environ),
            stdin=PIPE,
            stdout=log,
            stderr=STDOUT if log else None,
            # Ctrl-C at the terminal reaches this process alone, which then ends the programs in order.
            process_group=0,
        )
    finally:
        if log:
            log.close()


def _signal(process: Process, number: signal.Signals) -> None:
    # Not process.send_signal: it would reap a process that has just ended, before its exit code is read elsewhere.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, number)
