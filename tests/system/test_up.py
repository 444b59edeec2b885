"""`coord up` as processes: what it starts, what it starts again, and what it leaves behind: nothing."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from coord import Client
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.endpoint import Endpoint, read_endpoint
from tests.waiting import wait_until

README = Path(__file__).parents[2] / "README.md"
#: Processes start slowly on a machine with much to do.
START_S = 60.0
#: Workers have 10 s to drain, the server a little.
END_S = 30.0


class Up:
    """One `coord up`, what it has written, and its processes."""

    def __init__(self, folder: Path, *arguments: str, log: Path, **environ: str) -> None:
        self.data = folder
        self.log = log
        command = [sys.executable, "-m", "coord.cli", "up", *arguments]
        if "--port" not in arguments:
            command.append("--no-gateway")  # its usual port may be in use
        if "--redis-url" not in arguments:
            command += ["--data", str(folder)]
        with log.open("ab") as out:
            self.process = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=out, stderr=out, env=os.environ | environ
            )

    @property
    def said(self) -> str:
        """What it and its workers have written so far."""
        return self.log.read_text()

    def workers(self) -> dict[str, psutil.Process]:
        """Its workers by name."""
        try:
            children = psutil.Process(self.process.pid).children()
        except psutil.NoSuchProcess:
            return {}
        return {name: child for child in children if (name := _worker_name(child))}

    def endpoint(self) -> Endpoint | None:
        """What it has announced."""
        found = read_endpoint(Settings().endpoint_path)
        return found if found and found.pid == self.process.pid else None

    async def announced(self) -> Endpoint:
        """Wait for the announcement, which comes when the server is there and fit."""
        await wait_until(lambda: self._lives() and self.endpoint() is not None, "it has announced itself", START_S)
        found = self.endpoint()
        assert found is not None
        return found

    async def ready(self) -> Endpoint:
        """Wait until every worker works."""
        found = await self.announced()
        await wait_until(lambda: self._lives() and "ready: " in self.said, "every worker is there", START_S)
        return found

    async def worker(self, kind: str) -> tuple[str, psutil.Process]:
        """Wait for a worker of a kind: its name and process."""
        await wait_until(lambda: any(name.startswith(kind) for name in self.workers()), f"a {kind} runs", START_S)
        return next(item for item in self.workers().items() if item[0].startswith(kind))

    async def ended(self) -> int:
        """Wait for its end; the exit code."""
        await wait_until(lambda: self.process.poll() is not None, "coord up has ended", END_S)
        return int(self.process.returncode)

    def _lives(self) -> bool:
        assert self.process.poll() is None, f"coord up has ended:\n{self.said}"
        return True


def _worker_name(process: psutil.Process) -> str:
    try:
        command = process.cmdline()
    except psutil.Error:
        return ""
    return command[command.index("--name") + 1] if "workers" in command and "--name" in command else ""


class Start:
    """Starts `coord up`; whatever a test leaves running is ended with it."""

    def __init__(self, tmp_path: Path) -> None:
        self._tmp_path = tmp_path
        self._all: list[Up] = []

    def __call__(self, *arguments: str, folder: str = "data", **environ: str) -> Up:
        """Start one with these options and variables."""
        up = Up(self._tmp_path / folder, *arguments, log=self._tmp_path / f"up-{len(self._all)}.log", **environ)
        self._all.append(up)
        return up

    def end(self) -> None:
        """Kill what is left: workers first, so that none is left for want of a parent."""
        for up in self._all:
            for worker in up.workers().values():
                worker.kill()
            up.process.kill()
            up.process.communicate()
            if server := EmbeddedServer.find(up.data):
                server.stop(force=True)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts `coord up` on folders of this test's own."""
    starter = Start(tmp_path)
    yield starter
    starter.end()


