"""`python -m workers.presence`: a container's health check says what is so, whatever became of the worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from pathlib import Path

from tests.processes import MOMENTS, ROOT, CellProcesses, cell_processes
from tests.waiting import wait_until

#: Far beyond any pause of a busy machine, so that only what a test does ends a presence.
LONG_S = "600"
#: A presence that is missed soon.
SHORT_S = "1"


class Check:
    """Runs the command as a container would."""

    def __init__(self, at: CellProcesses) -> None:
        self.at = at
        self.output = ""

    async def __call__(self, kind: str, **environ: str) -> int:
        """Its exit code; ``said`` is what it has written."""
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "workers.presence", kind),
            env=os.environ | MOMENTS | {"COORD_REDIS_URL": self.at.server.url, "PYTHONPATH": str(ROOT)} | environ,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        self.output = out.decode()
        assert process.returncode is not None
        return process.returncode


async def test_a_worker_at_work_is_present_and_a_killed_one_is_not(tmp_path: Path) -> None:
    """Each kind for itself; one whose process is gone counts no more, even while its presence lasts."""
    async with cell_processes(tmp_path) as at:
        check = Check(at)
        assert await check("router") == 1
        assert check.output.startswith("no router of ")
        router = await at.worker("router", "r1", COORD_PRESENCE_TTL_S=LONG_S)
        assert await check("router") == 0, check.output
        assert check.output == "r1 is present\n"
        assert await check("registry") == 1
        assert await check("router", COORD_NAMESPACE="elsewhere") == 1
        router.kill()
        assert await at.redis.exists(at.keys.worker("router", "r1"))
        assert await check("router") == 1


async def test_a_worker_that_stands_still_is_not_present(tmp_path: Path) -> None:
    """Its process lives and does nothing; when it goes on, it is present again."""
    async with cell_processes(tmp_path) as at:
        check = Check(at)
        worker = await at.worker("distributor", "d1", COORD_PRESENCE_TTL_S=SHORT_S)
        worker.send(signal.SIGSTOP)

        async def says(code: int) -> bool:
            return await check("distributor") == code

        await wait_until(lambda: says(1), "the check says that it is not present", 30)
        worker.send(signal.SIGCONT)
        await wait_until(lambda: says(0), "the check says that it is present", 30)


async def test_a_server_that_is_away_or_a_wrong_setting_is_said(tmp_path: Path, unused_port: int) -> None:
    """In one line, with exit code 1: docker keeps 2 for itself."""
    async with cell_processes(tmp_path) as at:
        check = Check(at)
        assert await check("registry", COORD_REDIS_URL=f"redis://:secret@127.0.0.1:{unused_port}") == 1
        assert check.output.startswith(f"Redis at redis://:***@127.0.0.1:{unused_port} cannot be reached: ")
        assert await check("registry", COORD_NAMESPACES="x") == 1
        assert check.output == "COORD_NAMESPACES is not a setting; did you mean COORD_NAMESPACE?\n"


async def test_a_worker_of_another_host_does_not_count(tmp_path: Path) -> None:
    """Containers of one service share the kind; each looks for its own."""
    async with cell_processes(tmp_path) as at:
        check = Check(at)
        await at.worker("router", "r1", COORD_PRESENCE_TTL_S=LONG_S)
        await at.redis.hset(at.keys.worker("router", "r1"), "host", "elsewhere")
        assert await check("router") == 1
