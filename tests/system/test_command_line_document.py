"""docs/command-line.md on a live cell: its commands print its outputs, except for times and ids."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from coord.config import Settings
from coord.embedded import EmbeddedServer
from tests.processes import started
from tests.repo.documents import ROOT, blocks, without_reasons
from tests.system.live_cell import LiveCell, command_runner, live_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

DOCUMENT = ROOT / "docs" / "command-line.md"
#: What differs from run to run -> how it is compared.
VARIES = (
    (r"[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[0-9a-f]{4}-[0-9a-f]{12}", "ID"),
    (r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", "MOMENT"),
    (r"\b\d+(\.\d+)? (ms|s)\b|\b\d+ min \d+ s\b", "LENGTH"),
    (r"[\d,]+ per second", "RATE"),
    (r'"seconds":[\d.]+', "SECONDS"),
    (r'"id":"\d+-\d+"', "ENTRY"),
    (r"\b[0-9a-f]{16}\b", "POOL"),
    (r"is (queued|assigned|running|failed) again", "is MOVING again"),
    (r"[ \t]+", " "),
)


@pytest.fixture(scope="module")
def live(server: EmbeddedServer) -> Iterator[LiveCell]:
    """A cell of this document's own."""
    with live_cell(server.url, Settings(namespace="clidocument")) as cell:
        yield cell


def python_block() -> str:
    """The document's agent."""
    (found,) = [block.text for block in blocks(DOCUMENT) if block.language == "python"]
    return found


def dialogue() -> list[tuple[str, list[str]]]:
    """Each line that is typed in the sections on this cell's work, and the lines that are printed then."""
    found: list[tuple[str, list[str]]] = []
    for block in blocks(DOCUMENT):
        for line in block.text.splitlines() if block.language == "console" else ():
            if line.startswith("$ "):
                found.append((line.removeprefix("$ "), []))
            else:
                found[-1][1].append(line)
    return [one for one in found if re.search(r"\bcoord (tasks|queues|pools|messages|events)\b|results\.jsonl", one[0])]


def compared(lines: list[str], typed: str) -> list[str]:
    """The lines as they are compared."""
    for pattern, word in VARIES:
        lines = [re.sub(pattern, word, line).strip() for line in lines]
    if " watch " not in typed:
        return lines
    # Tasks move on while somebody begins to look: what comes before their end may be passed over.
    return sorted(line for line in lines if re.search(r" (completed|failed) on ", line))


@pytest.mark.timeout(600)
@pytest.mark.skipif(not shutil.which("jq"), reason="no jq on PATH; apt-get install jq")
def test_what_is_typed_prints_what_is_said(
    live: LiveCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In the document's order."""
    coord = command_runner(live, monkeypatch, capsys)
    environ = os.environ | live.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    monkeypatch.chdir(tmp_path)

    def output(typed: str) -> str:
        words = shlex.split(typed)
        if words[0] == "coord" and "|" not in words:
            result = coord(*words[1:])
            return result.err + result.out
        command = ["/bin/bash", "-c", typed]
        return subprocess.run(
            command, env=environ, text=True, check=False, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        ).stdout

    with started([sys.executable, "-c", python_block()], env=environ, stdin=subprocess.DEVNULL) as agent:
        try:
            live.do(wait_until(lambda: _is_active(live, "ocr-1"), "the agent is there", 60))
            for typed, printed in dialogue():
                assert compared(without_reasons(output(typed)).splitlines(), typed) == compared(printed, typed), typed
        finally:
            agent.terminate()


async def _is_active(live: LiveCell, agent_id: str) -> bool:
    return bool(await live.client.connection.redis.sismember(live.keys.of("agents:active"), agent_id))
