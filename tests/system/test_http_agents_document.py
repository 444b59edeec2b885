"""The session of an agent that polls, as docs/http.md shows it, typed into a shell."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from coord.keys import CONSUMES
from tests.http import HttpCaller
from tests.processes import CellProcesses, cell_processes
from tests.repo.documents import ROOT, blocks
from tests.system.gateway_processes import PATIENT, gateway

needs_tools = pytest.mark.skipif(
    not (shutil.which("curl") and shutil.which("jq")) and not os.environ.get("CI"),
    reason="curl or jq is missing: apt-get install curl jq",
)


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A cell with one worker of each kind that consumes facts."""
    async with cell_processes(tmp_path) as built:
        await asyncio.gather(*(built.worker(kind) for kind in CONSUMES))
        yield built


@needs_tools
async def test_the_session_of_an_agent_that_polls(at: CellProcesses, unused_port: int) -> None:
    """Every request succeeds, and the task is completed with the result that the page shows."""
    await gateway(at, HttpCaller(unused_port), **PATIENT)
    (session,) = [block.text for block in blocks(ROOT / "docs" / "http.md") if "reader/inbox" in block.text]
    lines = session.replace("\\\n", " ").replace("localhost:9001", f"localhost:{unused_port}").splitlines()
    script = "\n".join(line if "> inbox.json" in line else f"{line}; echo" for line in lines)
    shell = await asyncio.create_subprocess_exec("bash", "-c", script, stdout=asyncio.subprocess.PIPE, cwd=at.folder)
    out, _ = await asyncio.wait_for(shell.communicate(), 60)
    answers = [json.loads(line) for line in out.splitlines()]
    assert [answer["status"] for answer in answers] == ["success"] * 7, answers
    task = answers[-1]["task"]
    assert (task["state"], task["agent_id"], task["result"]) == ("completed", "reader", {"words": 312})
    assert len(answers[2]["acknowledged"]) == 1
