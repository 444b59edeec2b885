"""The output of a program, line by line: standard output and standard error share one pipe."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

#: A longer line is passed on in pieces, so that a program that never ends a line cannot fill the memory.
MAX_LINE_BYTES = 256 * 1024
#: Seconds for which output is read after a program's end while a grandchild holds the pipe open.
GRANDCHILD_S = 0.5


class ChildOutput(asyncio.Protocol):
    """The reading end of one program's output.

    Args:
        on_line: called with each non-empty line, without its end; bytes that are not UTF-8 are replaced.
    """

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._rest = bytearray()
        self._closed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None
        #: The last line with a letter or a digit.
        self.last_line = ""

    async def open(self) -> int:
        """Start to read; return the writing end, which the caller closes once the program has it."""
        reading, writing = os.pipe()
        try:
            self._transport, _ = await asyncio.get_running_loop().connect_read_pipe(
                lambda: self, os.fdopen(reading, "rb", 0)
            )
        except BaseException:
            os.close(writing)
            raise
        return writing

    async def close(self) -> None:
        """Read what is left, then stop reading."""
        try:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._closed.wait(), GRANDCHILD_S)
        finally:
            if self._transport is not None:
                self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Called by the event loop."""
        self._rest += data
        *lines, rest = self._rest.split(b"\n")
        while len(rest) > MAX_LINE_BYTES:
            lines.append(rest[:MAX_LINE_BYTES])
            del rest[:MAX_LINE_BYTES]
        self._rest = rest
        for line in lines:
            self._pass_on(line)

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the event loop at the end, and after ``close``."""
        if not self._closed.is_set():
            self._closed.set()
            self._pass_on(self._rest)
            self._rest = bytearray()

    def _pass_on(self, line: bytes | bytearray) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.last_line = text if any(map(str.isalnum, text)) else self.last_line
            self._on_line(text)
