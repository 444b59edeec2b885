"""The coordinator's part of a trace: spans of tasks that have ended, made from the times in their records.

The workers record no spans, so tracing costs the path of a task nothing. One process follows ``log:tasks`` instead and
reads each ended task once.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing

from coord import queries
from coord.background import cancel_and_wait
from coord.client.connection import ClientConnection
from coord.client.events import follow_events
from coord.connection import reading
from coord.models.events import Event
from coord.models.tasks import TaskRecord, TaskState
from coord.spans import Attributes, EndedSpan, Recorder

#: Tasks whose time of admission is remembered until they end.
MOST_ADMITTED = 100_000
#: Records read in one round trip, and seconds after which fewer are read.
BATCH = 100
BATCH_S = 0.2
_ADMITTED = frozenset({"task.queued", "task.scheduled"})
_ENDED = frozenset({"task.completed", "task.failed", "task.cancelled", "task.expired"})


class CoordinationSpans:
    """Records the spans of each task that ends and has a ``traceparent``.

    Args:
        connection: of a client.
        recorder: records the spans.
    """

    def __init__(self, connection: ClientConnection, recorder: Recorder) -> None:
        self._connection = connection
        self._recorder = recorder
        self._admitted: OrderedDict[str, int] = OrderedDict()  # task -> ms
        self._ended: list[str] = []
        self.tasks = 0  #: whose spans were recorded

    async def follow(self, *, since: str | None = None, follow: bool = True) -> None:
        """Follow the log of tasks.

        Args:
            since: id of the entry after which to begin; None: from now on.
            follow: continue for ever; if False, end with the events until now.

        Raises:
            ServerUnavailable: Redis is unavailable at the beginning, or at any time without ``follow``.
        """
        settings, redis, keys = self._connection.settings, self._connection.redis, self._connection.keys
        following: AsyncGenerator[Event] = follow_events(
            redis, keys, since=since, follow=follow, block_ms=settings.read_block_ms, logs=("tasks",)
        )
        flushing = asyncio.create_task(self._flush_often()) if follow else None
        try:
            with reading():
                async with aclosing(following) as events:
                    async for event in events:
                        self._note(event)
                        if len(self._ended) >= BATCH:
                            await self.flush()
                await self.flush()
        finally:
            await cancel_and_wait(flushing)

    async def _flush_often(self) -> None:
        while True:
            await asyncio.sleep(BATCH_S)
            await self.flush()

    def _note(self, event: Event) -> None:
        task_id = event.fields.get("task_id", "")
        if event.type in _ADMITTED:
            self._admitted.setdefault(task_id, event.at)
            if len(self._admitted) > MOST_ADMITTED:
                self._admitted.popitem(last=False)
        elif event.type in _ENDED:
            self._ended.append(task_id)

    async def flush(self) -> None:
        """Record the spans of the tasks that have ended since the last call."""
        ended, self._ended = self._ended, []
        for record in await queries.get_tasks(self._connection.redis, self._connection.keys, ended):
            if record is None:
                continue
            admitted_at = self._admitted.pop(record.task_id, None)
            if record.traceparent is not None:
                self.tasks += 1
                for span in spans_of(record, admitted_at):
                    self._recorder.record(span, record.traceparent)


def spans_of(record: TaskRecord, admitted_at: int | None) -> Iterator[EndedSpan]:
    """Yield the spans of an ended task.

    ``coord.admit`` until it is admitted, for each attempt ``coord.wait`` until it is assigned and ``coord.dispatch``
    until its agent starts, and ``coord.settle`` at its end.
    """
    task: Attributes = {"coord.task_id": record.task_id, "coord.task_type": record.task_type}
    since = record.submitted_at
    if admitted_at is not None:
        yield EndedSpan("coord.admit", since, admitted_at, task | {"coord.priority": record.priority.value})
        since = max(since, admitted_at)
    if record.run_at is not None:
        since = max(since, record.run_at)
    number = 0
    for attempt in sorted(record.attempts, key=lambda one: one.attempt):
        number = attempt.attempt
        of_attempt: Attributes = task | {"coord.attempt": number, "coord.agent_id": attempt.agent_id}
        if attempt.assigned_at is not None:
            error = f"{attempt.how}: {attempt.code}: {attempt.message}"
            yield EndedSpan("coord.wait", since, attempt.assigned_at, of_attempt)
            begun = attempt.started_at or attempt.ended_at or attempt.assigned_at
            yield EndedSpan(
                "coord.dispatch", attempt.assigned_at, begun, of_attempt | {"coord.how": attempt.how}, error
            )
        since = attempt.ended_at or since
    if record.assigned_at is not None and record.agent_id and record.attempt > number:
        of_attempt = task | {"coord.attempt": record.attempt, "coord.agent_id": record.agent_id}
        yield EndedSpan("coord.wait", since, record.assigned_at, of_attempt)
        begun = record.started_at or record.finished_at or record.assigned_at
        yield EndedSpan("coord.dispatch", record.assigned_at, begun, of_attempt)
    finished_at = record.finished_at or since
    failure = f"{record.error.code}: {record.error.message}" if record.error is not None else None
    outcome: Attributes = task | {"coord.outcome": record.state.value}
    yield EndedSpan(
        "coord.settle", finished_at, finished_at, outcome, None if record.state is TaskState.COMPLETED else failure
    )
