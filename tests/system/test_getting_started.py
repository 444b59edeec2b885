"""docs/getting-started.md as a newcomer goes through it: a cell, two agents, and everything that is typed."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.coord_up import Start
from tests.repo.documents import ROOT, blocks, without_reasons
from tests.waiting import wait_until

DOCUMENT = ROOT / "docs" / "getting-started.md"
#: For one command, on a machine with much to do; a killed agent is missed for 15 s.
LONG_S = 90.0
#: What stays, in a terminal of its own or behind the others.
STAYING = re.compile(r"python agent\.py|coord agent ")
#: What kills the last of these in the middle of its work.
KILLING = "sleep 3; kill -9 $!"
#: Tasks that any agent of a kind may do share a pool.
POOL = r"\b[0-9a-f]{16}\b"
#: What only looks, so that it may be typed again until it shows what the document shows.
LOOKING = re.compile(r"coord (ps|queues|events|fsck|agents list|tasks show) ?")


def lines() -> list[tuple[str, str]]:
    """What is typed, and what the document says that appears; nothing where it does not say."""
    found: list[tuple[str, str]] = []
    for block in blocks(DOCUMENT):
        for line in block.text.splitlines() if block.language == "console" else ():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


def shape(text: str) -> list[str]:
    """Text without what differs each time: ids, hosts, moments, lengths of time, numbers, widths of columns."""
    for pattern, word in (
        (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "ID"),
        (POOL, "POOL"),
        (r"(?m)^(memory: .* of .* \(\d+%\)): .*$", r"\1: KINDS"),  # sizes are close, so their order differs
        (r"\bgateway-\S+-\d+", "gateway-NAME"),
        (r"-[0-9a-f]{4}\b(?!-)", "-MARK"),
        (rf"\blaptop\b|{re.escape(socket.gethostname())}", "HOST"),
        (r"\b\d+(\.\d+)? (ms|s|min|h)( \d+ (s|min))?\b", "TIME"),
        (r'File ".+/agent\.py"', 'File "agent.py"'),
        (r"\d[\d,]*(\.\d+)?", "N"),
        (r" +", " "),
    ):
        text = re.sub(pattern, word, text)
    return [line.strip() for line in without_reasons(text).splitlines()]


class Newcomer:
    """Types commands in a folder that holds the document's two programs; its gateway has a port of its own."""

    def __init__(self, folder: Path, port: int) -> None:
        self.folder = folder
        self._port = str(port)
        self._staying: list[Process] = []

    async def start(self, line: str) -> Process:
        """A command as the shell understands it."""
        return await asyncio.create_subprocess_shell(
            line.replace("9001", self._port),
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
            cwd=self.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )

    async def stay(self, line: str) -> None:
        """A command that is left alone."""
        self._staying.append(await self.start(f"exec {line.removesuffix(' &')}"))

    async def kill(self, task_id: str) -> None:
        """Kill the last one that was left alone, once it works at this task."""

        async def runs() -> bool:
            return bool(re.search(r"^state +running$", await self.types(f"coord tasks show {task_id}"), re.MULTILINE))

        await wait_until(runs, f"{task_id} is running", LONG_S)
        killed = self._staying.pop()
        killed.kill()
        await killed.wait()

    async def types(self, line: str) -> str:
        """What a command has written when it has ended."""
        process = await self.start(line)
        try:
            out, _ = await asyncio.wait_for(process.communicate(), LONG_S)
        finally:
            if process.returncode is None:
                os.killpg(process.pid, signal.SIGKILL)
        return out.decode()

    async def end(self) -> None:
        """Close the terminals."""
        for process in self._staying:
            os.killpg(process.pid, signal.SIGTERM)
        for process in self._staying:
            await asyncio.wait_for(process.communicate(), LONG_S)


@pytest.fixture
async def newcomer(start: Start, tmp_path: Path, unused_port: int) -> AsyncIterator[Newcomer]:
    """A newcomer with a cell that is up, its gateway too."""
    up = start("--port", str(unused_port))
    await up.ready()
    agent, client = (block.text for block in blocks(DOCUMENT) if block.language == "python")
    (tmp_path / "agent.py").write_text(agent)
    (tmp_path / "client.py").write_text(client)
    newcomer = Newcomer(tmp_path, unused_port)

    async def answers() -> bool:
        return '"healthy"' in await newcomer.types("curl -s http://127.0.0.1:9001/health")

    await wait_until(answers, "the gateway answers", LONG_S)
    yield newcomer
    await newcomer.end()


@pytest.mark.timeout(400)
async def test_what_is_typed_shows_what_the_document_shows(newcomer: Newcomer) -> None:
    """In its order, each block as it stands there; what is one pool there is one, and what are two are two."""
    pools: set[tuple[str, str]] = set()
    for line, expected in lines():
        if STAYING.match(line):
            await newcomer.stay(line)
            continue
        if line == KILLING:
            await newcomer.kill("nap-a")
            continue

        async def shows(line: str = line, expected: str = expected) -> bool:
            said = await newcomer.types(line)
            fits = not expected or shape(said) == shape(expected)
            assert fits or LOOKING.match(line), f"{line}\n{said}instead of\n{expected}"
            if fits and expected:
                pools.update(zip(re.findall(POOL, expected), re.findall(POOL, said), strict=True))
            return fits

        await wait_until(shows, f"{line} shows what the document says", LONG_S)
    assert len({told for told, _ in pools}) == len({real for _, real in pools}) == len(pools) > 1
