"""The file survey as a process of its own, for the tests that start it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import psutil
from redis.asyncio import Redis

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import read_endpoint
from coord.keys import Keys
from coord.models.tasks import TERMINAL, TaskState
from coord.queries import count_by_state
from tests.ledger import assert_keys_end, assert_ledger, events_of_tasks
from tests.waiting import wait_until

ROOT = Path(__file__).parents[2]
#: Nine processes start, on a machine that may have much else to do.
JOB_S = 90.0

#: About 8 ms of parsing, so that there is a middle to kill somebody in.
SOURCE = '"""Module {n}."""\n\nimport os\n\n' + "\n".join(
    f'def function_{n}(x):\n    """Docstring."""\n    return [x + {n} for _ in range(x)] or os.getpid()\n'
    for n in range(120)
)


class Job:
    """One run of the file survey."""

    def __init__(self, folder: Path | str, data: Path, *options: str, **environ: str) -> None:
        self.data = data
        self.report = data.with_suffix(".json")
        self.log = data.with_suffix(".log")
        command = [sys.executable, "-P", "-m", "examples.file_survey", str(folder), "--data", str(data)]
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                [*command, "--report", str(self.report), *options],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                # Any port: other tests start file surveys at the same time, and so may a person.
                env=os.environ | {"PYTHONPATH": str(ROOT), "COORD_GATEWAY_PORT": "0"} | environ,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self.log.read_text()

    def find(self, *words: str) -> list[psutil.Process]:
        """Its processes, however deep, that have these words in their command."""
        found: list[psutil.Process] = []
        for process in below(self.process.pid):
            try:
                command = process.cmdline()
            except psutil.Error:
                continue
            if all(any(word in part for part in command) for word in words):
                found.append(process)
        return found

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        await wait_until(lambda: self.process.poll() is not None, "the file survey has ended", JOB_S)
        return int(self.process.returncode)

    def results(self) -> dict[str, Any]:
        """What it found, and which files it left out: nothing of who did what when."""
        content = msgspec.json.decode(self.report.read_bytes())
        return {"found": content["found"], "left_out": content["left_out"]}


def below(pid: int) -> list[psutil.Process]:
    """Every process that it started, and those that these did."""
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


class Start:
    """Starts file surveys; whatever a test leaves running is ended with it."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._all: list[Job] = []

    def __call__(self, folder: Path | str, *options: str, name: str = "data", agents: int = 1, **environ: str) -> Job:
        """Start one, with so many agents of each kind: few processes start sooner."""
        job = Job(folder, self._tmp_path / name, "--agents", str(agents), *options, **environ)
        self._all.append(job)
        return job

    def end(self) -> None:
        """Kill what is left."""
        for job in self._all:
            for process in below(job.process.pid):
                process.kill()
            job.process.kill()
            job.process.wait()
            if server := EmbeddedServer.find(job.data / "redis"):
                server.stop(force=True)


async def assert_books(redis: Redis, keys: Keys, tasks: int) -> None:
    """Each of so many tasks ended once; counters add up, loads are zero, no key stays that should end."""
    log = await events_of_tasks(redis, keys)
    ends = Counter(one.fields["task_id"] for one in log if one.type.removeprefix("task.") in TERMINAL)
    assert set(ends.values()) == {1}
    assert len(ends) == tasks
    assert [key async for key in redis.scan_iter(match=keys.inflight("*"))] == []
    await assert_ledger(redis, keys)
    await assert_keys_end(redis, keys)


async def in_the_middle(most: int) -> str:
    """Wait until some tasks are done and fewer than ``most``; where Redis is."""
    path = Settings().endpoint_path
    await wait_until(lambda: read_endpoint(path) is not None, "coord up has announced itself", JOB_S)
    endpoint = read_endpoint(path)
    assert endpoint is not None
    async with Client(endpoint.url, settings=Settings()) as client:

        async def completed() -> int:
            return count_by_state(await client.counters())[TaskState.COMPLETED]

        done = await wait_until(completed, "the first task is done", JOB_S)
        assert done < most, "too late to be the middle"
    return endpoint.url
