"""The agent's side of the reaper: names the running process groups to it, so that none outlives the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from coord.logs import get_logger

log = get_logger()

_REAPER = str(Path(__file__).with_name("reaper.py"))


class Guard:
    """Ends the groups that it holds when this process is gone, even by SIGKILL.

    Args:
        grace_s: what a group has between SIGTERM and SIGKILL.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._held: set[int] = set()
        self._warden = self._start()

    @property
    def pid(self) -> int:
        """The warden's process id."""
        return self._warden.pid

    def hold(self, group: int) -> None:
        """A group has begun."""
        self._held.add(group)
        self._say(f"+{group}\n")

    def release(self, group: int) -> None:
        """A group has ended; its number may become another's from now on."""
        self._held.discard(group)
        self._say(f"-{group}\n")

    def close(self) -> None:
        """Let go, and wait until what is still held has been ended."""
        self._warden.communicate()

    def _say(self, line: str) -> None:
        assert self._warden.stdin is not None  # noqa: S101 -- for the type checker: it was started with a pipe
        try:
            os.write(self._warden.stdin.fileno(), line.encode())
        except (OSError, ValueError) as error:  # somebody killed it, or stopped it and the pipe is full; or see below
            log.warning("warden.lost", pid=self._warden.pid, error=str(error))
            self._warden.kill()
            self._warden.communicate()
            try:
                self._warden = self._start()
            except OSError as why:  # tried again with the next line: programs without a guard are better than none
                log.error("warden.missing", error=str(why))  # noqa: TRY400 -- the reason says it all

    def _start(self) -> subprocess.Popen[bytes]:
        warden = subprocess.Popen(
            [sys.executable, "-I", "-S", _REAPER, str(self._grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the agent
        )
        assert warden.stdin is not None  # noqa: S101 -- same
        os.set_blocking(warden.stdin.fileno(), False)
        if self._held:
            os.write(warden.stdin.fileno(), "".join(f"+{group}\n" for group in sorted(self._held)).encode())
        return warden
