"""The standard streams of a program: the payload of a task as input, and its output in bounded memory.

Output is split into lines, its end is kept, and the newest line is reported as progress, at most a few times a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from enum import StrEnum
from typing import Any

from msgspec import Raw

from coord.agent.task import NonRetryable, Task
from coord.codec import BAD_JSON, decode_json


class Input(StrEnum):
    """How the payload is written to standard input."""

    JSON = "json"  #: as JSON, followed by a newline
    TEXT = "text"  #: a payload that is text, unchanged: no quotes, no escapes, no added newline


def stdin_bytes(task: Task, input_format: Input) -> bytes:
    """Return the standard input of a program for one task.

    Raises:
        NonRetryable: ``input_format`` is text and the payload is not.
    """
    if input_format is Input.JSON:
        return task.payload_json + b"\n"
    try:
        payload = task.payload
    except BAD_JSON as error:
        raise NonRetryable("payload_invalid", f"payload: {error}") from None
    if not isinstance(payload, str):
        raise NonRetryable(
            "payload_invalid",
            f"this agent passes text to its program (--input text), so the payload must be text, "
            f"not {_type_name(payload)}; submit text, or start the agent with --input json",
        )
    return payload.encode()


def _type_name(value: Any) -> str:
    names = {dict: "an object", list: "an array", bool: "a boolean", type(None): "null"}
    return names.get(type(value), "a number")


class Lines:
    """Splits data into lines.

    Args:
        limit: maximum number of bytes of a line; a longer line is dropped.
        on_line: called with each line, without its end.
        on_drop: called once for each dropped line.
    """

    def __init__(self, limit: int, on_line: Callable[[bytes], None], on_drop: Callable[[], None]) -> None:
        self._limit = limit
        self._on_line = on_line
        self._on_drop = on_drop
        self._kept = bytearray()
        self._is_skipping = False

    def feed(self, data: bytes) -> None:
        """Add data."""
        *whole, rest = data.split(b"\n")
        for piece in whole:
            self._keep(piece)
            if not self._is_skipping:
                line = bytes(self._kept)
                self._kept.clear()
                self._on_line(line)
            self._is_skipping = False
        self._keep(rest)

    def end(self) -> None:
        """End the data: the rest is a line too."""
        if self._kept:
            self.feed(b"\n")

    def _keep(self, piece: bytes) -> None:
        if self._is_skipping:
            return
        self._kept += piece
        if len(self._kept) > self._limit:
            self._kept.clear()
            self._is_skipping = True
            self._on_drop()


class Tail:
    """Keeps the last ``limit`` bytes of a text."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._kept = bytearray()
        self._is_cut = False

    def feed(self, data: bytes) -> None:
        """Add data."""
        self._kept += data[-self._limit :]
        excess = len(self._kept) - self._limit
        self._is_cut = self._is_cut or excess > 0 or len(data) > self._limit
        if excess > 0:
            del self._kept[:excess]

    def text(self) -> str:
        """Return the text without surrounding whitespace; bytes that are not UTF-8 are replaced."""
        text = self._kept.decode("utf-8", "replace").strip()
        return "… " + text.lstrip("\ufffd") if self._is_cut else text


class LimitedOutput:
    """Collects output up to ``limit`` bytes; on more it drops all and calls ``on_overflow``, which may be set later."""

    def __init__(self, limit: int) -> None:
        self.kept = bytearray()
        self.has_overflowed = False
        self.on_overflow: Callable[[], None] = lambda: None
        self._limit = limit

    def feed(self, data: bytes) -> None:
        """Add data."""
        if self.has_overflowed:
            return
        self.kept += data
        if len(self.kept) > self._limit:
            self.kept.clear()
            self.has_overflowed = True
            self.on_overflow()


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
