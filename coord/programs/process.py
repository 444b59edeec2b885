"""One run of a program: all its processes, from the start until none is left.

A program is the first process of its own session and process group. It has ended when that process has ended. Then the
rest of its group is killed, and a pipe that a process outside the group holds open is not waited for. Only a process
that leaves the group (``setsid``) outlives the program.
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

from coord.programs.reaper import Reaper
from coord.programs.stdio import Tail

#: Seconds that children of the program get to write their last output after it has ended: enough for a pipeline.
LINGER_S = 0.5
#: Bytes of standard error that are kept: they fit into the 4,096 characters of a failure, after its first words.
TAIL_BYTES = 3_900
#: File descriptor of the pipe for progress.
PROGRESS_FD = 3

#: Exit code 255, for a program that was reaped elsewhere.
UNKNOWN_STATUS = 255 << 8

#: Pipes move to file descriptors from this number on, so that dup2 to the final descriptors closes none of them.
_MIN_FD = 10
#: Signals that children of Python, or of a shell in the background, would ignore; programs get the default.
_DEFAULT_SIGNALS = (signal.SIGPIPE, signal.SIGXFSZ, signal.SIGINT, signal.SIGQUIT, signal.SIGTERM, signal.SIGHUP)

OnData = Callable[[bytes], None]


class ProgramProcess:
    """A running program; the caller must await ``end`` or ``wait``."""

    def __init__(self, pid: int, reaper: Reaper, pipes: Sequence[_Pipe], stdin: _Stdin) -> None:
        self.pid = pid
        self.stderr = Tail(TAIL_BYTES)  #: the end of standard error
        self._reaper = reaper
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
        cls, path: str, words: Sequence[str], environ: Mapping[str, str], reaper: Reaper, *,
        on_output: OnData, on_progress: OnData | None = None,
    ) -> ProgramProcess:  # fmt: skip
        """Start a program.

        Args:
            path: the program's file.
            words: its name as typed, and its arguments.
            environ: its environment.
            reaper: ends its process group if this process is gone.
            on_output: called with what it writes to standard output.
            on_progress: called with what it writes to fd 3, which is open only with this argument.

        Raises:
            OSError: the program could not be started.
        """
        stderr = Tail(TAIL_BYTES)
        readers = {1: on_output, 2: stderr.feed} | ({PROGRESS_FD: on_progress} if on_progress else {})
        child_fds: dict[int, int] = {}
        pipes: list[_Pipe] = []
        stdin: _Stdin | None = None
        try:
            # Nothing is awaited once the program runs, so a cancel cannot leave a program that nothing manages.
            for number, on_data in readers.items():
                own_fd, child_fds[number] = _move_child_end(*os.pipe())
                pipes.append(await _Pipe.open(own_fd, on_data))
            read_fd, write_fd = os.pipe()
            own_fd, child_fds[0] = _move_child_end(write_fd, read_fd)
            stdin = await _Stdin.open(own_fd)
            pid = _spawn(path, words, environ, child_fds)
            reaper.add(pid)
        except BaseException:
            for pipe in pipes:
                pipe.close()
            if stdin is not None:
                stdin.close()
            raise
        finally:
            for number in child_fds.values():
                os.close(number)
        program = cls(pid, reaper, pipes, stdin)
        program.stderr = stderr
        return program

    @property
    def has_exited(self) -> bool:
        """True if its first process has ended."""
        return self._exited.is_set()

    @property
    def stdin_closed(self) -> asyncio.Future[None]:
        """Done once no process reads its standard input."""
        return self._stdin.lost

    @property
    def stdout_closed(self) -> asyncio.Future[None]:
        """Done once nothing more can come from its standard output."""
        return self._pipes[0].ended  # the first that is opened

    @property
    def unread(self) -> int:
        """Number of bytes written to its standard input that it has not read; 0 if the system does not show it."""
        return self._stdin.unread()

    def write(self, data: bytes) -> None:
        """Write to its standard input; does nothing once that is closed."""
        if not self._stdin.transport.is_closing():
            self._stdin.transport.write(data)

    def close_stdin(self) -> None:
        """Close its standard input after what was written."""
        if not self._stdin.transport.is_closing():
            self._stdin.transport.write_eof()

    async def wait(self) -> int:
        """Wait until it has ended and its output has been read.

        Returns:
            Its exit code; negative: the number of the signal that ended it.
        """
        await self._exited.wait()
        await self._read_all(LINGER_S)
        return self._reap()

    async def end(self, grace_s: float) -> None:
        """End the group: SIGTERM, then SIGKILL after ``grace_s`` seconds; return when no process of it is left.

        A cancel of the caller does not stop this.
        """
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(grace_s))
        await finish(self._ending)

    def end_soon(self, grace_s: float) -> None:
        """Start to end the group, without waiting."""
        if self._ending is None:
            self._ending = asyncio.create_task(self._end(grace_s))

    async def _end(self, grace_s: float) -> None:
        if self._is_gone:
            return
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(grace_s):
                await self._exited.wait()
                await self._read_all(grace_s)  # other processes of its group may still be cleaning up
        self._signal(signal.SIGKILL)
        await self._exited.wait()
        self._reap()

    async def _read_all(self, limit_s: float) -> None:
        if waits := [pipe.ended for pipe in self._pipes if not pipe.ended.done()]:
            await asyncio.wait(waits, timeout=limit_s)

    def _reap(self) -> int:
        """Kill the rest of the group, then reap the first process: until then the group's number cannot be reused."""
        if not self._is_gone:
            self._is_gone = True
            self._signal(signal.SIGKILL)
            self._reaper.remove(self.pid)
            if self._status is None:
                _, self._status = os.waitpid(self.pid, 0)
            for pipe in self._pipes:
                pipe.close()
            self._stdin.close()
        assert self._status is not None  # noqa: S101 -- for the type checker: set above or by the thread
        return os.waitstatus_to_exitcode(self._status)

    def _signal(self, number: signal.Signals) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):  # macOS refuses if all are zombies
            os.killpg(self.pid, number)

    def _watch(self) -> None:
        status = None
        try:
            if hasattr(os, "waitid"):
                os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
            else:  # macOS before Python 3.13; frees the number a moment too early
                _, status = os.waitpid(self.pid, 0)
        except ChildProcessError:  # another part of this process has reaped it: see ``prepare``
            status = UNKNOWN_STATUS
        with contextlib.suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._set_exited, status)

    def _set_exited(self, status: int | None) -> None:
        self._status = status
        self._exited.set()


