"""The wall clock, in one place, so that tests can find its users.

Scripts take their time from the server. This clock is only for what a process reports about itself.
"""

from __future__ import annotations

import time


def now_ms() -> int:
    """Return milliseconds since 1970-01-01 UTC on this machine's clock."""
    return time.time_ns() // 1_000_000
