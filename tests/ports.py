"""TCP ports for the servers that a test starts; the system gives none of them to anybody else meanwhile.

They lie below those that it hands out for outgoing connections (Linux: 32768 and up), where a port that was free a
moment ago may be somebody's end of a connection now. Each process of the test run has its own.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import socket

#: All of them, and how many a process has: there are at most 8 (``scripts/test`` starts fewer).
FIRST, SHARE = 16_000, 2_000

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8
#: One after the other, so that a port is long unused before it comes again; two test runs at once begin apart.
_NEXT = itertools.count(random.randrange(SHARE))


def unused_ports(count: int) -> list[int]:
    """Different ports of 127.0.0.1 that nobody listens on at the moment."""
    found: list[int] = []
    for _ in range(SHARE):
        port = FIRST + _WORKER * SHARE + next(_NEXT) % SHARE
        with contextlib.suppress(OSError), socket.socket() as probe:
            probe.bind(("127.0.0.1", port))
            found.append(port)
        if len(found) == count:
            return found
    raise AssertionError(f"none of {SHARE} ports from {FIRST + _WORKER * SHARE} on is unused")


def unused_port() -> int:
    """One of them."""
    return unused_ports(1)[0]
