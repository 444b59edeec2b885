"""docs/how-to/back-up.md: each kind of backup is taken from a cell at work and restored; nothing in it is missing."""

from __future__ import annotations

import asyncio
import os
import shutil
import sys
from pathlib import Path

import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from coord.models.tasks import TaskState
from tests.ledger import assert_ledger
from tests.processes import NAMESPACE, cell_processes
from tests.repo.code_blocks import blocks_run_by
from tests.repo.documents import ROOT
from tests.waiting import wait_until

THIS = "tests/system/test_back_up_document.py::test_a_backup_is_restored"
USUAL = "DATA=~/.local/state/coord/data\n"
ENDED, WAITING = 20, 30
LIMIT_S = 100


async def play(block: str, data: Path, socket: Path, folder: Path) -> None:
    """Type a block into a shell that stops at the first error."""
    assert block.count("DATA=") == block.count(USUAL)
    script = block.replace(USUAL, f"DATA={data}\n").replace("$DATA/redis.sock", str(socket))
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    shell = await asyncio.create_subprocess_exec(
        "bash", "-e", "-o", "pipefail", "-c", script, cwd=folder, env=os.environ | {"PATH": path},
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    out, _ = await asyncio.wait_for(shell.communicate(), LIMIT_S)
    assert shell.returncode == 0, f"{script}\n{out.decode()}"


async def check_restored(folder: Path, ids: list[str]) -> None:
    """A server on this folder has every task in its state; counters and records agree."""
    server = EmbeddedServer.start(folder)
    try:
        async with Client(server.url, settings=Settings(namespace=NAMESPACE)) as client:
            states = [(await client.task(task_id)).state for task_id in ids]
            assert states == [TaskState.COMPLETED] * ENDED + [TaskState.QUEUED] * WAITING
            await assert_ledger(client.connection.redis, Keys(NAMESPACE))
    finally:
        server.stop(force=True)


@pytest.mark.skipif(
    not shutil.which("redis-cli") and not os.environ.get("CI"),
    reason="no redis-cli on PATH; apt-get install redis-tools",
)
@pytest.mark.timeout(300)
async def test_a_backup_is_restored(tmp_path: Path) -> None:
    """A snapshot and a copy of the append-only file from a cell at work, and a copy of the folder of a stopped one."""
    snapshot, restore, copy, stopped = (
        block.text for block in blocks_run_by(ROOT / "docs" / "how-to" / "back-up.md", THIS)
    )
    async with cell_processes(tmp_path) as at:
        registry, distributor = await asyncio.gather(at.worker("registry"), at.worker("distributor"))
        agent = await at.agent("echo-1")
        ids = await at.submit(ENDED)
        await at.all_end(ENDED)
        agent.kill()
        registry.kill()
        ids += [handle.task_id for handle in await at.client.submit_many([{"task_type": "later"}] * WAITING)]

        async def all_wait() -> bool:
            return await at.count(TaskState.QUEUED) == WAITING

        await wait_until(all_wait, "all tasks wait", 60)
        for block in (snapshot, copy):
            await play(block, at.server.data_dir, at.server.socket_path, tmp_path)
        distributor.kill()
        at.server.stop()
        await play(stopped, at.server.data_dir, at.server.socket_path, tmp_path)
        at.server.restart()  # its block ends it
    await play(restore, tmp_path / "data", tmp_path / "data" / "redis.sock", tmp_path)
    for name in ("restored", "copy", "stopped"):
        await check_restored(tmp_path / name, ids)
