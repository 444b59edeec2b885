"""A submitted task: wait for its outcome, cancel it, read its record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, TypeAlias

from msgspec.structs import replace
from redis.exceptions import NoPermissionError

from coord import queries
from coord.arguments import as_seconds
from coord.client.answers import Answer
from coord.client.connection import ClientConnection
from coord.client.outcomes import LazyFuture, Outcome, Watch
from coord.client.submission import build_fact
from coord.codec import BAD_JSON, decode_json, encode
from coord.connection import reading
from coord.context import acting_for
from coord.errors import (
    CoordError,
    FactInvalid,
    ResultDropped,
    ResultInvalid,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskRefused,
)
from coord.models.facts import TaskCancelRequested
from coord.models.ids import check_id
from coord.models.tasks import TERMINAL, TaskRecord, TaskState
from coord.streams import Append

#: Seconds that a distributor has to answer a cancel request.
CANCEL_ANSWER_S = 2.0
#: Maximum length of the reason of a cancel request; the rest is cut off.
MAX_REASON = 4_096

CancelAnswer: TypeAlias = Literal["accepted", "pending"]


class TaskHandle:
    """One submission of a task."""

    __slots__ = ("_answer", "_connection", "_watch", "entry_id")

    def __init__(
        self, connection: ClientConnection, watch: Watch, entry_id: str, answer: LazyFuture[Answer] | None
    ) -> None:
        self._connection = connection
        self._watch = watch
        self._answer = answer
        self.entry_id = entry_id  #: entry id of the submission; empty for a task of another client

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self._watch.task_id

    @property
    def done(self) -> bool:
        """True when the outcome has arrived."""
        return self.outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """How the task ended, or that this submission was refused (``refused``); None until the outcome has arrived."""
        answer = self._answer.value if self._answer is not None else None
        if answer is not None and not answer.ok:
            return Outcome(TaskState.REFUSED, encode({"code": answer.code, "message": answer.message}))
        if self._answer is not None and answer is None and not self._watch.taken.done:
            return None  # the replies may be for another submission with this id
        return self._watch.outcome.value

    async def accepted(self, timeout: float | None = None) -> None:
        """Return when a distributor has admitted the task.

        Args:
            timeout: seconds to wait; None: no limit.

        Raises:
            TaskRefused: the backlog is full; submit the task again later.
            IdConflict: the id was used before with other content.
            ResultTimeout: no answer within ``timeout`` seconds; the submission waits for a distributor.
            ConfigError: the client was closed meanwhile.
        """
        await self._accepted(_Deadline(timeout))

    async def _accepted(self, deadline: _Deadline) -> None:
        if self._answer is None:
            return
        await self._wait((self._answer, self._watch.taken), deadline, "accepted", "does a distributor run?")
        answer, outcome = self._answer.value, self._watch.outcome.value
        if answer is not None:
            if not answer.ok:
                raise answer.error
        elif outcome is not None and outcome.state not in TERMINAL:
            raise await self._error(outcome)

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the task's result and return it.

        The outcome is pushed to the client. A push may get lost (Redis restarts, the replies are capped), so the record
        of an awaited task is read as well, every 3 s.

        Args:
            timeout: seconds to wait; None: no limit.

        Raises:
            TaskFailed: it used up its attempts or failed without a retry; has the attempt, the code and the message.
            TaskCancelled, TaskExpired: it ended without a result.
            ResultDropped: it completed, but its result was dropped to free memory on the server before it was read.
            ResultInvalid: it completed, but its result cannot be decoded, such as a number that is out of range.
            TaskRefused: the backlog was full; submit the task again later.
            IdConflict: the id was used before with other content.
            TaskNotFound: its record was removed, or Redis lost its data.
            ResultTimeout: it had no outcome within ``timeout`` seconds; the task continues.
            ConfigError: the client was closed meanwhile.
        """
        deadline = _Deadline(timeout)
        # First the answer to this submission: the outcome may be of another submission with the same id.
        await self._accepted(deadline)
        await self._wait((self._watch.outcome,), deadline, "finished", "it goes on")
        outcome = await self._watch.outcome.future()
        if outcome.is_dropped:
            raise ResultDropped(decode_json(outcome.data)["message"])
        if outcome.state == TaskState.COMPLETED:
            return self._decoded(outcome.data)
        raise await self._error(outcome)

    def _decoded(self, result: bytes) -> Any:
        try:
            return decode_json(result)
        except BAD_JSON as error:
            raise ResultInvalid(
                f"task '{self.task_id}' completed, but its result cannot be decoded: {error}; its record shows the text"
            ) from error

    async def _wait(self, futures: Sequence[LazyFuture[Any]], deadline: _Deadline, what: str, hint: str) -> None:
        """Wait for the first of these; if one is done already, the client need not be open."""
        if any(future.done for future in futures):
            return
        try:
            await self._connection.watcher.wait(self._watch, futures, deadline.left)
        except TimeoutError:
            raise ResultTimeout(
                f"task '{self.task_id}' was not {what} within {deadline.timeout_s:g} s; {hint}"
            ) from None

    async def cancel(self, reason: str = "", *, timeout: float = CANCEL_ANSWER_S) -> CancelAnswer:
        """Cancel the task; see ``Client.cancel``."""
        return await cancel_task(self._connection, self.task_id, reason, timeout=timeout)

    async def record(self) -> TaskRecord:
        """Read the record of the task; raises ``TaskNotFound`` until a distributor has admitted the task."""
        return await read_task(self._connection, self.task_id)

    @contextmanager
    def notifying(self, callback: Callable[[TaskHandle], None]) -> Iterator[None]:
        """Call ``callback``, perhaps twice, when the outcome is known or the submission was refused.

        Meanwhile the record is read as well. If the handle is done already, the client need not be open.
        """
        if self.outcome is not None:
            callback(self)
            yield
            return

        def check(future: asyncio.Future[Any]) -> None:
            if self.outcome is not None or (not future.cancelled() and future.exception() is not None):
                callback(self)

        futures: list[asyncio.Future[Any]] = [self._watch.outcome.future()]
        if self._answer is not None:
            futures += [self._answer.future(), self._watch.taken.future()]
        watcher = self._connection.watcher
        watcher.begin_waiting(self._watch)
        for future in futures:
            future.add_done_callback(check)
        try:
            yield
        finally:
            watcher.end_waiting(self._watch)
            for future in futures:
                future.remove_done_callback(check)

    async def _error(self, outcome: Outcome) -> CoordError:
        try:
            data = decode_json(outcome.data)
        except BAD_JSON:
            data = None
        code, message = (data.get("code", ""), data.get("message", "")) if isinstance(data, dict) else ("", "")
        if outcome.state == TaskState.FAILED:
            try:
                attempt = (await self.record()).attempt
            except CoordError:
                attempt = 0  # the reply alone is enough for the error
            tried = f" at attempt {attempt}" if attempt > 1 else ""
            detail = data.get("detail") if isinstance(data, dict) else None
            return TaskFailed(
                f"task '{self.task_id}' failed{tried}: {code}: {message}",
                code=code, message=message, detail=detail, task_id=self.task_id, attempt=attempt,
            )  # fmt: skip
        if outcome.state == TaskState.CANCELLED:
            return TaskCancelled(f"task '{self.task_id}' was cancelled" + (f": {message}" if message else ""))
        if outcome.state == TaskState.EXPIRED:
            return TaskExpired(f"task '{self.task_id}' expired: {message}")
        if outcome.state == TaskState.REFUSED:
            return TaskRefused(f"task '{self.task_id}' was refused: {message}; submit it again later")
        return TaskNotFound(f"Task '{self.task_id}' not found: it was forgotten, or Redis lost its data")

    def __repr__(self) -> str:
        return f"<TaskHandle {self.task_id}>"


