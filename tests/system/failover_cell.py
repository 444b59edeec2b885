"""A cell on a pair of servers, and those who use it while the primary changes: submitters, senders, listeners."""

from __future__ import annotations

import asyncio
import contextlib
import re
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
from redis.exceptions import RedisError

from coord import Client, queries
from coord.config import Settings
from coord.connection import connect
from coord.embedded import EmbeddedServer
from coord.errors import CoordError
from coord.fsck import examine
from coord.keys import Keys
from coord.models.tasks import TERMINAL, TaskState
from tests.ledger import events_of_tasks
from tests.processes import CellProcesses, Process
from tests.waiting import wait_until

#: Within which everything goes on by itself once a new primary is named, in seconds: also on a very busy machine.
RESUMES_S = 60.0
#: Tasks that wait at most: a busy machine submits faster than it works.
BACKLOG = 40
#: An echo waits until the file of that name is there, if it is given one.
AGENT = """
import asyncio, os, sys
from coord import Agent
agent = Agent(sys.argv[1], capacity=int(sys.argv[2]), capabilities=sys.argv[3:])

@agent.task("echo")
async def echo(task):
    await asyncio.sleep(task.payload["s"])
    while not os.path.exists(task.payload.get("until", "/")):
        await asyncio.sleep(0.02)
    return {"by": sys.argv[1], "pid": os.getpid()}

@agent.on_message
async def hear(message):
    print("heard", message.id, flush=True)

agent.run()
"""


class FailoverProcesses(CellProcesses):
    """The processes of a cell with a namespace of its own."""

    def start(self, name: str, *command: str, **environ: str) -> Process:
        """Start a process in this namespace."""
        return super().start(name, *command, **{"COORD_NAMESPACE": self.keys.namespace} | environ)

    async def listener(self, agent_id: str, *capabilities: str, interval_s: float = 0.25) -> Process:
        """An agent that can echo and hears messages, once it is active."""
        beats = {"COORD_HEARTBEAT_INTERVAL_S": str(interval_s)}
        process = self.start(agent_id, "-c", AGENT, agent_id, "4", *capabilities, **beats)
        await wait_until(lambda: self.is_active(agent_id), f"{agent_id} is active", 60)
        return process

    async def is_active(self, agent_id: str) -> bool:
        """Whether an agent may be given work; False while the server is away."""
        try:
            return bool(await self.redis.sismember(self.keys.of("agents:active"), agent_id))
        except (RedisError, OSError):
            return False

    async def are_completed(self, ids: list[str], within_s: float = RESUMES_S) -> None:
        """Wait until all of them are."""

        async def completed() -> bool:
            try:
                records = await queries.get_tasks(self.redis, self.keys, ids)
            except (RedisError, OSError):
                return False
            return all(one and one.state == TaskState.COMPLETED for one in records)

        await wait_until(completed, f"{len(ids)} tasks are completed", within_s)

    async def assert_one_outcome_each(self) -> None:
        """Once every visible task has ended: by the log of the surviving server; its books balance."""
        await wait_until(self._all_have_ended, "every visible task has ended", 60)
        await self.settle_down()
        log = await events_of_tasks(self.redis, self.keys)
        ended = [one.fields["task_id"] for one in log if one.type.removeprefix("task.") in TERMINAL]
        assert len(ended) == len(set(ended))
        report = await examine(self.redis, self.keys, trimmed=False)
        assert report.findings == []
        assert report.compared
        assert report.tasks == len(ended)
        assert await self.redis.exists(self.keys.of("dead:in")) == 0

    async def _all_have_ended(self) -> bool:
        counted = await queries.get_counters(self.redis, self.keys)
        waiting = [await self.redis.xlen(self.keys.of(one)) for one in ("in:tasks:normal", "in:reports")]
        ended = sum(queries.count_by_state(counted)[one] for one in TERMINAL)
        return not any(waiting) and ended == queries.count_submitted(counted)


@contextlib.asynccontextmanager
async def cell_at(server: object, url: str, folder: Path, namespace: str) -> AsyncIterator[FailoverProcesses]:
    """Yield the processes of a cell on whatever answers at ``url``; end every one afterwards."""
    folder.mkdir(exist_ok=True)
    settings = msgspec.structs.replace(Settings(), namespace=namespace)
    redis = connect(url, settings, retries=0)
    built: FailoverProcesses | None = None
    try:
        async with Client(url, settings=settings) as client:
            built = FailoverProcesses(cast("EmbeddedServer", server), folder, redis, client, Keys(namespace))
            yield built
    finally:
        for process in built.processes if built is not None else ():
            process.kill()
        await redis.aclose()


class Traffic(ABC):
    """Goes on until it is stopped; ``acknowledged`` are the ids that it was told are in."""

    def __init__(self, at: FailoverProcesses) -> None:
        self.at = at
        self.acknowledged: list[str] = []
        self._stopped = asyncio.Event()
        self._task = asyncio.create_task(self._run())

    @abstractmethod
    async def step(self) -> None:
        """One small batch; may raise what a client is told while the server is away, and is called again then."""

    async def stop(self) -> None:
        """Begin with nothing more."""
        self._stopped.set()
        await self._task

    async def more(self, count: int) -> int:
        """Wait until so many more are acknowledged; how many there are."""
        wanted = len(self.acknowledged) + count
        await wait_until(
            lambda: self._task.done() or len(self.acknowledged) >= wanted, f"{count} more are acknowledged", 60
        )
        if self._task.done():
            await self._task  # raises what ended it
        return len(self.acknowledged)

    async def _run(self) -> None:
        while not self._stopped.is_set():
            with contextlib.suppress(CoordError):
                await self.step()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopped.wait(), 0.02)


class Load(Traffic):
    """Submits short tasks, while not too many wait."""

    async def step(self) -> None:
        """Five of them."""
        if await self._waiting() < BACKLOG:
            self.acknowledged += await self.at.submit(5, 0.02)

    async def _waiting(self) -> int:
        try:
            counted = queries.count_by_state(await queries.get_counters(self.at.redis, self.at.keys))
            return counted[TaskState.QUEUED] + int(await self.at.redis.xlen(self.at.keys.tasks_in("normal")))
        except (RedisError, OSError):
            return 0  # the server is away, which a client is to see


class Letters(Traffic):
    """Sends messages one after the other, each again and again until it has a receipt."""

    def __init__(self, at: FailoverProcesses, *receivers: str) -> None:
        self._receivers = receivers
        super().__init__(at)

    async def step(self) -> None:
        """One of them; its id is the same at the next try."""
        number = len(self.acknowledged)
        receiver = self._receivers[number % len(self._receivers)]
        receipt = await self.at.client.send(receiver, {"n": number}, message_id=f"letter-{number}", timeout=2)
        self.acknowledged.append(receipt.message_id)


def heard_by(*listeners: Process) -> set[str]:
    """The ids of the messages that these agents have handled."""
    return {one for process in listeners for one in re.findall(r"^heard (\S+)$", process.log.read_text(), re.MULTILINE)}


def events_of(process: Process, event: str) -> list[dict[str, Any]]:
    """What a process has logged under this name."""
    lines = [line for line in process.log.read_bytes().splitlines() if line.startswith(b"{")]
    return [one for one in map(msgspec.json.decode, lines) if one.get("event") == event]
