"""The agent's side of the reaper: registers process groups with it, so that no group outlives the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from coord.logs import get_logger

log = get_logger()

_SCRIPT = str(Path(__file__).with_name("reaper_process.py"))


class Reaper:
    """Ends its process groups when this process is gone, even after SIGKILL.

    Args:
        grace_s: seconds that a group gets between SIGTERM and SIGKILL.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._groups: set[int] = set()
        self._process = self._start()

    @property
    def pid(self) -> int:
        """The process id of the reaper."""
        return self._process.pid

    def add(self, group: int) -> None:
        """Add a process group that has started."""
        self._groups.add(group)
        self._send(f"+{group}\n")

    def remove(self, group: int) -> None:
        """Remove a process group that has ended; the system may use its number again from now on."""
        self._groups.discard(group)
        self._send(f"-{group}\n")

    def close(self) -> None:
        """Close the pipe, and wait until the reaper has ended the remaining groups."""
        self._process.communicate()

    def _send(self, line: str) -> None:
        assert self._process.stdin is not None  # noqa: S101 -- for the type checker: it was started with a pipe
        try:
            os.write(self._process.stdin.fileno(), line.encode())
        except (OSError, ValueError) as error:  # the reaper was killed, was stopped with a full pipe, or is missing
            log.warning("reaper.lost", pid=self._process.pid, error=str(error))
            self._process.kill()
            self._process.communicate()
            try:
                self._process = self._start()
            except OSError as reason:  # the next line tries again: programs without a reaper are better than none
                log.error("reaper.missing", error=str(reason))  # noqa: TRY400 -- the reason says it all

    def _start(self) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", _SCRIPT, str(self._grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the agent
        )
        assert process.stdin is not None  # noqa: S101 -- same
        os.set_blocking(process.stdin.fileno(), False)
        if self._groups:
            os.write(process.stdin.fileno(), "".join(f"+{group}\n" for group in sorted(self._groups)).encode())
        return process
