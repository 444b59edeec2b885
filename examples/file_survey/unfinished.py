"""What a run has submitted: noted in the data folder, so that whatever is not finished when it ends can be cancelled.

The note is written before the tasks are submitted, so it names all that there may be, also after ``kill -9``: then the
next run cancels them, and has agents and clock to itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import msgspec

from coord import Client, queries
from coord.endpoint import write_private
from coord.errors import TaskAlreadyFinished, TaskNotFound
from coord.models.ids import new_id
from coord.models.tasks import TERMINAL, Priority

#: Tasks looked at or cancelled together; a client awaits no more than 1,000 answers.
STEP = 500
REASON = "the main job was interrupted"


class Run(msgspec.Struct, frozen=True):
    """A run and how many tasks it may have submitted."""

    run_id: str
    tasks: int = 0

    def task_id(self, number: int) -> str:
        """The id of its task of this number, from 0 on."""
        return f"{self.run_id}-{number}"


class Unfinished:
    """The note of this run, or of an earlier one while this one has submitted nothing.

    Args:
        folder: where it is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / "unfinished.json"
        self._run = Run(new_id())

    def task_id(self, number: int) -> str:
        """The id of this run's task of this number."""
        return self._run.task_id(number)

    def submitting(self, tasks: int) -> None:
        """So many tasks may have been submitted from now on."""
        self._run = Run(self._run.run_id, tasks)
        write_private(self._path, msgspec.json.encode(self._run))

    def forget(self) -> None:
        """All are finished."""
        self._path.unlink(missing_ok=True)

    async def cancel(self, client: Client) -> int:
        """Cancel what the note names and is not finished, and forget it; how many tasks that were.

        Raises:
            RedisError, OSError, ServerUnavailable, ServerFull: Redis is away; the note stays.
        """
        run = self._noted()
        if run is None:
            return 0
        # Asked before the records are: a task without a record was either never submitted, or still lies there.
        waits = bool(await client.redis.xlen(client.keys.tasks_in(Priority.NORMAL)))
        cancelled = 0
        for begin in range(0, run.tasks, STEP):
            ids = [run.task_id(number) for number in range(begin, min(begin + STEP, run.tasks))]
            cancelled += await _cancel(client, ids, also_unknown=waits)
        self.forget()
        return cancelled

    def _noted(self) -> Run | None:
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=Run)
        except (OSError, msgspec.MsgspecError):
            return None


async def _cancel(client: Client, ids: Sequence[str], *, also_unknown: bool) -> int:
    records = await queries.task_headers(client.redis, client.keys, ids)
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
    return True
