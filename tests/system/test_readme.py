"""The agents and clients of README.md, as they stand there, on a cell that `coord up` has started."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import sys
from asyncio.subprocess import PIPE, Process
from contextlib import suppress
from pathlib import Path

import pytest

from coord import Client
from coord.errors import TaskFailed
from tests.coord_up import Start
from tests.repo.code_blocks import blocks_run_by
from tests.repo.documents import ROOT
from tests.waiting import wait_until

README = ROOT / "README.md"
THIS = "tests/system/test_readme.py::test_the_agents_of_the_readme_work"
TOOLS = ("bash", "curl", "jq", "node")
LIMIT_S = 60.0


class Newcomer:
    """Copies the blocks of the first page into files and terminals; ``port`` is that of the gateway."""

    def __init__(self, folder: Path, port: int) -> None:
        self._folder = folder
        self._port = str(port)
        self._serving: list[Process] = []

    async def start(self, language: str, text: str) -> Process:
        """Run a block."""
        suffix, program = {"python": (".py", sys.executable), "javascript": (".mjs", "node"), "sh": (".sh", "bash")}[
            language
        ]
        place = self._folder / f"block{len(list(self._folder.iterdir()))}{suffix}"
        place.write_text(text.replace("9001", self._port))
        environ = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        return await asyncio.create_subprocess_exec(
            program, str(place), cwd=self._folder, env=environ, stdout=PIPE, stderr=PIPE, start_new_session=True
        )

    async def serve(self, language: str, text: str) -> None:
        """Run a block that stays."""
        self._serving.append(await self.start(language, text))

    async def prints(self, language: str, text: str) -> str:
        """What a block has printed when it has ended."""
        process = await self.start(language, text)
        out, errors = await asyncio.wait_for(process.communicate(), LIMIT_S)
        assert process.returncode == 0, errors.decode()
        return out.decode()

    async def end(self) -> None:
        """Close the terminals."""
        for process in self._serving:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
        for process in self._serving:
            await asyncio.wait_for(process.communicate(), LIMIT_S)


@pytest.mark.skipif(
    not all(map(shutil.which, TOOLS)) and not os.environ.get("CI"),
    reason=f"one of {', '.join(TOOLS)} is missing; apt-get install curl jq nodejs",
)
@pytest.mark.timeout(300)
async def test_the_agents_of_the_readme_work(start: Start, tmp_path: Path, unused_port: int) -> None:
    """Each of the four does a task; the clients print what comes back; a bad payload fails its task alone."""
    up = start("--port", str(unused_port))
    endpoint = await up.ready()
    (tmp_path / "newcomer").mkdir()
    newcomer = Newcomer(tmp_path / "newcomer", unused_port)
    blocks = [(block.language, block.text) for block in blocks_run_by(README, THIS)]
    agent, bash, javascript, by_hand, command, client = blocks
    assert [language for language, _ in blocks] == ["python", "sh", "javascript", "sh", "sh", "python"]
    try:
        async with Client(endpoint.url) as reader:

            async def gateway_answers() -> bool:
                return await newcomer.prints("sh", "curl -s localhost:9001/health/ready || true") != ""

            await wait_until(gateway_answers, "the gateway answers", LIMIT_S)
            for block in (agent, bash, javascript):
                await newcomer.serve(*block)

            async def agents_are_there() -> bool:
                page = await reader.discover(status="active")
                return {"summarize", "count_words", "upper"} <= {
                    name for one in page.agents for name in one.capabilities
                }

            await wait_until(agents_are_there, "the agents are there", LIMIT_S)
            assert await newcomer.prints(*client) == "{'text': 'A long story.'}\n"
            assert await newcomer.prints(*command) == "3\n"
            bad = await reader.submit("upper", {"text": 5}, capabilities=["upper"], retry={"max_attempts": 1})
            with pytest.raises(TaskFailed, match=r"handler_failed: TypeError: .*toUpperCase is not a function"):
                await bad.result(timeout=LIMIT_S)
            assert (await reader.agent("upper-1")).heartbeat_interval == 10
            handle = await reader.submit("upper", {"text": "quiet"}, capabilities=["upper"])
            assert await handle.result(timeout=LIMIT_S) == {"text": "QUIET"}
            answers = [json.loads(line) for line in (await newcomer.prints(*by_hand)).splitlines()]
            assert len(answers) == 5, "each on a line of its own"
            assert answers[-1]["task"]["result"] == {"signed": True}
    finally:
        await newcomer.end()
