"""A process of a driver: it gets commands on its standard input and answers with lines of JSON.

When the driver is gone, even after SIGKILL, the pipe closes and the process ends.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

#: Timeout of an answer in seconds; the longest answer takes a quarter of that.
ANSWER_LIMIT_S = 240.0
#: Seconds that a process gets to end after SIGTERM; then it is killed.
STOP_LIMIT_S = 15.0


class ChildFailed(Exception):
    """A process ended or did not answer in time; the message has the end of its log."""


class Child:
    """A running process; ``log`` gets its standard error."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        self._buffer = b""
        self._is_stopped = False
        with log.open("ab") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", *arguments],
                env=dict(environ),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
            )

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def send(self, command: str) -> None:
        """Send one line."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(command.encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise self.failure("has ended") from None

    def receive(self, limit_s: float = ANSWER_LIMIT_S) -> Any:
        """Return the next line, decoded; raises ``ChildFailed`` if the process ends or ``limit_s`` seconds pass."""
        assert self._process.stdout is not None  # noqa: S101 (opened above)
        out = self._process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._buffer:
            if not select.select([out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise self.failure(f"did not answer within {limit_s:g} s")
            more = os.read(out, 1 << 20)
            if not more:
                raise self.failure("has ended")
            self._buffer += more
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def check(self) -> None:
        """Raise ``ChildFailed`` if it has ended unexpectedly."""
        if not self._is_stopped and self._process.poll() is not None:
            raise self.failure(f"has ended with {self._process.returncode}")

    def pause(self) -> None:
        """Pause it until ``resume``."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Continue it after ``pause``."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and wait; kill it after a timeout."""
        self._is_stopped = True
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            try:
                self._process.wait(STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def failure(self, problem: str) -> ChildFailed:
        """Return an error with the problem and the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        return ChildFailed("\n  ".join([f"process {self.name!r} {problem}; the end of its log:", *lines]))
