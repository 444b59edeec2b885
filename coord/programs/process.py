"""One start of a program: its processes, from the first until nothing of them is left.

A program is the first process of a session and group of its own. It has ended when that process has; whatever it left
in its group is killed then, and a pipe that somebody outside the group still holds is not waited for. Only a process
that leaves the group (``setsid``) outlives it.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
import termios
import threading
from collections.abc import Callable, Coroutine, Mapping, Sequence
from functools import partial
from typing import Any

from coord.programs.buffers import Tail
from coord.programs.guard import Guard

#: What the program's children have to say their last, once it has ended: enough for the end of a pipeline.
LINGER_S = 0.5
#: The end of standard error that is kept: what fits into a failure's 4,096 characters, with some words before it.
TAIL_BYTES = 3_900
#: Where the program finds the pipe for its progress.
PROGRESS_FD = 3

#: Exit code 255: of a program that ended unseen.
UNKNOWN_STATUS = 255 << 8

#: Pipes are moved above these numbers, so that putting them in their places cannot close one another.
_ABOVE = 10
#: Signals that Python, or a shell in the background, has its children ignore.
_USUAL = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)

Take = Callable[[bytes], None]


class ProgramProcess:
    """A program that was started; ``end`` or ``ended`` is to be awaited in any case."""

    def __init__(self, pid: int, guard: Guard, pipes: Sequence[_Pipe], stdin: _Stdin) -> None:
        self.pid = pid
        self.said = Tail(TAIL_BYTES)  #: on standard error
        self._guard = guard
        self._pipes = pipes
        self._stdin = stdin
        self._status: int | None = None
        self._loop = asyncio.get_running_loop()
        self._exited = asyncio.Event()
        self._ending: asyncio.Task[None] | None = None
        self._is_gone = False
        threading.Thread(target=self._watch, name=f"program-{pid}", daemon=True).start()

    @classmethod
    async def start(
        cls, path: str, words: Sequence[str], environ: Mapping[str, str], guard: Guard, *,
        output: Take, progress: Take | None = None,
    ) -> ProgramProcess:  # fmt: skip
        """Start it.

        Args:
            path: the program's file.
            words: its name as it was typed, and its arguments.
            environ: its environment.
            guard: told of its group.
            output: called with what it writes to standard output.
            progress: the same for fd 3, which it has only if this is given.

        Raises:
            OSError: it could not be started.
        """
        said = Tail(TAIL_BYTES)
        takes = {1: output, 2: said.take} | ({PROGRESS_FD: progress} if progress else {})
        theirs: dict[int, int] = {}
        pipes: list[_Pipe] = []
        stdin: _Stdin | None = None
        try:
            # Nothing is awaited once the program runs, so that no cancel can come before somebody answers for it.
            for number, take in takes.items():
                ours, theirs[number] = _moved(*os.pipe())
                pipes.append(await _Pipe.open(ours, take))
            reads, writes = os.pipe()
            ours, theirs[0] = _moved(writes, reads)
            stdin = await _Stdin.open(ours)
            pid = _spawn(path, words, environ, theirs)
            guard.hold(pid)
        except BaseException:
            for pipe in pipes:
                pipe.close()
            if stdin is not None:
                stdin.close()
            raise
        finally:
            for number in theirs.values():
                os.close(number)
        program = cls(pid, guard, pipes, stdin)
        program.said = said
        return program

    @property
    def has_exited(self) -> bool:
        """Whether its first process has ended."""
        return self._exited.is_set()

    @property
    def stdin_closed(self) -> asyncio.Future[None]:
        """Done once nobody reads its standard input any more."""
        return self._stdin.lost

    @property
    def unread(self) -> int:
        """Number of bytes written to its standard input that it has not read; 0 if the system does not say."""
        return self._stdin.unread()

    def write(self, data: bytes) -> None:
        """Write to its standard input, whether it reads that or not."""
        if not self._stdin.transport.is_closing():
            self._stdin.transport.write(data)

    def close_stdin(self) -> None:
        """Let it see the end of its input, once it has read what was written."""
        if not self._stdin.transport.is_closing():
            self._stdin.transport.write_eof()

    async def ended(self) -> int:
        """Wait until it has ended and said everything.

        Returns:
            Its exit code; minus the number of the signal that ended it.
        """
        await self._exited.wait()
        await self._said_all(LINGER_S)
        return self._bury()

    async def end(self, grace_s: float) -> None:
        """SIGTERM to its group, SIGKILL after the grace; returns when nothing of the group is left.

        It goes on to that end when the caller is cancelled.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(grace_s))
        await finish(self._ending)

    def end_soon(self, grace_s: float) -> None:
        """The same, without waiting for it."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(grace_s))

    async def _end(self, grace_s: float) -> None:
        if self._is_gone:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._exited.wait()
                await self._said_all(grace_s)  # the others of its group may still be cleaning up
        self._signal(signal.SIGKILL)
        await self._exited.wait()
        self._bury()

    async def _said_all(self, limit_s: float) -> None:
        if waits := [pipe.ended for pipe in self._pipes if not pipe.ended.done()]:
            await asyncio.wait(waits, timeout=limit_s)

    def _bury(self) -> int:
        """Kill the rest of the group and forget it; while its first process is unburied, the number is its own."""
        if not self._is_gone:
            self._is_gone = True
            self._signal(signal.SIGKILL)
            self._guard.release(self.pid)
            if self._status is None:
                _, self._status = os.waitpid(self.pid, 0)
            for pipe in self._pipes:
                pipe.close()
            self._stdin.close()
        assert self._status is not None  # noqa: S101 -- for the type checker: it was set above, or by whom waited
        return os.waitstatus_to_exitcode(self._status)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses where all are dead
            os.killpg(self.pid, number)

    def _watch(self) -> None:
        status = None
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            else:  # macOS before Python 3.13; the number is free from here on, a moment too early
                _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # somebody else has buried it: see ``prepare``
            status = UNKNOWN_STATUS
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._has_ended, status)

    def _has_ended(self, status: int | None) -> None:
        self._status = status
        self._exited.set()


class _Pipe(asyncio.Protocol):
    """A pipe that is read to its end; ``ended`` is done then."""

    def __init__(self, take: Take) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._take = take
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls, number: int, take: Take) -> _Pipe:
        file = os.fdopen(number, "rb", buffering=0)
        _, pipe = await asyncio.get_running_loop().connect_read_pipe(lambda: cls(take), file)
        return pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Stdin(asyncio.BaseProtocol):
    """A pipe that is written to, until the other side has closed it."""

    transport: asyncio.WriteTransport
    number: int

    def __init__(self) -> None:
        self.lost: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @classmethod
    async def open(cls, number: int) -> _Stdin:
        file = os.fdopen(number, "wb", buffering=0)
        transport, stdin = await asyncio.get_running_loop().connect_write_pipe(cls, file)
        stdin.transport = transport
        stdin.number = number
        return stdin

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.lost.done():
            self.lost.set_result(None)

    def unread(self) -> int:
        if self.transport.is_closing():
            return 0
        try:
            in_pipe = fcntl.ioctl(self.number, termios.FIONREAD, bytes(4))
        except OSError:
            return 0
        return int.from_bytes(in_pipe, sys.byteorder) + self.transport.get_write_buffer_size()

    def close(self) -> None:
        if not self.lost.done():
            self.transport.abort()


def _moved(ours: int, theirs: int) -> tuple[int, int]:
    """The ends of a pipe, theirs with a high number; both are closed in programs that do not get them."""
    moved = fcntl.fcntl(theirs, fcntl.F_DUPFD_CLOEXEC, _ABOVE)
    os.close(theirs)
    return ours, moved


def _spawn(path: str, words: Sequence[str], environ: Mapping[str, str], theirs: Mapping[int, int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, number, place) for place, number in theirs.items()]
    encoded = [word.encode("utf-8", "surrogateescape") for word in words]  # as JSON is, whatever the locale
    spawn = partial(os.posix_spawn, path, encoded, environ, file_actions=actions, setsigmask=(), setsigdef=_USUAL)
    try:
        return spawn(setsid=True)
    except NotImplementedError:  # a C library that cannot; a program that asks the terminal would be stopped by it
        return spawn(setpgroup=0)


def prepare() -> None:
    """Make this process fit to start programs, whatever it has inherited.

    Its files go to no program, or whoever waits for their end would wait on. And children are buried by us alone: a
    parent that ignores SIGCHLD would have the system bury them, and nobody would learn how they ended.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 -- names, of which one is gone once they are listed
        if number > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)


async def finish(task: asyncio.Task[Any] | Coroutine[Any, Any, Any]) -> None:
    """Await to its end; a cancel that comes meanwhile is raised then."""
    task = asyncio.ensure_future(task)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    task.result()
    if cancelled is not None:
        raise cancelled
