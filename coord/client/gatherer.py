"""Gathers the submissions of many coroutines: those of one turn of the event loop share entries and a round trip.

``Client.submit_many`` does the same for the tasks of one call. A program that serves many callers, such as the HTTP
gateway, has one task from each of them. An entry with many tasks costs Redis, the distributor and the client little
more than an entry with one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from coord.background import cancel_and_wait, run_once
from coord.client.answers import Answer
from coord.client.connection import ClientConnection
from coord.client.submission import TaskEntry, group_tasks
from coord.errors import CoordError, ServerUnavailable
from coord.streams import Append

#: Maximum number of tasks in one round trip.
TASKS = 500


class Gathered:
    """A submission.

    Attributes:
        entry_id: id of its entry, which several tasks may share; empty until it is appended.
    """

    __slots__ = ("append", "entry_id", "future", "is_late")

    def __init__(self, append: Append, future: asyncio.Future[None]) -> None:
        self.append = append
        self.entry_id = ""
        self.future = future
        self.is_late = False

    def appended(self) -> asyncio.Future[None]:
        """Return a new future that waits only for Redis, after the wait for an answer was interrupted."""
        self.is_late = True
        self.future = asyncio.get_running_loop().create_future()
        return self.future

    def done(self) -> None:
        """End the wait."""
        if not self.future.done():
            self.future.set_result(None)

    def fail(self, error: Exception) -> None:
        """End the wait with an error."""
        if not self.future.done():
            self.future.set_exception(error)


class Gatherer:
    """Appends the submissions of one client, with at most one round trip in flight.

    Args:
        connection: of the client.
    """

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection
        self._waiting: list[Gathered] = []
        self._sending: asyncio.Task[None] | None = None

    def add(self, append: Append) -> Gathered:
        """Submit a task at the end of this turn of the event loop.

        The future of the result is done when a distributor has admitted the task or, for an ``append`` without a
        caller, when Redis has it. It raises the error of the answer, ``ServerUnavailable`` or ``ServerFull``. A
        submission whose future is cancelled before it is sent is withdrawn.
        """
        gathered = Gathered(append, asyncio.get_running_loop().create_future())
        self._waiting.append(gathered)
        if self._sending is None or self._sending.done():
            self._sending = run_once("gatherer.send", self._send, self._fail_all)
        return gathered

    async def close(self) -> None:
        """Stop sending; submissions that wait fail."""
        await cancel_and_wait(self._sending)
        self._fail_all(ServerUnavailable("the client was closed before Redis had answered"))

    def _fail_all(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        for gathered in waiting:
            gathered.fail(error)

    async def _send(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # the other requests of this turn
            taken, self._waiting = self._waiting[:TASKS], self._waiting[TASKS:]
            batch = [gathered for gathered in taken if not gathered.future.done()]
            # Tasks that share an entry have the same stream and caller.
            batch.sort(key=lambda gathered: (gathered.append.stream, gathered.append.caller))
            try:
                await self._append(batch)
            except Exception as error:  # noqa: BLE001 (every error must reach the callers that wait)
                for gathered in batch:
                    gathered.fail(error)

    async def _append(self, batch: Sequence[Gathered]) -> None:
        entries = self._entries([gathered.append for gathered in batch])
        if not entries:
            return
        entry_ids = await self._connection.append([entry.append for entry in entries])
        rest = iter(batch)
        for entry, entry_id in zip(entries, entry_ids, strict=True):
            group = [next(rest) for _ in range(entry.tasks)]
            for gathered in group:
                gathered.entry_id = entry_id
            for gathered in group:
                if gathered.is_late or not entry.append.caller:
                    gathered.done()
            if entry.append.caller:
                self._expect(entry.append.stream, entry_id, group)

    def _entries(self, appends: Sequence[Append]) -> list[TaskEntry]:
        """Group tasks by caller, then as ``submit_many`` does."""
        limit = self._connection.settings.max_entry_bytes
        entries: list[TaskEntry] = []
        start = 0
        for index in range(1, len(appends) + 1):
            if index == len(appends) or appends[index].caller != appends[start].caller:
                entries += group_tasks(appends[start:index], limit)
                start = index
        return entries

    def _expect(self, stream: str, entry_id: str, group: Sequence[Gathered]) -> None:
        """End the waits of a group when its answers arrive: one for all, or one for each task."""
        waiting = {_task_id(gathered): gathered for gathered in group}

        def receive(answer: Answer) -> bool:
            if answer.task_id:
                found = [waiting.pop(answer.task_id)] if answer.task_id in waiting else []
            else:
                found = list(waiting.values())
            error = None if answer.ok else answer.error
            for gathered in found:
                if error is None:
                    gathered.done()
                else:
                    gathered.fail(_copy(error))
            return bool(answer.task_id and waiting)

        self._connection.watcher.expect(stream, entry_id, receive)


def _task_id(gathered: Gathered) -> str:
    task_id: str = gathered.append.fact.task_id  # type: ignore[attr-defined]
    return task_id


def _copy(error: CoordError) -> CoordError:
    """Return an equal error: one exception raised by many coroutines would collect their tracebacks."""
    return type(error)(str(error))
