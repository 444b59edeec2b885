"""`coord up` as a process: started, watched, and ended with all that it started."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import msgspec
import psutil

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import Endpoint, read_endpoint
from tests.waiting import wait_until

#: Processes start slowly on a machine with much to do.
START_S = 60.0
#: Options for a single worker, a distributor, where the others are not the subject: each costs half a second to start.
DISTRIBUTOR = ("--registries", "0", "--routers", "0")
#: Workers have 10 s to drain, the server a little.
END_S = 30.0


class Up:
    """One `coord up`, what it has written, and its processes.

    ``out``: where it writes instead of ``log``; ``unset``: variables that it does not have.
    """

    def __init__(
        self,
        folder: Path,
        *arguments: str,
        log: Path,
        out: int | None = None,
        unset: Sequence[str] = (),
        **environ: str,
    ) -> None:
        self.data = folder
        self.log = log
        command = [sys.executable, "-m", "coord.cli", "up", *arguments]
        if "--port" not in arguments:
            command.append("--no-gateway")  # its usual port may be in use
        if "--redis-url" not in arguments:
            command += ["--data", str(folder)]
        variables = {name: value for name, value in (os.environ | environ).items() if name not in unset}
        with log.open("ab") as file:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out or file, stderr=out or file, env=variables
            )

    @property
    def output(self) -> str:
        """What it and its workers have written so far."""
        return self.log.read_text()

    def lines(self) -> list[dict[str, Any]]:
        """What it has written so far, each line a JSON object; the last one may still be under way."""
        return [msgspec.json.decode(line) for line in self.output.rpartition("\n")[0].splitlines()]

    def events(self, event: str, process: str = "") -> list[dict[str, Any]]:
        """The lines with this event, of a process whose name begins so."""
        return [line for line in self.lines() if line["event"] == event and line["process"].startswith(process)]

    def workers(self) -> dict[str, psutil.Process]:
        """Its workers by name."""
        return {name: child for child in self.children("workers") if (name := _worker_name(child))}

    def children(self, word: str) -> list[psutil.Process]:
        """The processes that it has started with this word in their command."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return []
        return [child for child in children if word in _command(child)]

    def endpoint(self) -> Endpoint | None:
        """What it has announced."""
        found = read_endpoint(Settings().endpoint_path)
        return found if found and found.pid == self.process.pid else None

    async def announced(self) -> Endpoint:
        """Wait for the announcement, which comes when the server is there and fit."""
        await wait_until(lambda: self.lives() and self.endpoint() is not None, "it has announced itself", START_S)
        found = self.endpoint()
        assert found is not None
        return found

    async def ready(self) -> Endpoint:
        """Wait until every worker works."""
        found = await self.announced()
        await wait_until(lambda: self.lives() and "ready: " in self.output, "every worker is there", START_S)
        return found

    async def worker(self, kind: str) -> tuple[str, psutil.Process]:
        """Wait for a worker of a kind: its name and process."""
        await wait_until(lambda: any(name.startswith(kind) for name in self.workers()), f"a {kind} runs", START_S)
        return next(item for item in self.workers().items() if item[0].startswith(kind))

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        await wait_until(lambda: self.process.poll() is not None, "coord up has ended", END_S)
        return int(self.process.returncode)

    def lives(self) -> bool:
        """Return True, or fail with its output if it has ended."""
        assert self.process.poll() is None, f"coord up has ended:\n{self.output}"
        return True


def _command(process: psutil.Process) -> list[str]:
    try:
        return list(process.cmdline())
    except psutil.Error:  # it has ended meanwhile
        return []


def _worker_name(process: psutil.Process) -> str:
    command = _command(process)
    return command[command.index("--name") + 1] if "--name" in command else ""


class Start:
    """Starts `coord up`; whatever a test leaves running is ended with it."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._all: list[Up] = []

    def __call__(
        self,
        *arguments: str,
        folder: str = "data",
        out: int | None = None,
        unset: Sequence[str] = (),
        **environ: str,
    ) -> Up:
        """Start one with these options and variables."""
        log = self._tmp_path / f"up-{len(self._all)}.log"
        up = Up(self._tmp_path / folder, *arguments, log=log, out=out, unset=unset, **environ)
        self._all.append(up)
        return up

    def end(self) -> None:
        """Kill what is left: workers first, so that none is left for want of a parent."""
        for up in self._all:
            for worker in up.workers().values():
                with suppress(psutil.NoSuchProcess):
                    worker.kill()
            up.process.kill()
            up.process.communicate()
            if server := EmbeddedServer.find(up.data):
                server.stop(force=True)


async def accepted(url: str, **settings: str) -> None:
    """A task is taken: somebody does the distributor's work."""
    async with Client(url, settings=Settings(**settings)) as client:  # type: ignore[arg-type]
        await (await client.submit("anything")).accepted(START_S)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be buried."""
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
