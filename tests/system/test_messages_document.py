"""docs/messages.md on a live cell: each of its programs prints what the document shows."""

from __future__ import annotations

import asyncio
import itertools
import sys
from pathlib import Path

import pytest

from tests.repo.documents import ROOT, blocks
from tests.system.program_fleet import LONG_S, Fleet

DOCUMENT = ROOT / "docs" / "messages.md"


def programs() -> list[tuple[str, str]]:
    """Each Python block, and the output in the block after it."""
    found = blocks(DOCUMENT)
    return [(one.text, after.text) for one, after in itertools.pairwise(found) if one.language == "python"]


@pytest.mark.timeout(120)
async def test_each_program_prints_what_the_document_shows(fleet: Fleet, tmp_path: Path) -> None:
    """In the document's order."""
    assert programs()
    for number, (text, expected) in enumerate(programs()):
        path = tmp_path / f"program_{number}.py"
        path.write_text(text)
        process = await asyncio.create_subprocess_exec(
            sys.executable, path, env=fleet.environ(), cwd=tmp_path,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, errors = await asyncio.wait_for(process.communicate(), LONG_S)
        assert (process.returncode, out.decode()) == (0, expected), errors.decode()
