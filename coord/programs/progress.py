"""Progress of one task: reports the newest line of a program, at most a few times per second."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Raw

from coord.agent.task import Task
from coord.codec import BAD_JSON, decode_json
from coord.programs.buffers import Lines

#: Seconds between two reports: often enough for a person, rare enough for a thousand programs with much output.
INTERVAL_S = 0.25
#: Maximum bytes of a line; longer ones are dropped.
MAX_LINE_BYTES = 64 * 1024


class Progress:
    """Reports the progress of one task; ``lines`` takes what the program writes."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._newest: bytes | Raw | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.lines = Lines(MAX_LINE_BYTES, self._on_line, lambda: None)

    def update(self, value: bytes | Raw) -> None:
        """Report a line, or JSON, now or after the interval."""
        self._newest = value
        if self._timer is None:
            self._flush()

    def close(self) -> None:
        """Report what is left."""
        self.lines.end()
        if self._timer is not None:
            self._timer.cancel()
        if self._newest is not None:
            self._report(self._newest)
            self._newest = None

    def _on_line(self, line: bytes) -> None:
        if line and not line.isspace():
            self.update(line)

    def _flush(self) -> None:
        self._timer = None
        if self._newest is not None:
            value, self._newest = self._newest, None
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._flush)
            self._report(value)

    def _report(self, value: bytes | Raw) -> None:
        self._task.report_progress(value if isinstance(value, Raw) else json_or_text(value))


def json_or_text(line: bytes) -> Any:
    """Return JSON as it is, anything else as text; bytes that are not UTF-8 are replaced."""
    try:
        decode_json(line)
    except BAD_JSON:
        return line.decode("utf-8", "replace").strip()
    return Raw(line)
