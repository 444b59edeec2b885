"""Keeps programs running: a program that ends is restarted with exponential backoff.

A program is a process of its own and leads its own process group. Its standard input is a pipe that this process never
writes to. When this process is gone, even after SIGKILL, the pipe closes, and a program that watches it
(``--watch-stdin``) ends by itself. Its standard output and standard error share another pipe, which is read line by
line.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import re
import signal
from asyncio.subprocess import PIPE, STDOUT, Process
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec

from coord.agent.run import ONE_STOP_S
from coord.backoff import Backoff
from coord.up.log import last_error
from coord.up.shutdown import Shutdown

#: A longer line is passed on in pieces, so that a program that never ends a line cannot fill the memory.
MAX_LINE_BYTES = 256 * 1024
#: Seconds for which output is read after a program's end while a grandchild holds the pipe open.
GRANDCHILD_S = 0.5


class ChildOutput(asyncio.Protocol):
    """The reading end of one program's output.

    Args:
        on_line: called with each non-empty line, without its end; bytes that are not UTF-8 are replaced.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = bytearray()
        self._closed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None
        #: The last line with a letter or a digit.
        self.last_line = ""

    async def open(self) -> int:
        """Start to read; return the writing end, which the caller closes once the program has it."""
        reading, writing = os.pipe()
        try:
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: self, os.fdopen(reading, "rb", 0)
            )
        except BaseException:
            os.close(writing)
            raise
        return writing

    async def close(self) -> None:
        """Read what is left, then stop reading."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), GRANDCHILD_S)
        finally:
            if self._transport is not None:
                self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            del rest[:MAX_LINE_BYTES]
        self._rest = rest
        for line in lines:
            self._pass_on(line)

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the event loop at the end, and after ``close``."""
        if not self._closed.is_set():
            self._closed.set()
            self._pass_on(self._rest)
            self._rest = bytearray()

    def _pass_on(self, line: bytes | bytearray) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.last_line = text if any(map(str.isalnum, text)) else self.last_line
            self._on_line(text)


#: Seconds between two SIGTERM of a forced shutdown.
FORCE_AGAIN_S = 0.5
#: Consecutive ends with the same error after which a program that was never ready is not restarted.
SAME_ENDS = 5
#: Signals by which other processes end a program: not its own error.
FOREIGN_SIGNALS = frozenset({-signal.SIGKILL, -signal.SIGTERM, -signal.SIGINT, -signal.SIGHUP})


class Timing(msgspec.Struct, frozen=True, kw_only=True):
    """Times of the supervisor, in seconds."""

    #: Wait before the first restart: immediate for a person.
    first_s: float = 0.1
    #: Maximum wait; the wait doubles up to here, so a program that cannot run does not overload the machine.
    longest_s: float = 5.0
    #: After this time of running, the backoff starts again from the first wait.
    stable_s: float = 10.0
    #: Time that a program gets after SIGTERM to finish what it holds; then it is killed.
    drain_s: float = 10.0
    #: Time that a program gets after a second SIGTERM to give its tasks back; it waits 5 s of them for its threads.
    give_back_s: float = 10.0


class ManagedProgram(msgspec.Struct, frozen=True, kw_only=True):
    """A program to keep running."""

    name: str
    command: Sequence[str]
    environ: Mapping[str, str]
    #: File to append its output to; None: ``on_line`` of the supervisor gets it.
    log: Path | None = None
    #: Working directory; None: that of this process.
    folder: Path | None = None
    #: Seconds that it gets to drain; None: as in ``Timing``; infinite: as long as it takes.
    drain_s: float | None = None
    #: True if it gives its tasks back on a second SIGTERM, which it gets before it is killed.
    gives_back: bool = False
    #: Open files that it inherits, such as a listening socket.
    descriptors: tuple[int, ...] = ()
    #: Seconds that it gets in a forced shutdown to end its own processes, with more SIGTERM; 0: it is killed at once.
    force_s: float = 0.0


