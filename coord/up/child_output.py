"""What a program writes, line by line: its standard output and error are one pipe, which ends with the last holder."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable

#: A longer line is handed on in pieces, so that a program that never ends one does not fill our memory.
LONGEST_BYTES = 256 * 1024
#: After a program's end: how long a grandchild that holds its output open is listened to.
GRANDCHILD_S = 0.5


class ChildOutput(asyncio.Protocol):
    """The reading end of one program's output.

    Args:
        hear: called with each line that is not empty, without its end; bytes that are no UTF-8 are replaced.
    """

    def __init__(self, hear: Callable[[str], None]) -> None:
        self._hear = hear
        self._rest = bytearray()
        self._closed = asyncio.Event()
        self._transport: asyncio.ReadTransport | None = None
        #: The last line so far that has a word in it.
        self.last = ""

    async def open(self) -> int:
        """Begin to listen; the end to write to, which the caller closes once the program has it."""
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
        """Hear what is still there, and stop listening."""
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
        while len(rest) > LONGEST_BYTES:
            lines.append(rest[:LONGEST_BYTES])
            del rest[:LONGEST_BYTES]
        self._rest = rest
        for line in lines:
            self._tell(line)

    def connection_lost(self, _error: Exception | None) -> None:
        """Called by the event loop at the end, and after ``close``."""
        if not self._closed.is_set():
            self._closed.set()
            self._tell(self._rest)
            self._rest = bytearray()

    def _tell(self, line: bytes | bytearray) -> None:
        text = line.decode("utf-8", "replace").rstrip()
        if text:
            self.last = text if any(map(str.isalnum, text)) else self.last
            self._hear(text)
