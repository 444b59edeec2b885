"""The sessions in a document, typed as a reader types them: ``coord up`` first, servers in the background."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import re
import shlex
import signal
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from tests.coord_up import Start
from tests.ports import unused_port
from tests.repo.documents import without_reasons
from tests.waiting import wait_until

#: For one command, on a machine with much to do.
LONG_S = 120.0
#: Commands that stay until the end of the session.
STAYING = re.compile(r"coord agent |\S+/uvicorn |\S+/python \S+ runserver ")
#: The port of a server, in its own command and in others.
PORT = re.compile(r"(?<=--port )\d+|(?<=--noreload )\d+")


class Line(NamedTuple):
    """A command, and what the document shows that it prints; empty: not shown."""

    typed: str
    shown: str


def lines_of(document: Path, heading: str = "") -> list[Line]:
    """Return what is typed in a document, or below one of its headings up to the next one of the same level."""
    text = document.read_text()
    if heading:
        begin = text.index(f"\n{heading}\n")
        end = re.compile(rf"^#{{1,{heading.count('#')}}} ", re.MULTILINE).search(text, begin + len(heading) + 2)
        text = text[begin : end.start() if end else len(text)]
    found: list[Line] = []
    for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        for line in block.splitlines():
            if line.startswith("$ "):
                found.append(Line(line.removeprefix("$ "), ""))
            else:
                found[-1] = Line(found[-1].typed, f"{found[-1].shown}{line}\n")
    assert found, f"no session in {document.name} {heading}"
    return found


class Session:
    """Types commands in a folder.

    Args:
        start: starts ``coord up``, and ends it after the test.
        folder: the root of the repository, or a copy of it.
    """

    def __init__(self, start: Start, folder: Path) -> None:
        self._start = start
        self._folder = folder
        self._staying: list[Process] = []
        self.ports: dict[str, str] = {}  #: port in the document -> the one that is used

    async def type(self, lines: Sequence[Line]) -> None:
        """Type commands in their order; each has to print what is shown, where three dots stand for anything."""
        for line in lines:
            command = self._with_unused_ports(line.typed)
            if command.startswith("coord up"):
                await self._up(shlex.split(command)[2:])
            elif STAYING.match(command):
                await self._stay(command)
            else:
                code, output = await self.output_of(command)
                output = without_reasons(output)
                if line.shown:
                    pattern = line.shown.rstrip().replace("[", "[[]").replace("…", "*")
                    assert fnmatch.fnmatchcase(output.rstrip(), pattern), f"{command}\n{output}instead of\n{line.shown}"
                else:
                    assert code in (0, -signal.SIGKILL), f"{command}\n{output}"

    async def output_of(self, command: str) -> tuple[int, str]:
        """Return the exit code of a command, and what it has written."""
        process = await self._process(command, subprocess.PIPE)
        try:
            out, _ = await asyncio.wait_for(process.communicate(), LONG_S)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        assert process.returncode is not None
        return process.returncode, out.decode()

    async def _up(self, arguments: Sequence[str]) -> None:
        """Start ``coord up``; its agents may still be starting, because tasks wait for them."""
        options = [str(self._folder / word) if word.endswith(".toml") else word for word in arguments]
        await self._start(*options, "--push-workers", "0").ready()

    async def _stay(self, command: str) -> None:
        """Start a server, and wait until its port is open; tasks wait for an agent."""
        process = await self._process(f"exec {command}", None)
        self._staying.append(process)
        port = PORT.search(command)
        if port is None:
            return

        async def is_open() -> bool:
            assert process.returncode is None, f"{command} has ended"
            with suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", int(port[0]))
                writer.close()
                return True
            return False

        await wait_until(is_open, f"{command} listens", LONG_S)

    async def _process(self, command: str, out: int | None) -> Process:
        return await asyncio.create_subprocess_shell(
            command,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=self._folder,
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT if out else None,
            start_new_session=True,
        )

    def _with_unused_ports(self, command: str) -> str:
        """Replace the ports of the document, which may be in use."""
        for port in PORT.findall(command):
            self.ports[port] = str(unused_port())
        for port, unused in self.ports.items():
            command = re.sub(rf"\b{port}\b", unused, command)
        return command

    async def end(self) -> None:
        """End the servers that stay."""
        for process in self._staying:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._staying:
            try:
                await asyncio.wait_for(process.wait(), LONG_S)
            except TimeoutError:
                os.killpg(process.pid, signal.SIGKILL)
                raise
