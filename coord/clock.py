"""The wall clock, in one place, so that tests can see who reads it.

Scripts take their time from the server; this clock is only for what a process says about itself.
"""

from __future__ import annotations

import time


def now_ms() -> int:
    """Milliseconds since 1970-01-01 UTC by this machine's clock."""
    return time.time_ns() // 1_000_000