async def accepted(url: str, **settings: str) -> None:
    """A task is taken: somebody does the distributor's work."""
    async with Client(url, settings=Settings(**settings)) as client:  # type: ignore[arg-type]
        await (await client.submit("anything")).accepted(START_S)


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is not only waiting to be buried."""
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


async def test_it_starts_everything_and_ends_everything(start: Start) -> None:
    """One of each, announced and ready; after SIGTERM no process, no socket and no announcement is left."""
    up = start()
    endpoint = await up.ready()
    server = EmbeddedServer.find(up.data)
    assert server is not None
    assert (endpoint.url, endpoint.data_dir, endpoint.namespace) == (server.url, str(up.data), "coord")
    workers = up.workers()
    assert sorted(name.split("-")[0] for name in workers) == ["distributor", "registry", "router"]
    await accepted(endpoint.url)
    up.process.terminate()
    assert await up.ended() == 0
    assert [process for process in workers.values() if process.is_running()] == []
    assert not runs(server.pid)
    assert not server.socket_path.exists()
    assert not Settings().endpoint_path.exists()
    assert [part for part in ("durability", "AOF, fsync every second", "ending", "ended") if part not in up.said] == []


async def test_as_many_of_each_as_asked(start: Start) -> None:
    """The numbers are options; a namespace is announced with the place."""
    up = start("--registries", "2", "--distributors", "3", "--routers", "0", "--namespace", "cell-2")
    endpoint = await up.announced()
    await wait_until(lambda: len(up.workers()) == 5, "all workers run")
    assert sorted(name.rpartition("-")[0] for name in up.workers()) == [
        "distributor-1", "distributor-2", "distributor-3", "registry-1", "registry-2",
    ]  # fmt: skip
    assert endpoint.namespace == "cell-2"
    await accepted(endpoint.url, namespace="cell-2")


async def test_a_killed_worker_is_started_again(start: Start) -> None:
    """Under its name, so that it takes up what it had read; and it is said."""
    up = start()
    endpoint = await up.announced()
    name, first = await up.worker("distributor")
    await accepted(endpoint.url)
    first.kill()
    await wait_until(lambda: up.workers().get(name, first).pid != first.pid, "it runs again")
    await accepted(endpoint.url)
    assert f"{name} (pid {first.pid}) has ended (SIGKILL), starts again in 0.1 s" in up.said


async def test_a_killed_server_is_started_again(start: Start) -> None:
    """At the same place, with what it had acknowledged; workers find it again by themselves."""
    up = start()
    endpoint = await up.announced()
    await accepted(endpoint.url)
    before = EmbeddedServer.find(up.data)
    assert before is not None
    workers = {name: process.pid for name, process in up.workers().items()}
    os.kill(before.pid, signal.SIGKILL)
    await wait_until(lambda: "the Redis server runs again" in up.said, "the server runs again", START_S)
    after = EmbeddedServer.find(up.data)
    assert after is not None
    assert (after.url, after.pid != before.pid) == (before.url, True)
    async with Client(endpoint.url, settings=Settings()) as client:
        assert await client.counters() != {}
    await accepted(endpoint.url)
    assert {name: process.pid for name, process in up.workers().items()} == workers
    up.process.terminate()
    assert await up.ended() == 0
    assert not runs(after.pid)


async def test_killed_it_leaves_no_worker_and_the_next_one_adopts_its_server(start: Start) -> None:
    """After kill -9 of `coord up` its workers end by themselves, its server stays, and the next `coord up` ends it."""
    first = start()
    endpoint = await first.ready()
    await accepted(endpoint.url)
    workers = first.workers()
    server = EmbeddedServer.find(first.data)
    assert server is not None
    first.process.kill()
    first.process.wait()
    await wait_until(lambda: not any(runs(one.pid) for one in workers.values()), "the workers have ended", END_S)
    assert runs(server.pid)
    assert read_endpoint(Settings().endpoint_path) is None
    second = start()
    assert (await second.announced()).url == endpoint.url
    await wait_until(lambda: f"pid {server.pid}, found running" in second.said, "it has said what it found")
    await accepted(endpoint.url)
    second.process.terminate()
    assert await second.ended() == 0
    assert not runs(server.pid)


async def test_a_given_server_is_used_and_left(start: Start, server: EmbeddedServer, namespace: str) -> None:
    """With --redis-url nothing is started but workers, and nothing but workers is ended."""
    up = start("--redis-url", server.url, "--namespace", namespace)
    endpoint = await up.announced()
    assert (endpoint.url, endpoint.data_dir, endpoint.namespace) == (server.url, None, namespace)
    await accepted(server.url, namespace=namespace)
    up.process.terminate()
    assert await up.ended() == 0
    assert server.alive()
    assert not up.data.exists()


async def test_a_server_of_somebody_else_in_the_folder_stays(start: Start, tmp_path: Path) -> None:
    """Only a server that a `coord up` has started is ended by one."""
    running = EmbeddedServer.start(tmp_path / "data")
    try:
        up = start()
        await up.announced()
        up.process.terminate()
        assert await up.ended() == 0
        assert "was not started by coord up, so it stays" in up.said
        assert running.alive()
    finally:
        running.stop()


async def test_a_second_one_on_the_same_folder_is_refused(start: Start, tmp_path: Path) -> None:
    """Even when it would be announced elsewhere; the first one goes on."""
    first = start()
    endpoint = await first.announced()
    second = start(COORD_ENDPOINT_FILE=str(tmp_path / "other.json"))
    assert await second.ended() == 2
    assert second.said == (
        f"coord: another coord up (pid {first.process.pid}) runs on {first.data}; "
        "end that one, or choose another folder with --data\n"
    )
    await accepted(endpoint.url)


async def test_an_unfit_server_is_refused(start: Start, tmp_path: Path) -> None:
    """One line that says what to change; no worker is started."""
    evicting = EmbeddedServer.start(tmp_path / "lru", extra=("--maxmemory-policy", "allkeys-lru"))
    try:
        up = start("--redis-url", evicting.url)
        assert await up.ended() == 2
        assert up.said.startswith("coord: maxmemory-policy is allkeys-lru")
        assert up.said.count("\n") == 1
        assert not Settings().endpoint_path.exists()
    finally:
        evicting.stop()


async def test_a_second_ctrl_c_does_not_wait(start: Start) -> None:
    """A worker that hangs holds nothing up; the server is still ended in order."""
    up = start()
    await up.announced()
    name, worker = await up.worker("router")
    server = EmbeddedServer.find(up.data)
    assert server is not None
    worker.suspend()
    await wait_until(lambda: worker.status() == psutil.STATUS_STOPPED, "it hangs")
    up.process.send_signal(signal.SIGINT)
    await wait_until(lambda: "ending: " in up.said, "it has heard")
    up.process.send_signal(signal.SIGINT)
    assert await up.ended() == 130
    assert f"{name} (pid {worker.pid}) was killed" in up.said
    assert not runs(server.pid)


async def test_it_ends_with_the_process_that_started_it(start: Start) -> None:
    """--watch-stdin: the pipe closes with whoever holds its other end."""
    up = start("--watch-stdin")
    await up.ready()
    workers = up.workers()
    assert up.process.stdin is not None
    up.process.stdin.close()
    assert await up.ended() == 0
    assert not any(runs(one.pid) for one in workers.values())


async def test_a_folder_called_workers_is_not_taken_for_ours(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What stands in the folder where the command is typed is not started."""
    (tmp_path / "workers").mkdir()
    (tmp_path / "workers" / "__main__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    up = start()
    await accepted((await up.announced()).url)
    assert "not ours" not in up.said


async def test_the_readme_s_agent_and_client_work(start: Start, tmp_path: Path) -> None:
    """What a newcomer copies from the first page runs as it stands there."""
    blocks = re.findall(r"^```python\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    agent, client = (tmp_path / "agent.py", tmp_path / "client.py")
    for place, block in zip((agent, client), blocks, strict=True):
        place.write_text(block)
    up = start()
    await up.announced()
    serving = await asyncio.create_subprocess_exec(sys.executable, str(agent), stderr=asyncio.subprocess.DEVNULL)
    asking = await asyncio.create_subprocess_exec(sys.executable, str(client), stdout=asyncio.subprocess.PIPE)
    answer, _ = await asyncio.wait_for(asking.communicate(), START_S)
    assert answer == b"{'text': 'A long story.'}\n"
    serving.terminate()
    assert await serving.wait() == 0
