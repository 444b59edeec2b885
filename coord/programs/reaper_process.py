"""The process that ends programs when the agent that started them is gone, however it went.

Standard input is a pipe from the agent: ``+123`` a group begins, ``-123`` it has ended. When the pipe closes, whatever
has begun and not ended gets SIGTERM, and SIGKILL after so many seconds as the first argument says. It is run by its
path, on a bare interpreter: it imports nothing of coord, so that it starts in milliseconds and stays small.
"""

from __future__ import annotations

import os
import signal
import sys
import time

#: Between two looks at whether the groups have ended.
LOOK_S = 0.02


def main() -> None:
    """Wait for the end of the agent, then end what it left."""
    grace_s = float(sys.argv[1])
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # whoever ends the agent ends this one with it, by the pipe
    held: set[int] = set()
    with os.fdopen(0, "rb") as lines:
        for line in lines:
            if not line.endswith(b"\n"):
                break
            group = int(line[1:])
            if line[:1] == b"+":
                held.add(group)
            else:
                held.discard(group)
    end(held, grace_s)


def end(groups: set[int], grace_s: float) -> None:
    """SIGTERM to all, SIGKILL to those that are left after ``grace_s``."""
    left = {group for group in groups if _send(group, signal.SIGTERM)}
    deadline = time.monotonic() + grace_s
    while left and time.monotonic() < deadline:
        time.sleep(LOOK_S)
        left = {group for group in left if _send(group, 0)}
    for group in left:
        _send(group, signal.SIGKILL)


def _send(group: int, number: int) -> bool:
    """Whether there is such a group."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # the latter: of another user, or nothing but the dead
        return False
    return True


if __name__ == "__main__":
    main()
