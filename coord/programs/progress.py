"""Progress of one task: the newest word of a program counts, and it is passed on a few times a second at most."""

from __future__ import annotations

import asyncio
from typing import Any

from msgspec import Raw

from coord.agent.task import Task
from coord.codec import BAD_JSON, decode_json
from coord.programs.lines import Lines

#: Between two reports: often enough for an eye, seldom enough for a thousand chatty programs.
INTERVAL_S = 0.25
#: The longest line; a longer one is left out.
LONGEST = 64 * 1024


class Progress:
    """What a program says of one task."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._newest: bytes | Raw | None = None
        self._timer: asyncio.TimerHandle | None = None
        self.lines = Lines(LONGEST, self._line, lambda: None)

    def tell(self, value: bytes | Raw) -> None:
        """Pass on a line, or JSON, now or soon."""
        self._newest = value
        if self._timer is None:
            self._pass_on()

    def close(self) -> None:
        """Pass on what is left."""
        self.lines.end()
        if self._timer is not None:
            self._timer.cancel()
        if self._newest is not None:
            self._report(self._newest)
            self._newest = None

    def _line(self, line: bytes) -> None:
        if line and not line.isspace():
            self.tell(line)

    def _pass_on(self) -> None:
        self._timer = None
        if self._newest is not None:
            value, self._newest = self._newest, None
            self._timer = asyncio.get_running_loop().call_later(INTERVAL_S, self._pass_on)
            self._report(value)

    def _report(self, value: bytes | Raw) -> None:
        self._task.report_progress(value if isinstance(value, Raw) else json_or_text(value))


def json_or_text(said: bytes) -> Any:
    """JSON as it stands, else text; what is no UTF-8 is replaced."""
    try:
        decode_json(said)
    except BAD_JSON:
        return said.decode("utf-8", "replace").strip()
    return Raw(said)
