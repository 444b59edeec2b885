"""`coord agent` as people run it, for tests: processes of it on a cell, and the programs that they have running."""

from __future__ import annotations

import asyncio
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from coord import Client, TaskHandle
from coord.models.tasks import TaskRecord
from tests.running import RunningCell
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
#: Processes start slowly on a machine with much to do.
LONG_S = 60.0


class AgentProcess:
    """One `coord agent`, its log, and the programs that it has running."""

    def __init__(self, agent_id: str, namespace: str, process: asyncio.subprocess.Process, log: Path) -> None:
        self.agent_id = agent_id
        self._environ = {"COORD_AGENT_ID": agent_id, "COORD_NAMESPACE": namespace}
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        """What it has logged."""
        return self._log.read_text(errors="replace")

    def programs(self) -> list[psutil.Process]:
        """Every process, also one that left its group, that was started for it; not those waiting to be buried."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):  # it ends meanwhile, or belongs to somebody else
                is_ours = self._environ.items() <= process.environ().items()
                if is_ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    async def no_programs(self) -> None:
        """Wait until none is left."""
        await wait_until(lambda: not self.programs(), "no program is left", LONG_S)

    async def ended(self) -> int:
        """Its exit code."""
        return await asyncio.wait_for(self.process.wait(), LONG_S)


class Fleet:
    """A cell, a client, and agents that end with the test."""

    def __init__(self, cell: RunningCell, client: Client, folder: Path) -> None:
        self.cell = cell
        self.client = client
        self.folder = folder
        self._agents: list[AgentProcess] = []
        self._count = 0

    async def agent(self, *arguments: str, **environ: str) -> AgentProcess:
        """Start `coord agent` with an id of its own; returns when it may be given work. It can do "demo"."""
        return await self.agent_in(self.folder, "--capability", "demo", *arguments, **environ)

    async def agent_in(self, folder: Path, *arguments: str, **environ: str) -> AgentProcess:
        """The same in a folder, with no capability but what it is given."""
        self._count += 1
        agent_id = f"programs-{self._count}"
        agent = await self._start(folder, agent_id, "--id", agent_id, *arguments, **environ)
        key = self.cell.keys.of("agents:active")

        async def is_active() -> bool:
            assert agent.process.returncode is None, agent.output
            return bool(await self.cell.redis.sismember(key, agent_id))

        await wait_until(is_active, "the agent is active", LONG_S)
        return agent

    def environ(self) -> dict[str, str]:
        """What makes a `coord` use this cell."""
        usual = {name: value for name, value in os.environ.items() if not name.startswith("COORD_")}
        cell = {"COORD_NAMESPACE": self.cell.settings.namespace, "COORD_REDIS_URL": self.cell.url}
        return usual | cell | {"PYTHONPATH": str(ROOT)}

    async def _start(self, folder: Path, agent_id: str, *arguments: str, **environ: str) -> AgentProcess:
        log = self.folder / f"{agent_id}.log"
        environ = self.environ() | {"COORD_LOG_LEVEL": "debug"} | environ
        with log.open("wb") as out:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "coord.cli", "agent", *arguments,
                env=environ, cwd=folder, stdin=asyncio.subprocess.DEVNULL, stdout=out, stderr=out,
            )  # fmt: skip
        agent = AgentProcess(agent_id, self.cell.settings.namespace, process, log)
        self._agents.append(agent)
        return agent

    async def coord(self, *arguments: str) -> str:
        """Run another command of `coord` on the cell, which ends well; what it printed."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "coord.cli", *arguments, env=self.environ(), cwd=self.folder,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        result, _ = await asyncio.wait_for(process.communicate(), LONG_S * 4)
        assert process.returncode == 0, result.decode()
        return result.decode()

    async def submit(self, payload: Any, attempts: int = 1, **options: Any) -> TaskHandle:
        """Submit a task for any agent with the capability "demo"."""
        handle = await self.client.submit(
            "any", payload, capabilities=["demo"], retry={"max_attempts": attempts, "backoff": 0.01}, **options
        )
        await handle.accepted(LONG_S)
        return handle

    async def outcome(self, handle: TaskHandle) -> TaskRecord:
        """Its record, once it has ended."""

        async def has_ended() -> bool:
            return (await self.client.task(handle.task_id)).finished_at is not None

        await wait_until(has_ended, f"task {handle.task_id} has ended", LONG_S)
        return await self.client.task(handle.task_id)

    async def end(self) -> None:
        """Kill what is left."""
        for agent in self._agents:
            if agent.process.returncode is None:
                agent.process.kill()
                await agent.process.wait()
            for program in agent.programs():
                program.kill()