class _Deadline:
    """The end of a wait for several things, one after the other."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout_s = 0.0 if timeout is None else as_seconds(timeout, "timeout")
        self._until = None if timeout is None else asyncio.get_running_loop().time() + self.timeout_s

    @property
    def left(self) -> float | None:
        """Seconds left; None: no limit."""
        return None if self._until is None else max(0.0, self._until - asyncio.get_running_loop().time())


async def read_task(connection: ClientConnection, task_id: str) -> TaskRecord:
    """Read the record of a task; raises ``TaskNotFound``."""
    with reading():
        record = await queries.get_task(connection.redis, connection.keys, check_id(task_id, "task_id"))
    if record is None:
        raise TaskNotFound(f"Task '{task_id}' not found")
    return record


async def cancel_task(connection: ClientConnection, task_id: str, reason: str, *, timeout: float) -> CancelAnswer:
    """Request that a task is cancelled; see ``Client.cancel``."""
    request = _cancel_request(connection, task_id, reason)
    seconds = as_seconds(timeout, "timeout")
    try:
        answered = await connection.request(request, seconds, "distributor")
    except NoPermissionError:
        if not request.by:
            raise
        answered = await connection.request(_of_client(request), seconds, "distributor")
    found = _cancel_answer(answered.answer)
    if isinstance(found, CoordError):
        raise found
    return found


async def cancel_tasks(
    connection: ClientConnection, task_ids: Sequence[str], reason: str, *, timeout: float
) -> list[CancelAnswer | CoordError | None]:
    """Request that some hundreds of tasks are cancelled, in one round trip; see ``Client.cancel_many``."""
    requests = [_cancel_request(connection, task_id, reason) for task_id in task_ids]
    seconds = as_seconds(timeout, "timeout")
    try:
        answers = await connection.request_many(requests, seconds)
    except NoPermissionError:
        if not acting_for.get():
            raise
        answers = await connection.request_many([_of_client(request) for request in requests], seconds)
    return [None if answer is None else _cancel_answer(answer) for answer in answers]


def _cancel_request(connection: ClientConnection, task_id: str, reason: str) -> Append:
    if not isinstance(reason, str):
        raise FactInvalid(f"reason: expected text, not {type(reason).__name__}")
    request = TaskCancelRequested(check_id(task_id, "task_id"), reason[:MAX_REASON])
    by = acting_for.get()
    stream = "in:control:distributor" if by else "in:requests"
    fact, data = build_fact(stream, TaskCancelRequested, request, connection.settings.max_entry_bytes)
    return Append(stream, fact, connection.caller, data, by=by)


def _of_client(request: Append) -> Append:
    """Return the same request as clients make it, which is not audited: this user may not append what operators do."""
    return replace(request, stream="in:requests", by="")


def _cancel_answer(answer: Answer) -> CancelAnswer | CoordError:
    if answer.ok:
        return "accepted"
    return "pending" if answer.code == "pending" else answer.error
