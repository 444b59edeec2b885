"""docs/programs.md on a live cell: its agents are started, its tasks submitted, and they end as it says."""

from __future__ import annotations

import asyncio
import fnmatch
import os
import shlex
import sys
from pathlib import Path

import pytest

from tests.repo.documents import ROOT, blocks, without_reasons
from tests.system.program_fleet import LONG_S, Fleet

DOCUMENT = ROOT / "docs" / "programs.md"


def lines() -> list[tuple[list[str], str]]:
    """What is typed, in words, and what the document says that is printed."""
    found: list[tuple[list[str], str]] = []
    for block in blocks(DOCUMENT):
        for line in block.text.splitlines() if block.language == "console" else ():
            if line.startswith("$ "):
                found.append((shlex.split(line.removeprefix("$ ")), ""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + line + "\n")
    return found


@pytest.fixture
def interpreter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The examples' python3 is this one."""
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}:{os.environ['PATH']}")


async def test_what_is_typed_prints_what_is_said(fleet: Fleet, interpreter: None) -> None:
    """In the document's order; three dots stand for anything."""
    result: list[str] = []
    agents = 0
    for words, printed in lines():
        assert words[0] == "coord"
        if words[1] == "agent":
            await fleet.agent_in(ROOT, *words[2:])
            agents += 1
            continue
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coord.cli", *words[1:],
            env=fleet.environ(), stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        out, _ = await asyncio.wait_for(process.communicate(), LONG_S)
        if not fnmatch.fnmatchcase(without_reasons(out.decode()), printed.replace("[", "[[]").replace("…", "*")):
            result.append(f"{shlex.join(words)}\n{out.decode()}instead of\n{printed}")
    assert result == []
    assert agents == 3