class _Pipe(asyncio.Protocol):
    """A pipe that is read to its end; then ``ended`` is done."""

    def __init__(self, on_data: OnData) -> None:
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._on_data = on_data
        self._transport: asyncio.BaseTransport | None = None

    @classmethod
    async def open(cls, number: int, on_data: OnData) -> _Pipe:
        file = os.fdopen(number, "rb", buffering=0)
        _, pipe = await asyncio.get_running_loop().connect_read_pipe(lambda: cls(on_data), file)
        return pipe

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._on_data(data)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)

    def close(self) -> None:
        if self._transport is not None:
            self._transport.close()


class _Stdin(asyncio.BaseProtocol):
    """A pipe that is written to until the other side closes it."""

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


def _move_child_end(own_fd: int, child_fd: int) -> tuple[int, int]:
    """Return both ends of a pipe, the child's with a high number; other programs do not inherit them."""
    moved = fcntl.fcntl(child_fd, fcntl.F_DUPFD_CLOEXEC, _MIN_FD)
    os.close(child_fd)
    return own_fd, moved


def _spawn(path: str, words: Sequence[str], environ: Mapping[str, str], child_fds: Mapping[int, int]) -> int:
    actions = [(os.POSIX_SPAWN_DUP2, number, target) for target, number in child_fds.items()]
    encoded = [word.encode("utf-8", "surrogateescape") for word in words]  # UTF-8 like JSON, whatever the locale
    spawn = partial(
        os.posix_spawn, path, encoded, environ, file_actions=actions, setsigmask=(), setsigdef=_DEFAULT_SIGNALS
    )
    try:
        return spawn(setsid=True)
    except NotImplementedError:  # C library without setsid; a program that reads from the terminal is stopped by it
        return spawn(setpgroup=0)


def prepare() -> None:
    """Prepare this process to start programs, whatever it has inherited.

    Programs must not inherit its open files: a reader that waits for their end would wait for the program. And SIGCHLD
    must not be ignored: the system would reap the children, and their exit codes would be lost.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    for number in map(int, os.listdir("/dev/fd")):  # noqa: PTH208 -- names; one of them is gone once they are listed
        if number > 2:
            with contextlib.suppress(OSError):
                os.set_inheritable(number, False)


async def finish(task: asyncio.Task[Any] | Coroutine[Any, Any, Any]) -> None:
    """Await to the end; a cancel during this is raised afterwards."""
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
