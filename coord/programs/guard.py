"""The agent's side of the leash: tells a process of its own which groups run, so that none outlives the agent."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from coord.logs import get_logger

log = get_logger()

_LEASH = str(Path(__file__).with_name("leash.py"))


class Guard:
    """Ends the groups that it holds when this process is gone, even by SIGKILL.

    Args:
        grace_s: what a group has between SIGTERM and SIGKILL.
    """

    def __init__(self, grace_s: float) -> None:
        self._grace_s = grace_s
        self._held: set[int] = set()
        self._leash = self._start()

    @property
    def pid(self) -> int:
        """The leash's process id."""
        return self._leash.pid

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
        self._leash.communicate()

    def _say(self, line: str) -> None:
        assert self._leash.stdin is not None  # noqa: S101 -- for the type checker: it was started with a pipe
        try:
            os.write(self._leash.stdin.fileno(), line.encode())
        except OSError as error:  # somebody killed it, or stopped it and the pipe is full
            log.warning("leash.lost", pid=self._leash.pid, error=str(error))
            self._leash.kill()
            self._leash.communicate()
            self._leash = self._start()

    def _start(self) -> subprocess.Popen[bytes]:
        leash = subprocess.Popen(
            [sys.executable, "-I", "-S", _LEASH, str(self._grace_s)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            bufsize=0,
            start_new_session=True,  # Ctrl-C is for the agent
        )
        assert leash.stdin is not None  # noqa: S101 -- same
        os.set_blocking(leash.stdin.fileno(), False)
        if self._held:
            os.write(leash.stdin.fileno(), "".join(f"+{group}\n" for group in sorted(self._held)).encode())
        return leash
