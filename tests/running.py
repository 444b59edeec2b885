"""A cell whose workers run inside the test's own event loop: real server, real scripts, no processes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from redis.asyncio import Redis

from coord.config import Settings
from coord.connection import connect
from coord.keys import Keys
from workers.distributor import Distributor
from workers.loop import Loop
from workers.registry import Registry
from workers.router import Router
from workers.service import Service, WorkerContext, end_tasks

KINDS: dict[str, type[Service]] = {cls.kind: cls for cls in (Registry, Distributor, Router)}

#: A worker finishes what it has read; Redis may need some seconds for that on a busy machine.
END_S = 30.0


@dataclass
class RunningWorker:
    """One worker and the task that it runs in."""

    loop: Loop
    task: asyncio.Task[None]
    cell: WorkerContext

    async def stop(self) -> None:
        """End as on SIGTERM."""
        self.loop.stop()
        await asyncio.wait_for(asyncio.shield(self.task), END_S)
        await self.cell.redis.aclose()

    async def vanish(self) -> None:
        """End as if killed: whatever it had read stays pending."""
        await end_tasks(self.task)
        await self.cell.redis.aclose()


@dataclass
class RunningCell:
    """A server with workers, and a client to look into it."""

    url: str
    settings: Settings
    redis: Redis
    keys: Keys
    workers: list[RunningWorker] = field(default_factory=list)

    async def add(self, kind: str) -> RunningWorker:
        """Start one more worker of a kind."""
        cell = WorkerContext.open(self.url, self.settings)
        loop = Loop(KINDS[kind](cell), f"{kind}-{len(self.workers) + 1}")
        worker = RunningWorker(loop, asyncio.create_task(loop.run()), cell)
        self.workers.append(worker)
        return worker

    def of_kind(self, kind: str) -> list[RunningWorker]:
        """The workers of a kind that were started."""
        return [worker for worker in self.workers if worker.loop.service.kind == kind]


@asynccontextmanager
async def running_cell(
    url: str, settings: Settings, kinds: Sequence[str] = ("registry", "distributor", "router")
) -> AsyncIterator[RunningCell]:
    """A cell with one worker of each of ``kinds``, ended cleanly."""
    redis = connect(url, settings, retries=0)
    cell = RunningCell(url, settings, redis, Keys(settings.namespace))
    try:
        for kind in kinds:
            await cell.add(kind)
        yield cell
        for worker in cell.workers:
            if not worker.task.done():
                await worker.stop()
    finally:
        for worker in cell.workers:
            await worker.vanish()
        await redis.aclose()
