"""A process that a driver started: it is told words on its standard input and answers with lines of JSON.

Its standard input is held open: when the driver is gone, however it went, the pipe closes and the process ends.
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

#: A process that has not answered by then hangs; the longest real answer takes a quarter of that.
ANSWER_LIMIT_S = 240.0
#: What a process has to end after SIGTERM before it is killed.
STOP_LIMIT_S = 15.0


class ChildFailed(Exception):
    """A process ended, or said nothing, when it should have answered; the message holds the end of its log."""


class Child:
    """A running process; its standard error goes to ``log``."""

    def __init__(self, name: str, arguments: Sequence[str], environ: Mapping[str, str], log: Path) -> None:
        self.name = name
        self._log = log
        self._heard = b""
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

    def tell(self, word: str) -> None:
        """Send it one line."""
        if self._process.stdin is not None:
            try:
                self._process.stdin.write(word.encode() + b"\n")
                self._process.stdin.flush()
            except BrokenPipeError:
                raise self.failure("has ended") from None

    def hear(self, limit_s: float = ANSWER_LIMIT_S) -> Any:
        """Its next line, decoded; raises ``ChildFailed`` when it ends or says nothing for ``limit_s`` seconds."""
        assert self._process.stdout is not None  # noqa: S101 (opened above)
        out = self._process.stdout.fileno()
        deadline = time.monotonic() + limit_s
        while b"\n" not in self._heard:
            if not select.select([out], [], [], max(0, deadline - time.monotonic()))[0]:
                raise self.failure(f"said nothing for {limit_s:g} s")
            more = os.read(out, 1 << 20)
            if not more:
                raise self.failure("has ended")
            self._heard += more
        line, _, self._heard = self._heard.partition(b"\n")
        return json.loads(line)

    def check(self) -> None:
        """Raise ``ChildFailed`` if it has ended by itself."""
        if not self._is_stopped and self._process.poll() is not None:
            raise self.failure(f"has ended with {self._process.returncode}")

    def pause(self) -> None:
        """Stop it where it stands; ``resume`` lets it go on."""
        os.kill(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self.pid, signal.SIGCONT)

    def stop(self) -> None:
        """End it and wait; kill it when it takes too long."""
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

    def failure(self, what: str) -> ChildFailed:
        """What went wrong, with the end of the log."""
        lines = self._log.read_text(errors="replace").splitlines()[-15:]
        return ChildFailed("\n  ".join([f"process {self.name!r} {what}; the end of its log:", *lines]))
