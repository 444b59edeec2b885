"""A cell of real processes, so that a test can do to them what the world does: SIGKILL, SIGSTOP, SIGTERM."""

from __future__ import annotations

import os
import signal
import subprocess
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from coord import Client, queries
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.keys import Keys
from coord.models.tasks import TERMINAL, TaskState
from tests.fork_server import ForkedProcess, fork_server
from tests.ledger import assert_keys_end, assert_ledger, events_of_tasks
from tests.waiting import wait_until

ROOT = Path(__file__).parents[1]
NAMESPACE = "faults"
#: Between the beats of an agent that is to be missed soon.
SOON_S = 0.25
#: What takes seconds in earnest takes moments here.
MOMENTS = {
    "COORD_NAMESPACE": NAMESPACE,
    "COORD_READ_BLOCK_MS": "100",
    "COORD_RECLAIM_IDLE_MS": "500",
    "COORD_BACKOFF_MS": "50",
    "COORD_LOG_FORMAT": "json",
    "PYTHONUNBUFFERED": "1",
}
AGENT = """
import asyncio, os, sys
from coord import Agent
agent = Agent(sys.argv[1], capabilities=["echo"], capacity=int(sys.argv[2]))

@agent.task("echo")
async def echo(task):
    await asyncio.sleep(task.payload["s"])
    while not os.path.exists(task.payload.get("until", "/")):
        await asyncio.sleep(0.02)
    return {"by": sys.argv[1], "pid": os.getpid()}

agent.run()
"""


@contextmanager
def started(command: Sequence[str], **options: Any) -> Iterator[subprocess.Popen[Any]]:
    """Start a command, and kill it at the end of the block if it still runs.

    The block of ``subprocess.Popen`` would wait for it without a limit, also when the test has failed.
    """
    process = subprocess.Popen(command, **options)
    try:
        yield process
    finally:
        process.kill()
        with process:
            pass  # closes the pipes, and waits


@dataclass
class Process:
    """One process and what it writes."""

    name: str
    popen: subprocess.Popen[bytes] | ForkedProcess
    log: Path

    @property
    def alive(self) -> bool:
        """Whether it runs (or is stopped)."""
        return self.popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to this process alone."""
        self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait for its end."""
        self.popen.kill()
        self.popen.wait(10)

    async def ended(self, timeout: float = 30.0) -> int:
        """Its exit code, once it has ended by itself."""
        await wait_until(lambda: self.popen.poll() is not None, f"{self.name} has ended\n{self.told()}", timeout)
        return self.popen.wait()

    def told(self) -> str:
        """The end of its log."""
        return self.log.read_text(errors="replace")[-3000:]


