"""Submits every job and follows each to its outcome, whatever becomes of Redis meanwhile.

Task ids are chosen here, before the first try: a submission whose answer was lost is repeated under the same id, which
has one effect. No more than a bounded number of tasks is under way, so a folder of any size needs little memory.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from pathlib import Path

from redis import exceptions as redis_errors

from coord import Client, TaskHandle, TaskSpec
from coord.errors import (
    ServerFull,
    ServerUnavailable,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskRefused,
)
from coord.models.tasks import TERMINAL
from examples.main_job.kinds import Job
from examples.main_job.outcome import Outcome
from examples.main_job.progress import Live
from examples.main_job.records import Records
from examples.main_job.unfinished import Unfinished

#: Tasks submitted and not finished at most: a second's work or two, far below the coordinator's limit.
WINDOW = 2_000
#: Tasks in one submission.
CHUNK = 200
#: Before another try while Redis is away, or has no room.
AGAIN_S = 0.2

#: Redis is away, or has no room: what passes.
AWAY = (redis_errors.RedisError, OSError, ServerUnavailable, ServerFull)


async def submit_all(
    client: Client, root: Path, jobs: Sequence[Job], live: Live, unfinished: Unfinished
) -> list[Outcome]:
    """Every job's outcome, in the order in which they finished."""
    try:
        async with asyncio.TaskGroup() as group:
            submitter = _Submitter(client, root, live, unfinished, group)
            await submitter.submit(jobs)
    except ExceptionGroup as several:  # one failure is enough to say
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
        """Submit all, as room becomes free; each is followed by a task of its own."""
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
            except AWAY:
                await asyncio.sleep(AGAIN_S)

    async def _follow(self, job: Job, spec: TaskSpec, handle: TaskHandle) -> None:
        while True:
            try:
                await handle.result()
            except (TaskFailed, TaskCancelled, TaskExpired):
                pass  # the record says more
            except AWAY:
                await asyncio.sleep(AGAIN_S)
                continue
            except (TaskRefused, TaskNotFound):  # no room at the time; or a server that lost its last second
                await asyncio.sleep(AGAIN_S)
                (handle,) = await self._submitted([spec])
                continue
            record = await self._records.of(handle.task_id)
            if record is not None and record.state in TERMINAL:
                break
            await asyncio.sleep(AGAIN_S)
        outcome = Outcome(job, record)
        self.outcomes.append(outcome)
        self._room.release()
        self._live.finished(outcome)


def _chunks(jobs: Sequence[Job]) -> Iterator[tuple[int, Sequence[Job]]]:
    for begin in range(0, len(jobs), CHUNK):
        yield begin, jobs[begin : begin + CHUNK]
