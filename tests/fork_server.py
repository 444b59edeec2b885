"""A server that forks Python processes which have imported coord, so that a test pays for the imports once.

A start takes 0.03 s of processor time, ``python -m workers`` takes 0.45 s, and tests start hundreds of processes. A
forked process runs the same main module with its own arguments, environment, folder, output and signal handlers. It
differs from a started one only in its parent and in the command line that the system shows. `coord up` starts its
processes itself, so its tests cover the start of an interpreter.
"""

from __future__ import annotations

import atexit
import functools
import gc
import importlib
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import time
import types
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import msgspec

from workers import lua

ROOT = Path(__file__).parents[1]
#: What is imported before the first fork; the scripts are read too.
PRELOADED = (
    "workers.__main__",
    "coord.agent.agent",
    "coord.client.client",
    "coord.cli.processes",
    "coord.gateway.server",
)
#: Bytes of the longest message.
LONGEST = 1 << 18


class Order(msgspec.Struct):
    """A process to fork."""

    arguments: list[str]  #: of ``python -P``
    environ: dict[str, str]
    folder: str


class News(msgspec.Struct):
    """A process was forked, or has ended."""

    pid: int
    code: int | None = None  #: negative: the number of the signal that killed it


class ForkedProcess:
    """A forked process; a part of the interface of ``subprocess.Popen``."""

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None
        self._server = server

    def poll(self) -> int | None:
        """Return the exit code, or None while the process exists."""
        self._server.receive(0)
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the end and return the exit code."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.poll() is None:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
            self._server.receive(left_s)
        assert self.returncode is not None
        return self.returncode

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the process has ended."""
        if self.poll() is None:
            with suppress(ProcessLookupError):  # it ends at this moment
                os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, unless the process has ended."""
        self.send_signal(signal.SIGKILL)


class ForkServer:
    """The server, and the processes that it has forked."""

    def __init__(self) -> None:
        self._processes: dict[int, ForkedProcess] = {}
        self._socket, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, LONGEST)
        with theirs:
            self._popen = subprocess.Popen(
                [sys.executable, "-P", "-m", "tests.fork_server", str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"},
            )

    def start(
        self, arguments: Sequence[str], environ: Mapping[str, str], folder: Path, out: IO[bytes]
    ) -> ForkedProcess:
        """Start ``python -P ARGUMENTS``: ``-m MODULE``, ``-c CODE`` or a script, and what these take.

        Args:
            arguments: after ``-P``.
            environ: all variables.
            folder: where it runs.
            out: standard output and standard error.
        """
        order = msgspec.json.encode(Order(list(arguments), dict(environ), str(folder)))
        socket.send_fds(self._socket, [order], [out.fileno()])
        pid = None
        while pid is None:
            pid = self.receive(None)
        return self._processes[pid]

    def receive(self, timeout: float | None) -> int | None:
        """Note what the server reports within ``timeout`` seconds; stop at a new process and return its id."""
        while select.select([self._socket], [], [], timeout)[0]:
            data = self._socket.recv(LONGEST)
            assert data, "the fork server has ended"
            news = msgspec.json.decode(data, type=News)
            if news.code is None:
                self._processes[news.pid] = ForkedProcess(self, news.pid)
                return news.pid
            self._processes.pop(news.pid).returncode = news.code
            timeout = 0
        return None

    def stop(self) -> None:
        """End the server."""
        self._socket.close()
        self._popen.wait(10)


@functools.cache
def fork_server() -> ForkServer:
    """Return the server of this test process."""
    server = ForkServer()
    atexit.register(server.stop)
    return server


def serve(orders: socket.socket) -> Order:
    """Fork a process for each order and report its end, until the other side closes; in a child, return its order."""
    awake, wakes = socket.socketpair()
    for one in (awake, wakes):
        one.setblocking(False)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C of a test run: the other side closes
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    signal.set_wakeup_fd(wakes.fileno())
    while True:
        ready, _, _ = select.select([orders, awake], [], [])
        if awake in ready:
            awake.recv(LONGEST)
            _report_ends(orders)
            continue
        data, outputs, _, _ = socket.recv_fds(orders, LONGEST, 1)
        if not data:
            os._exit(0)
        pid = os.fork()
        if pid == 0:
            signal.set_wakeup_fd(-1)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            for one in (orders, awake, wakes):
                one.close()
            for standard in (1, 2):
                os.dup2(outputs[0], standard)
            os.close(outputs[0])
            return msgspec.json.decode(data, type=Order)
        os.close(outputs[0])
        orders.send(msgspec.json.encode(News(pid)))


def _report_ends(orders: socket.socket) -> None:
    with suppress(ChildProcessError):
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            orders.send(msgspec.json.encode(News(pid, os.waitstatus_to_exitcode(status))))


def run(order: Order) -> None:
    """Do what ``python -P`` does with these arguments, in this process."""
    os.environ.clear()
    os.environ.update(order.environ)
    os.chdir(order.folder)
    how, *rest = order.arguments
    if how == "-m":
        sys.argv = rest
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    elif how == "-c":
        sys.argv = ["-c", *rest[1:]]
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))  # noqa: S102 -- the program of a test
    else:
        sys.argv = order.arguments
        runpy.run_path(how, run_name="__main__")


if __name__ == "__main__":
    for name in PRELOADED:
        importlib.import_module(name)
    del sys.modules["workers.__main__"]  # it runs as the main module, and is imported again by who needs it
    for name in lua.NAMES:
        lua.load(name)
    assert threading.active_count() == 1, "a fork would have none of the other threads"
    gc.collect()
    gc.freeze()  # or the first collection of each child would copy every page
    run(serve(socket.socket(fileno=int(sys.argv[1]))))
