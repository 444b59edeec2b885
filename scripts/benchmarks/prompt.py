"""The program's end of a ``Child``: receives the commands of the driver and answers."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import uvloop


class Prompt:
    """The commands of the driver, one per line. At their end the driver is gone, and this process exits."""

    def __init__(self) -> None:
        # All other output of this process goes to its log.
        self._out = os.dup(1)
        os.dup2(2, 1)
        self._commands: asyncio.Queue[str] = asyncio.Queue()
        self._reading: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Start to receive."""
        reader = asyncio.StreamReader()
        loop = asyncio.get_running_loop()
        await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        self._reading = asyncio.create_task(self._read(reader))

    async def ready(self) -> None:
        """Report that all is prepared, and wait for the command to start."""
        self.send("ready")
        await self.receive()

    async def receive(self) -> str:
        """Return the next command."""
        return await self._commands.get()

    def send(self, value: object) -> None:
        """Answer with one line of JSON."""
        os.write(self._out, json.dumps(value).encode() + b"\n")

    async def _read(self, reader: asyncio.StreamReader) -> None:
        while line := await reader.readline():
            self._commands.put_nowait(line.decode().strip())
        os._exit(1)


def main(work: Callable[[Prompt, dict[str, Any]], Awaitable[None]]) -> None:
    """Run a program with its options, which are JSON in the first argument."""

    async def run() -> None:
        prompt = Prompt()
        await prompt.open()
        await work(prompt, json.loads(sys.argv[1]))

    uvloop.run(run())
