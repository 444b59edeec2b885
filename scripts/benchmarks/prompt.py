"""The other end of a ``Child``: how a program hears the driver's words, and answers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop


class Prompt:
    """The driver's words, one a line. When they end, the driver is gone, and so is this process."""

    def __init__(self) -> None:
        # Whatever else this process prints goes to its log.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._words: asyncio.Queue[str] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Begin to listen."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._reading = asyncio.create_task(self._read(reader))

    async def ready(self) -> None:
        """Say that everything is prepared, and wait for the word to begin."""
        self.say("ready")
        await self.word()

    async def word(self) -> str:
        """The next word."""
        return await self._words.get()

    def say(self, value: object) -> None:
        """Answer with one line of JSON."""
        os.write(self._out, json.dumps(value).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._words.put_nowait(line.decode().strip())
        os._exit(1)


def main(work: Callable[[Prompt, dict[str, Any]], Awaitable[None]]) -> None:
    """Run a program with the options that the driver gave it as JSON."""

    async def run() -> None:
        prompt = Prompt()
        await prompt.open()
        await work(prompt, json.loads(sys.argv[1]))

    uvloop.run(run())
