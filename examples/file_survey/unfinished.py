"""The tasks of a run, recorded in the data folder, so that open tasks can be cancelled when the run is interrupted.

The record is written before the tasks are submitted, so it covers all of them, even after ``kill -9``: then the next
run cancels them before it starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coord import Client
from coord.endpoint import write_private
from coord.errors import ResultTimeout, TaskAlreadyFinished, TaskNotFound
from coord.models.ids import new_id
from coord.models.tasks import TERMINAL, Priority

#: Maximum tasks that are read or cancelled together; a client awaits at most 1,000 answers.
STEP = 500
REASON = "the file survey was interrupted"


class Run(msgspec.Struct, frozen=True):
    """A run and how many tasks it may have submitted."""

    run_id: str
    tasks: int = 0

    def task_id(self, number: int) -> str:
        """Return the id of the task with this number, counted from 0."""
        return f"{self.run_id}-{number}"


class Unfinished:
    """The record of this run, or of an earlier one until this run submits its first task.

    Args:
        folder: folder of the record.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "unfinished.json"
        self._run = Run(new_id())

    def task_id(self, number: int) -> str:
        """Return the id of this run's task with this number."""
        return self._run.task_id(number)

    def submitting(self, tasks: int) -> None:
        """Record that tasks up to this number may be submitted from now on."""
        self._run = Run(self._run.run_id, tasks)
        write_private(self._path, msgspec.json.encode(self._run))

    def forget(self) -> None:
        """Delete the record: all tasks have ended."""
        self._path.unlink(missing_ok=True)

    async def cancel(self, client: Client) -> int:
        """Cancel the open tasks of the recorded run and delete the record; return the number of cancelled tasks.

        Raises:
            ServerUnavailable, ServerFull: Redis is unavailable; the record is kept.
        """
        run = self._recorded()
        if run is None:
            return 0
        # Read before the records: a task without a record was never submitted, or is still in this stream.
        priorities = (await client.backlog(0)).priorities
        has_waiting = any(backlog.submitted for backlog in priorities if backlog.priority is Priority.NORMAL)
        cancelled = 0
        for begin in range(0, run.tasks, STEP):
            ids = [run.task_id(number) for number in range(begin, min(begin + STEP, run.tasks))]
            cancelled += await _cancel(client, ids, also_unknown=has_waiting)
        self.forget()
        return cancelled

    def _recorded(self) -> Run | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Run)
        except (OSError, msgspec.MsgspecError):
            return None


async def _cancel(client: Client, ids: Sequence[str], *, also_unknown: bool) -> int:
    records = await client.tasks(ids)
    unfinished = [
        task_id
        for task_id, record in zip(ids, records, strict=True)
        if (also_unknown if record is None else record.state not in TERMINAL)
    ]
    return sum(await asyncio.gather(*(_cancel_one(client, task_id) for task_id in unfinished)))


async def _cancel_one(client: Client, task_id: str) -> bool:
    try:
        await client.cancel(task_id, REASON)
    except (TaskAlreadyFinished, TaskNotFound):
        return False
    except ResultTimeout:
        pass  # no distributor answered: the request waits for one
    return True