@dataclass
class CellProcesses:
    """A server of its own, and whatever processes a test starts on it."""

    server: EmbeddedServer
    folder: Path
    redis: Redis
    client: Client
    keys: Keys = field(default_factory=lambda: Keys(NAMESPACE))
    processes: list[Process] = field(default_factory=list)

    def start(self, name: str, *command: str, **environ: str) -> Process:
        """Start ``python -P COMMAND`` with these variables besides the usual ones."""
        log = self._log(name)
        with log.open("wb") as out:
            forked = fork_server().start(command, self._environ(environ), self.folder, out)
        return self._noted(Process(name, forked, log))

    def start_program(self, name: str, *command: str, **environ: str) -> Process:
        """Start any program, as ``start``."""
        log = self._log(name)
        with log.open("wb") as out:
            popen = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                env=self._environ(environ),
                cwd=self.folder,
            )
        return self._noted(Process(name, popen, log))

    def _environ(self, environ: Mapping[str, str]) -> dict[str, str]:
        kept = {key: value for key, value in os.environ.items() if not key.startswith("COORD_")}
        return {**kept, **MOMENTS, "COORD_REDIS_URL": self.server.url, "PYTHONPATH": str(ROOT), **environ}

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}-{len(self.processes)}.log"

    def _noted(self, process: Process) -> Process:
        self.processes.append(process)
        return process

    async def worker(self, kind: str, name: str = "", **environ: str) -> Process:
        """A worker, once it is present."""
        name = name or f"{kind}-{len(self.processes)}"
        await self.redis.delete(self.keys.worker(kind, name))
        process = self.start(name, "-m", "workers", kind, "--name", name, **environ)

        async def present() -> bool:
            assert process.alive, process.told()
            return bool(await self.redis.exists(self.keys.worker(kind, name)))

        await wait_until(present, f"{name} is present", 60)
        return process

    async def agent(self, agent_id: str, capacity: int = 8, *, interval_s: float = 5.0, url: str = "") -> Process:
        """An agent that can echo, once it is active; it beats every ``interval_s``.

        ``url``: where it finds Redis, if not at the server's own address.
        By default it is not lost while this machine stands still: the observed clock advances by 2 s then at most.
        """
        beats = {"COORD_HEARTBEAT_INTERVAL_S": str(interval_s), "COORD_REDIS_URL": url or self.server.url}
        process = self.start(agent_id, "-c", AGENT, agent_id, str(capacity), **beats)

        async def active() -> bool:
            assert process.alive, process.told()
            return bool(await self.redis.sismember(self.keys.of("agents:active"), agent_id))

        await wait_until(active, f"{agent_id} is active", 60)
        return process

    def stepped_worker(self, kind: str, name: str, step: str, nth: int, number: str = "SIGKILL") -> Process:
        """A worker that is struck at a step of its loop, see ``stepped_worker.py``; it reads four entries at a time."""
        script = str(ROOT / "tests" / "system" / "stepped_worker.py")
        return self.start(name, script, step, number, str(nth), kind, "--name", name, COORD_BATCH="4")

    def stepped_agent(self, agent_id: str, step: str, nth: int, capacity: int) -> Process:
        """An agent that dies at a step of a task's way, see ``stepped_agent.py``."""
        script = str(ROOT / "tests" / "system" / "stepped_agent.py")
        beats = {"COORD_HEARTBEAT_INTERVAL_S": "0.25"}
        return self.start(agent_id, script, step, str(nth), agent_id, str(capacity), **beats)

    async def submit(self, count: int, seconds: float = 0.0, *, until: Path = ROOT) -> list[str]:
        """Submit ``count`` echoes that take so long, and until there is such a file; their ids."""
        payload = {"s": seconds, "until": str(until)}
        specs = [{"task_type": "echo", "payload": payload, "requirements": {"capabilities": ["echo"]}}] * count
        return [handle.task_id for handle in await self.client.submit_many(specs)]

    async def count(self, state: TaskState) -> int:
        """How many tasks are in a state; -1 while the server is away."""
        try:
            return queries.count_by_state(await queries.get_counters(self.redis, self.keys))[state]
        except (RedisError, OSError):
            return -1

    async def all_end(self, count: int, timeout: float = 60.0) -> None:
        """Wait until so many tasks have ended."""

        async def ended() -> bool:
            return sum([await self.count(state) for state in TERMINAL]) >= count

        await wait_until(ended, f"{count} tasks have ended", timeout)

    async def settle_down(self) -> None:
        """Wait until every fact was handled."""

        async def quiet() -> bool:
            streams = [key async for key in self.redis.scan_iter(match=f"{self.keys.prefix}in:*")]
            return not any([await self.redis.xlen(key) for key in streams if not key.endswith(b"in:beats")])

        await wait_until(quiet, "every fact is handled")

    async def assert_in_order(self, ids: list[str], state: TaskState = TaskState.COMPLETED) -> None:
        """Every task ended once, and so; the books balance; nothing is in flight; no key stays that should end."""
        await self.settle_down()
        records = await queries.get_tasks(self.redis, self.keys, ids)
        assert Counter(one.state if one else None for one in records) == {state: len(ids)}
        log = await events_of_tasks(self.redis, self.keys)
        outcomes = Counter(one.fields["task_id"] for one in log if one.type == f"task.{state}")
        assert set(outcomes.values()) == {1}
        assert len(outcomes) == len(ids)
        assert [key async for key in self.redis.scan_iter(match=self.keys.inflight("*"))] == []
        assert await self.redis.exists(self.keys.of("dead:in")) == 0
        await assert_ledger(self.redis, self.keys)
        await assert_keys_end(self.redis, self.keys)


@asynccontextmanager
async def cell_processes(folder: Path) -> AsyncIterator[CellProcesses]:
    """Yield a server with an append-only file and its processes; end every process afterwards."""
    server = EmbeddedServer.start(folder / "data")
    settings = msgspec.structs.replace(Settings(), namespace=NAMESPACE)
    redis = connect(server.url, settings, retries=0)
    built: CellProcesses | None = None
    try:
        async with Client(server.url, settings=settings) as client:
            built = CellProcesses(server, folder, redis, client)
            yield built
    finally:
        with suppress(ProcessLookupError):
            os.kill(server.pid, signal.SIGCONT)  # a test may have failed while it was stopped
        for process in built.processes if built is not None else ():
            process.kill()
        await redis.aclose()
        server.stop(force=True)
