"""docs/sdk.md on a live cell: its agent serves, and each of its programs prints what the document shows."""

from __future__ import annotations

import asyncio
import fnmatch
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.repo.documents import ROOT, blocks
from tests.system.program_fleet import LONG_S, Fleet
from tests.waiting import wait_until

DOCUMENT = ROOT / "docs" / "sdk.md"
#: How a program ends that serves until it is stopped.
SERVES = "agent.run()"


def programs() -> list[tuple[str, str]]:
    """Each Python block, and the output that the block after it shows; empty for one without output."""
    found: list[tuple[str, str]] = []
    for block in blocks(DOCUMENT):
        if block.language == "python":
            found.append((block.text, ""))
        else:
            assert not block.language
            assert not found[-1][1]
            found[-1] = (found[-1][0], block.text)
    return found


def agent_program() -> str:
    """The program that serves while the others run."""
    (found,) = [text for text, _ in programs() if text.rstrip().endswith(SERVES)]
    return found


@pytest.fixture
async def serving(fleet: Fleet, tmp_path: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """The document's agent as a process of its own, once it may be given work."""
    agent = await start(fleet, tmp_path / "agent.py", agent_program())
    key = fleet.cell.keys.of("agents:active")

    async def is_active() -> bool:
        assert agent.returncode is None
        return bool(await fleet.cell.redis.sismember(key, "reader-1"))

    await wait_until(is_active, "the agent is active", LONG_S)
    yield agent
    if agent.returncode is None:
        agent.kill()
        await agent.communicate()


async def start(fleet: Fleet, path: Path, text: str) -> asyncio.subprocess.Process:
    """Run a program of the document on the cell."""
    path.write_text(text)
    return await asyncio.create_subprocess_exec(
        sys.executable, path, env=fleet.environ(), cwd=path.parent,
        stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.timeout(300)
async def test_each_program_prints_what_the_document_shows(
    fleet: Fleet, serving: asyncio.subprocess.Process, tmp_path: Path
) -> None:
    """In the document's order; three dots stand for anything. The agent then shuts down gracefully."""
    differing: list[str] = []
    ran = 0
    for number, (text, expected) in enumerate(programs()):
        if text == agent_program():
            continue
        process = await start(fleet, tmp_path / f"program_{number}.py", text)
        out, _ = await asyncio.wait_for(process.communicate(), LONG_S)
        ran += 1
        shown = expected.replace("[", "[[]").replace("…", "*")
        if process.returncode or not fnmatch.fnmatchcase(out.decode(), shown):
            differing.append(f"{text}\n{out.decode()}instead of\n{expected}")
    assert not differing, "\n".join(differing)
    assert ran == 14

    serving.terminate()
    out, _ = await asyncio.wait_for(serving.communicate(), LONG_S)
    assert serving.returncode == 0
    assert {"scan: clean up", "ops: {'text': 'reload'}"} <= set(out.decode().splitlines())
