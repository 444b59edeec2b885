"""The reaper process: ends the programs of an agent when the agent's process is gone, whatever ended it.

Standard input is a pipe from the agent. ``+123`` adds process group 123, ``-123`` removes it. When the pipe closes, the
remaining groups get SIGTERM, then SIGKILL after the number of seconds in the first argument. This file runs as a script
on a bare interpreter and imports nothing of coord, so it starts in milliseconds and needs little memory.
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: Seconds between two checks for groups that still exist.
POLL_S = 0.02


def main() -> None:
    """Wait until the agent is gone, then end its remaining groups."""
    grace_s = float(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # the pipe ends this process, after its groups
    groups: set[int] = set()
    with os.fdopen(0, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            group = int(line[1:])
            if line[:1] == b"+":
                groups.add(group)
            else:
                groups.discard(group)
    end(groups, grace_s)


def end(groups: set[int], grace_s: float) -> None:
    """Send SIGTERM to all groups, and SIGKILL to those that still exist after ``grace_s`` seconds."""
    left = {group for group in groups if _send(group, signal.SIGTERM)}
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(POLL_S)
        left = {group for group in left if _send(group, 0)}
    for group in left:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Send a signal; return True if the group exists."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter: a group of another user, or one of zombies alone
        return False
    return True


if __name__ == "__main__":
    main()
