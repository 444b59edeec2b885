"""Formats durations and sizes for people."""

from __future__ import annotations


def duration(ms: float) -> str:
    """Format a duration in milliseconds: 12 ms, 3.4 s, 5 min 6 s, 7 h 8 min, 9 d 10 h."""
    minutes, seconds = divmod(int(ms // 1000), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    if days:
        return f"{days} d {hours} h"
    if hours:
        return f"{hours} h {minutes} min"
    if minutes:
        return f"{minutes} min {seconds} s"
    return f"{ms / 1000:.1f} s" if ms >= 1000 else f"{ms:.0f} ms"


def size(count: float) -> str:
    """Format a number of bytes in KiB, MiB or GiB."""
    for unit in ("bytes", "KiB", "MiB"):
        if abs(count) < 1024:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} GiB"
