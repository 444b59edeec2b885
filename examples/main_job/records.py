"""Looks records up together: whoever asks within the same moment shares one round trip."""

from __future__ import annotations

import asyncio

from coord import Client
from coord.errors import Unavailable
from coord.models.tasks import TaskRecord

#: How long the first one to ask waits for others.
GATHER_S = 0.02
#: Records in one round trip at most.
MOST = 256
#: Before another try while Redis is away.
AGAIN_S = 0.2


class Records:
    """The records of tasks, read in batches by a task of ``group``, which ends it when it ends itself."""

    def __init__(self, client: Client, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._wanted: dict[str, asyncio.Future[TaskRecord | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def of(self, task_id: str) -> TaskRecord | None:
        """The record of a task; None when there is none."""
        future = self._wanted.get(task_id)
        if future is None:
            future = self._wanted[task_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = self._group.create_task(self._read())
        return await future

    async def _read(self) -> None:
        while self._wanted:
            await asyncio.sleep(GATHER_S)
            ids = list(self._wanted)[:MOST]
            try:
                records = await self._client.tasks(ids)
            except Unavailable:
                await asyncio.sleep(AGAIN_S)
                continue
            for task_id, record in zip(ids, records, strict=True):
                future = self._wanted.pop(task_id)
                if not future.done():
                    future.set_result(record)
