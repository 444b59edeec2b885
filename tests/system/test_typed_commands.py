"""Commands that documents show without an output, typed on a live cell: operating.md, command-line.md and others.

Each line ends with 0 and without a traceback. An id in a document stands for one of this cell, see ``Ids``.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coord import Agent, NonRetryable, Task
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.models.tasks import TaskState
from coord.placement import STRATEGIES
from coord.simulation import replay
from tests.repo.code_blocks import blocks_run_by
from tests.repo.documents import ROOT, Block, typed
from tests.system.live_cell import LiveCell, command_runner, live_cell
from tests.waiting import wait_until

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

THIS = "tests/system/test_typed_commands.py"
DOCUMENTS = ("operating.md", "command-line.md", "placement.md")
#: What goes on until Ctrl-C; tests/system/test_cli_happenings.py and tests/stories type these.
FOLLOWING = re.compile(r"coord (agents watch|events|trace spans)\b")
#: What a shell has to understand.
SHELL = re.compile(r"[|>]")
#: Commands whose answer is no -> exit code: some agents have no token, and the server of these tests keeps nothing.
OTHER = {"coord agents tokens --missing": 1, "coord doctor": 1}
LIMIT_S = 60.0


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveCell]:
    """A cell on a server of its own, because the commands make Redis users; with the agents of the documents."""
    server = EmbeddedServer.start(tmp_path_factory.mktemp("typed"), extra=("--appendonly", "no"))
    agents = [agent_of(server.url, name) for name in ("ocr-1", "ocr-2", "lead")]
    try:
        with live_cell(server.url, Settings(namespace="typed")) as cell:
            for agent in agents:
                cell.do(agent.start())
            try:
                yield cell
            finally:
                for agent in agents:
                    cell.do(agent.stop(grace=0))
    finally:
        server.stop(force=True)


def agent_of(url: str, name: str) -> Agent:
    """An agent whose tasks fail."""
    agent = Agent(name, url=url, settings=Settings(namespace="typed"), capabilities=["ocr"])

    @agent.task("ocr")
    async def ocr(task: Task) -> None:
        raise NonRetryable("unreadable", "page 13 is blank")

    return agent


class Ids:
    """What the ids in the documents stand for, made when a line names one."""

    def __init__(self, live: LiveCell, folder: Path) -> None:
        self._live = live
        self._folder = folder

    def resolve(self, line: str) -> str:
        """Return the line with ids of this cell."""
        for pattern, made in (
            (r"\bID\b|0197c0de-7b1a-7000-8000-000000000001", self._failed_task),
            (r"\b1769860800000-0\b", self._dead_entry),
            (r"\b0123456789ab\b", self._key),
            (r"\bplan-7\b(?!\.)", self._message),
            (r"/etc/coord/", lambda: f"{self._folder}/"),
        ):
            if re.search(pattern, line):
                line = re.sub(pattern, made(), line)
        return line

    def _failed_task(self) -> str:
        client = self._live.client

        async def fail() -> str:
            handle = await client.submit("ocr", retry={"max_attempts": 1})

            async def has_failed() -> bool:
                return (await client.task(handle.task_id)).state is TaskState.FAILED

            await handle.accepted(LIMIT_S)
            await wait_until(has_failed, "the task has failed", LIMIT_S)
            return handle.task_id

        return self._live.do(fail())

    def _dead_entry(self) -> str:
        connection = self._live.client.connection

        async def bury() -> str:
            fields: Any = {"type": "task.cancel_requested", "data": '{"task_id": 1}'}
            await connection.redis.xadd(connection.keys.of("in:requests"), fields)
            dead = connection.keys.of("dead:in")

            async def is_buried() -> bool:
                return bool(await connection.redis.xlen(dead))

            await wait_until(is_buried, "the entry is buried", LIMIT_S)
            found: Any = await connection.redis.xrange(dead, count=1)
            return str(found[0][0].decode())

        return self._live.do(bury())

    def _key(self) -> str:
        _, key = self._live.do(self._live.client.admin.create_key("client", name="web"))
        return str(key.key_id)

    def _message(self) -> str:
        receipt = self._live.do(self._live.client.send("ocr-1", {"text": "reload"}))
        return receipt.message_id


def blocks_here() -> list[Any]:
    """Every block that this test runs, with its document and its line as the name of the test."""
    return [
        pytest.param(block, id=f"{name}:{block.line}")
        for name in DOCUMENTS
        for block in blocks_run_by(ROOT / "docs" / name, THIS)
    ]


@pytest.mark.parametrize("block", blocks_here())
@pytest.mark.timeout(300)
def test_what_is_typed_works(
    block: Block, live: LiveCell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Line by line, in its order; an agent that one removed is there again for the next."""
    coord = command_runner(live, monkeypatch, capsys)
    monkeypatch.chdir(tmp_path)
    ids = Ids(live, tmp_path)
    live.do(wait_until(live.has_workers, "the workers are present", LIMIT_S))
    live.do(wait_until(lambda: agents_are_there(live), "the agents are there", LIMIT_S))
    for line in typed(block):
        if FOLLOWING.match(line):
            continue
        if line.startswith("coord trace "):
            live.do(complete_tasks(live, is_recorded="plans" in line))
        here = ids.resolve(line)
        words = shlex.split(here, comments=True)
        if SHELL.search(here):
            environ = os.environ | live.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
            command = ["/bin/bash", "-o", "pipefail", "-c", here]
            done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
            code, told = done.returncode, done.stdout + done.stderr
        else:
            code, out, err = coord(*words[1:])
            told = out + err
        assert code == OTHER.get(" ".join(words), 0), f"{here}\n{told}"
        assert "Traceback" not in told, told


async def complete_tasks(live: LiveCell, *, is_recorded: bool) -> None:
    """Complete 20 tasks; once more, until a distributor has recorded what it chose."""

    async def complete() -> bool:
        for handle in await live.client.submit_many([{"task_type": "echo"}] * 20):
            await handle.result(timeout=LIMIT_S)
        return not is_recorded or replay(await live.client.plans(0), STRATEGIES).decisions > 0

    await wait_until(complete, "the tasks have completed", LIMIT_S)


async def agents_are_there(live: LiveCell) -> bool:
    """Return True if each agent of the documents has a record and may get work."""
    active = await live.client.connection.redis.smembers(live.keys.of("agents:active"))
    return {b"ocr-1", b"ocr-2", b"lead"} <= set(active)