class ProgramEvent(msgspec.Struct, frozen=True, kw_only=True):
    """Something that happened to a program."""

    name: str
    what: str  #: started, ended (by itself), failed (could not be started), killed (did not drain in time), gave_up
    pid: int | None = None
    code: int | None = None  #: exit code; negative: the number of the signal that ended it
    again_in_s: float | None = None  #: seconds until it restarts; None: it does not
    reason: str = ""  #: why it could not be started
    ends: int = 0  #: number of consecutive ends without a stable run
    last_line: str = ""  #: last line of its output, if ``on_line`` gets that


class GaveUp(Exception):
    """A program that was never ready has ended again and again with the same error."""

    def __init__(self, event: ProgramEvent) -> None:
        super().__init__(f"{event.name} has ended {event.ends} times in a row with the same error")
        self.event = event


class Supervisor:
    """Runs programs until shutdown.

    Args:
        programs: the programs; their names are unique.
        on_event: called with each event, in the event loop.
        on_line: called with a program's name and each line of its output, for programs without a ``log``; None: their
            output goes to that of this process.
        gives_up: called after each end from the fifth in a row with the same error on, if the program was never ready;
            True: it is not restarted, and all others are ended. None: every program is restarted.
        timing: times other than the default, for tests.
    """

    def __init__(
        self,
        programs: Sequence[ManagedProgram],
        on_event: Callable[[ProgramEvent], None],
        *,
        on_line: Callable[[str, str], None] | None = None,
        gives_up: Callable[[ProgramEvent], bool] | None = None,
        timing: Timing | None = None,
    ) -> None:
        self._programs = tuple(programs)
        self._on_event = on_event
        self._on_line = on_line
        self._gives_up = gives_up
        self._ready: set[str] = set()
        self._timing = timing or Timing()
        self._running: dict[str, Process] = {}

    @property
    def pids(self) -> dict[str, int]:
        """The names and process ids of the programs that run."""
        return {name: process.pid for name, process in self._running.items()}

    def mark_ready(self, name: str) -> None:
        """Note that a program was ready once: from now on it is restarted after every end."""
        self._ready.add(name)

    async def run(self, shutdown: Shutdown) -> None:
        """Start all programs and keep them running; on shutdown send SIGTERM, then SIGKILL after the time to drain.

        Return when every process is gone. If this is cancelled, the processes are killed first.

        Raises:
            GaveUp: ``gives_up`` returned True for a program; the others have been ended.
        """
        if not self._programs:
            await shutdown.requested.wait()
            return
        kept = [asyncio.create_task(self._keep(program, shutdown), name=program.name) for program in self._programs]
        try:
            done, rest = await asyncio.wait(kept, return_when=asyncio.FIRST_EXCEPTION)
            if rest:
                shutdown.request_once()
                await asyncio.wait(rest)
            for task in done:
                task.result()
        finally:
            for task in kept:
                task.cancel()
            await asyncio.gather(*kept, return_exceptions=True)

    async def _keep(self, program: ManagedProgram, shutdown: Shutdown) -> None:
        loop = asyncio.get_running_loop()
        backoff, ends = Backoff(self._timing.first_s, self._timing.longest_s), 0
        same = _SameError()
        while not shutdown.requested.is_set():
            started = loop.time()
            event = await self._run_once(program, shutdown)
            if shutdown.requested.is_set():
                return
            if loop.time() - started >= self._timing.stable_s:
                backoff.reset()
                ends = 0
                same = _SameError()
            ends += 1
            if same.count(event) >= SAME_ENDS and program.name not in self._ready and self._is_given_up(event):
                event = msgspec.structs.replace(event, what="gave_up", ends=ends)
                self._on_event(event)
                raise GaveUp(event)
            wait_s = backoff.next_s()
            self._on_event(msgspec.structs.replace(event, again_in_s=wait_s, ends=ends))
            await shutdown.requested_within(wait_s)

    def _is_given_up(self, event: ProgramEvent) -> bool:
        return self._gives_up is not None and self._gives_up(event)

    async def _run_once(self, program: ManagedProgram, shutdown: Shutdown) -> ProgramEvent:
        """Run a program until it ends; return how it ended, or why it could not be started."""
        output = self._output(program)
        try:
            process = await _start(program, output)
        except OSError as error:
            if output is not None:
                await output.close()
            return ProgramEvent(name=program.name, what="failed", reason=str(error))
        self._running[program.name] = process
        self._on_event(ProgramEvent(name=program.name, what="started", pid=process.pid))
        ended = asyncio.create_task(process.wait())
        requested = asyncio.create_task(shutdown.requested.wait())
        try:
            await asyncio.wait({ended, requested}, return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                await self._drain(program, process, ended, shutdown)
            code = await ended
        finally:
            requested.cancel()
            # After exit code 0 no process of the group is left; after any other end there may be some.
            if process.returncode != 0:
                _kill_group(process)
            await ended
            del self._running[program.name]
            if output is not None:
                await output.close()
        last_line = output.last_line if output is not None else ""
        return ProgramEvent(name=program.name, what="ended", pid=process.pid, code=code, last_line=last_line)

    def _output(self, program: ManagedProgram) -> ChildOutput | None:
        on_line = self._on_line
        if on_line is None or program.log is not None:
            return None
        return ChildOutput(lambda line: on_line(program.name, line))

    async def _drain(
        self, program: ManagedProgram, process: Process, ended: asyncio.Task[int], shutdown: Shutdown
    ) -> None:
        """Send SIGTERM and wait; if the time to drain passes or the shutdown is forced, kill the whole group."""
        _terminate(process)
        forced = asyncio.create_task(shutdown.forced.wait())
        drain_s = self._timing.drain_s if program.drain_s is None else program.drain_s
        begun = asyncio.get_running_loop().time()
        try:
            limit_s = None if math.isinf(drain_s) else drain_s
            await asyncio.wait({ended, forced}, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
        finally:
            forced.cancel()
        if not ended.done() and program.gives_back:
            await self._let_give_back(process, ended, begun)
        if program.force_s:
            await _terminate_again(process, ended, program.force_s)
        if not ended.done():
            _kill_group(process)
            self._on_event(ProgramEvent(name=program.name, what="killed", pid=process.pid))

    async def _let_give_back(self, process: Process, ended: asyncio.Task[int], begun: float) -> None:
        """Send a second SIGTERM, late enough to count as one, and wait for the program."""
        early_s = begun + 1.5 * ONE_STOP_S - asyncio.get_running_loop().time()
        if early_s > 0:
            await asyncio.wait({ended}, timeout=early_s)
        _terminate(process)
        await asyncio.wait({ended}, timeout=self._timing.give_back_s)


class _SameError:
    """Counts the consecutive ends of one program with the same error; numbers in its last line may differ."""

    def __init__(self) -> None:
        self._error: tuple[int | None, str] | None = None
        self._ends = 0

    def count(self, event: ProgramEvent) -> int:
        """Return how many consecutive ends, up to this one, have its error; 0 if it is none."""
        if event.code == 0 or event.code in FOREIGN_SIGNALS:
            self._error, self._ends = None, 0
            return 0
        error = (event.code, re.sub(r"\d+", "0", last_error(event.last_line) or event.reason))
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
            pass_fds=program.descriptors,
        )
    finally:
        if log:
            log.close()
        if writing is not None:
            os.close(writing)


async def _terminate_again(process: Process, ended: asyncio.Task[int], limit_s: float) -> None:
    """Send SIGTERM repeatedly until a program has ended or the time has passed.

    Two signals that are sent at the same moment can arrive as one, so a single one is not enough.
    """
    loop = asyncio.get_running_loop()
    deadline = loop.time() + limit_s
    while not ended.done() and loop.time() < deadline:
        _terminate(process)
        await asyncio.wait({ended}, timeout=min(FORCE_AGAIN_S, limit_s))


def _terminate(process: Process) -> None:
    # Not process.terminate(): it would reap a process that has just ended, and its exit code would be lost.
    if process.returncode is None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGTERM)


def _kill_group(process: Process) -> None:
    """Kill the program and the processes that it has started, even if the program itself has ended."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
