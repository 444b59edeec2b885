"""Submits every job and waits for its outcome, even if Redis is unavailable meanwhile.

Task ids are chosen here, before the first try: a submission with a lost answer is repeated with the same id, which has
one effect. The number of open tasks is limited, so a folder of any size needs little memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from coord import Client, TaskHandle, TaskSpec
from coord.errors import (
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskRefused,
    Unavailable,
)
from coord.models.tasks import TERMINAL, TaskRecord
from examples.file_survey.jobs import Job, Outcome
from examples.file_survey.progress import Live
from examples.file_survey.unfinished import Unfinished

#: Maximum open tasks: work for a second or two, far below the coordinator's limit.
WINDOW = 2_000
#: Tasks in one submission.
CHUNK = 200
#: Maximum records in one round trip.
RECORDS = 256
#: Seconds for which the first request of a record waits for others.
GATHER_S = 0.02
#: Seconds before a retry while Redis is unavailable or full.
RETRY_S = 0.2


async def submit_all(
    client: Client, root: Path, jobs: Sequence[Job], live: Live, unfinished: Unfinished
) -> list[Outcome]:
    """Return the outcomes of all jobs, in the order in which they finished."""
    try:
        async with asyncio.TaskGroup() as group:
            submitter = _Submitter(client, root, live, unfinished, group)
            await submitter.submit(jobs)
    except ExceptionGroup as several:  # one failure is enough to report
        raise several.exceptions[0] from None
    unfinished.forget()
    return submitter.outcomes


class _Submitter:
    def __init__(
        self, client: Client, root: Path, live: Live, unfinished: Unfinished, group: asyncio.TaskGroup
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._client = client
        self._root = str(root)
        self._live = live
        self._unfinished = unfinished
        self._group = group
        self._records = Records(client, group)
        self._room = asyncio.Semaphore(WINDOW)

    async def submit(self, jobs: Sequence[Job]) -> None:
        """Submit all jobs within the window; an asyncio task waits for each outcome."""
        for begin, chunk in _chunks(jobs):
            for _ in chunk:
                await self._room.acquire()
            specs = [self._spec(job, number) for number, job in enumerate(chunk, begin)]
            self._unfinished.submitting(begin + len(chunk))
            handles = await self._submitted(specs)
            self._live.submitted(len(chunk))
            for job, spec, handle in zip(chunk, specs, handles, strict=True):
                self._group.create_task(self._follow(job, spec, handle))

    def _spec(self, job: Job, number: int) -> TaskSpec:
        payload = {"root": self._root, "path": job.file.path}
        return TaskSpec(task_id=self._unfinished.task_id(number), task_type=job.kind.task_type, payload=payload)

    async def _submitted(self, specs: list[TaskSpec]) -> list[TaskHandle]:
        while True:
            try:
                return await self._client.submit_many(specs)
            except Unavailable:
                await asyncio.sleep(RETRY_S)

    async def _follow(self, job: Job, spec: TaskSpec, handle: TaskHandle) -> None:
        while True:
            try:
                await handle.result()
            except (TaskFailed, TaskCancelled, TaskExpired):
                pass  # the record has the details
            except (TaskRefused, TaskNotFound):  # a full backlog; or a server that lost its last second
                await asyncio.sleep(RETRY_S)
                (handle,) = await self._submitted([spec])
                continue
            except Unavailable:
                await asyncio.sleep(RETRY_S)
                continue
            record = await self._records.of(handle.task_id)
            if record is not None and record.state in TERMINAL:
                break
            await asyncio.sleep(RETRY_S)
        outcome = Outcome(job, record)
        self.outcomes.append(outcome)
        self._room.release()
        self._live.finished(outcome)


class Records:
    """Reads records of tasks in batches: requests at about the same time share one round trip.

    Args:
        client: the client.
        group: runs the task that reads, and ends it.
    """

    def __init__(self, client: Client, group: asyncio.TaskGroup) -> None:
        self._client = client
        self._group = group
        self._wanted: dict[str, asyncio.Future[TaskRecord | None]] = {}
        self._reading: asyncio.Task[None] | None = None

    async def of(self, task_id: str) -> TaskRecord | None:
        """Return the record of a task; None if there is none."""
        future = self._wanted.get(task_id)
        if future is None:
            future = self._wanted[task_id] = asyncio.get_running_loop().create_future()
        if self._reading is None or self._reading.done():
            self._reading = self._group.create_task(self._read())
        return await future

    async def _read(self) -> None:
        while self._wanted:
            await asyncio.sleep(GATHER_S)
            ids = list(self._wanted)[:RECORDS]
            try:
                records = await self._client.tasks(ids)
            except Unavailable:
                await asyncio.sleep(RETRY_S)
                continue
            for task_id, record in zip(ids, records, strict=True):
                future = self._wanted.pop(task_id)
                if not future.done():
                    future.set_result(record)


def _chunks(jobs: Sequence[Job]) -> Iterator[tuple[int, Sequence[Job]]]:
    for begin in range(0, len(jobs), CHUNK):
        yield begin, jobs[begin : begin + CHUNK]
