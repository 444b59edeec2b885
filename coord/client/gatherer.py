"""Gathers the submissions of many coroutines: those of one turn of the event loop share entries and a round trip.

``Client.submit_many`` does the same for the tasks of one call. A program that serves many callers, such as the HTTP
gateway, has one task from each of them. An entry with many tasks costs Redis, the distributor and the client little
more than an entry with one.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Iterable, Sequence

from coord.background import cancel_and_wait, run_once
from coord.client.answers import Answer, Appended
from coord.client.connection import ClientConnection
from coord.client.submission import TaskEntry, group_tasks
from coord.client.watcher import ANSWERS_KEPT
from coord.errors import CoordError, ResultTimeout, ServerUnavailable
from coord.streams import Append

#: Maximum number of tasks in one round trip.
TASKS = 500

NOT_APPENDED = "the client was closed before it sent the task; nothing was appended"
PERHAPS_APPENDED = "the client was closed before Redis had answered; Redis may have the task"
WITHDRAWN = "Redis did not answer in time, and the task was not sent; nothing was appended"
NOT_ANSWERED = "the wait for a distributor was ended; Redis has the task, and it waits for one"


class Gathered:
    """A submission.

    Attributes:
        entry_id: id of its entry, which several tasks may share; empty until it is appended.
    """

    __slots__ = ("append", "entry_id", "future", "is_late", "is_withdrawn")

    def __init__(self, append: Append, future: asyncio.Future[None]) -> None:
        self.append = append
        self.entry_id = ""
        self.future = future
        self.is_late = False
        self.is_withdrawn = False

    def appended(self) -> asyncio.Future[None]:
        """Return a new future that waits only for Redis, after the wait for an answer was interrupted.

        It raises ``ServerUnavailable`` if the task was withdrawn meanwhile.
        """
        self.is_late = True
        self.future = asyncio.get_running_loop().create_future()
        if self.is_withdrawn:
            self.fail(ServerUnavailable(WITHDRAWN))
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
        self._in_flight: Sequence[Gathered] = ()
        #: Facts in Redis whose answer is expected: task id -> its submission.
        self._unanswered: OrderedDict[Appended, dict[str, Gathered]] = OrderedDict()
        self._is_closed = False
        self._sending: asyncio.Task[None] | None = None

    def add(self, append: Append) -> Gathered:
        """Submit a task at the end of this turn of the event loop.

        The future of the result is done when a distributor has admitted the task or, for an ``append`` without a
        caller, when Redis has it. It raises the error of the answer, ``ServerUnavailable`` or ``ServerFull``. A
        submission whose future is cancelled before it is sent is withdrawn.
        """
        gathered = Gathered(append, asyncio.get_running_loop().create_future())
        if self._is_closed:
            gathered.fail(ServerUnavailable(NOT_APPENDED))
            return gathered
        self._waiting.append(gathered)
        if self._sending is None or self._sending.done():
            self._sending = run_once("gatherer.send", self._send, self._fail_all)
        return gathered

    async def close(self) -> None:
        """Stop sending; all submissions that wait fail, each with an error that says whether Redis has it."""
        self._is_closed = True
        await cancel_and_wait(self._sending)
        self._fail_all(ServerUnavailable(NOT_APPENDED))
        _fail(self._in_flight, ServerUnavailable(PERHAPS_APPENDED))
        self.end_waits()

    def end_waits(self) -> None:
        """End the waits for a distributor with ``ResultTimeout``; what Redis does not have yet goes on to wait."""
        unanswered, self._unanswered = self._unanswered, OrderedDict()
        for waiting in unanswered.values():
            _fail(waiting.values(), ResultTimeout(NOT_ANSWERED))

    def _fail_all(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, []
        _fail(waiting, error)

    async def _send(self) -> None:
        while self._waiting:
            await asyncio.sleep(0)  # the other requests of this turn
            taken, self._waiting = self._waiting[:TASKS], self._waiting[TASKS:]
            batch: list[Gathered] = []
            for gathered in taken:
                if gathered.future.done():
                    gathered.is_withdrawn = True
                else:
                    batch.append(gathered)
            # Tasks that share an entry have the same stream and caller.
            batch.sort(key=lambda gathered: (gathered.append.stream, gathered.append.caller))
            self._in_flight = batch
            try:
                await self._append(batch)
            except Exception as error:  # noqa: BLE001 (every error must reach the callers that wait)
                _fail(batch, error)
            self._in_flight = ()

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
        fact = (stream, entry_id)
        self._unanswered[fact] = waiting
        if len(self._unanswered) > ANSWERS_KEPT:
            self._unanswered.popitem(last=False)

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
            if answer.task_id and waiting:
                return True
            self._unanswered.pop(fact, None)
            return False

        self._connection.watcher.expect(stream, entry_id, receive)


def _task_id(gathered: Gathered) -> str:
    task_id: str = gathered.append.fact.task_id  # type: ignore[attr-defined]
    return task_id


def _fail(group: Iterable[Gathered], error: Exception) -> None:
    for gathered in group:
        gathered.fail(error)


def _copy(error: CoordError) -> CoordError:
    """Return an equal error: one exception raised by many coroutines would collect their tracebacks."""
    return type(error)(str(error))
