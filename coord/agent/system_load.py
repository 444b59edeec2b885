"""How busy this machine is: what an agent's beats say. Looked up once a second at most, for all agents together."""

from __future__ import annotations

import time

import psutil

_FRESH_S = 1.0
_at = float("-inf")
_found: dict[str, float] = {}


def load_metrics() -> dict[str, float]:
    """``cpu`` and ``memory`` of the machine as fractions; cpu is the mean since the last look, 0 at the first."""
    global _at, _found  # noqa: PLW0603 -- one machine, one look
    now = time.monotonic()
    if now - _at >= _FRESH_S:
        _at = now
        _found = {
            "cpu": round(psutil.cpu_percent(None) / 100, 3),
            "memory": round(psutil.virtual_memory().percent / 100, 3),
        }
    return _found
