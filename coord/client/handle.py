"""A submitted task: wait for its outcome, cancel it, look at its record."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple
from weakref import ref

from msgspec import Struct

from coord.arguments import seconds
from coord.client.answers import Answer
from coord.client.outcomes import LazyFuture
from coord.codec import BAD_JSON, decode_json, encode
from coord.errors import (
    ConfigError,
    CoordError,
    ResultDropped,
    ResultInvalid,
    ResultTimeout,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotFound,
    TaskRefused,
)
from coord.models.tasks import TERMINAL, TaskRecord, TaskState

if TYPE_CHECKING:
    from coord.client.client import Client


class Outcome(NamedTuple):
    """How a task ended, or why nothing can be said of it."""

    state: str  #: completed, failed, cancelled, expired; refused; unknown
    data: bytes = b"null"  #: the result, or the error, as JSON
    is_dropped: bool = False  #: it completed, and its result was dropped to free memory; ``data`` is that error


class Watch(Struct, eq=False, weakref=True):
    """What is known of the outcome of one submission, or of a task that someone else submitted."""

    task_id: str
    interval_s: float  #: until the next look
    after: str  #: the last reply that had been read: up to it, replies tell of something else
    entry: str | None = ""  #: of the submission; None while it is being appended; empty for a task of someone else's
    stream: str = ""  #: that it was submitted on
    earlier: ref[Watch] | None = None  #: of the task's submission before, which replies tell of as well
    last_reply: str | None = None  #: when the submission was first seen to be consumed
    behind: dict[str, str] | None = None  #: of someone else's: the last entry of each stream at the first look
    waiters: int = 0  #: who wait for the outcome now; only then its record is looked at
    look_at: float = 0.0  #: when, on the loop's clock
    _outcome: LazyFuture[Outcome] | None = None
    _taken: LazyFuture[bool] | None = None

    @property
    def outcome(self) -> LazyFuture[Outcome]:
        """How it ended, once that is known."""
        if self._outcome is None:
            self._outcome = LazyFuture()
        return self._outcome

    @property
    def taken(self) -> LazyFuture[bool]:
        """Told when the submission was taken for certain, or is lost; its answer need not be waited for any more."""
        if self._taken is None:
            self._taken = LazyFuture()
        return self._taken


class TaskHandle:
    """One submission of a task."""

    __slots__ = ("_answer", "_client", "_watch", "entry_id")

    def __init__(self, client: Client, watch: Watch, entry_id: str, answer: LazyFuture[Answer] | None) -> None:
        self._client = client
        self._watch = watch
        self._answer = answer
        self.entry_id = entry_id  #: of the fact; empty for a task that someone else submitted

    @property
    def task_id(self) -> str:
        """The task's id."""
        return self._watch.task_id

    @property
    def done(self) -> bool:
        """Whether the outcome is known here."""
        return self.outcome is not None

    @property
    def outcome(self) -> Outcome | None:
        """How the task ended, or that this submission was turned down (``refused``); None until it is known here."""
        answer = self._answer.value if self._answer is not None else None
        if answer is not None and not answer.ok:
            return Outcome(TaskState.REFUSED, encode({"code": answer.code, "message": answer.message}))
        if self._answer is not None and answer is None and not self._watch.taken.is_here:
            return None  # what the replies told may be of another submission under this id
        return self._watch.outcome.value

    async def accepted(self, timeout: float | None = None) -> None:
        """Return when the coordinator has taken the task.

        Raises:
            TaskRefused: the backlog is full; submit the task again later.
            IdConflict: the id was used before with other content.
            ResultTimeout: no answer within ``timeout`` seconds; the submission waits for a distributor.
            ConfigError: the client was closed meanwhile.
        """
        patience = _Patience(timeout)
        await self._accepted(patience)

    async def _accepted(self, patience: _Patience) -> None:
        if self._answer is None:
            return
        await self._wait((self._answer, self._watch.taken), patience, "accepted", "does a distributor run?")
        answer, outcome = self._answer.value, self._watch.outcome.value
        if answer is not None:
            if not answer.ok:
                raise answer.error
        elif outcome is not None and outcome.state not in TERMINAL:
            raise await self._error(outcome)

    async def result(self, timeout: float | None = None) -> Any:
        """The task's result.

        Waits for the coordinator's word. That may get lost (Redis restarts, the replies are capped), so while
        someone waits, the record is looked at as well, every 3 s: it is the truth.

        Raises:
            TaskFailed: it used up its attempts, or failed for good; says how often it was tried, the code and message.
            TaskCancelled, TaskExpired: it ended without a result.
            ResultDropped: it completed, but its result was dropped to free memory on the server before it was read.
            ResultInvalid: it completed, but its result cannot be decoded, such as a number that is out of range.
            TaskRefused: the backlog was full; submit the task again later.
            IdConflict: the id was used before with other content.
            TaskNotFound: nothing is known of it, because its record was forgotten, or Redis lost its data.
            ResultTimeout: it had no outcome within ``timeout`` seconds; the task goes on.
            ConfigError: the client was closed meanwhile.
        """
        patience = _Patience(timeout)
        # First what became of this submission: the outcome may be of another one with the same id.
        await self._accepted(patience)
        await self._wait((self._watch.outcome,), patience, "finished", "it goes on")
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

    async def _wait(self, wanted: Sequence[LazyFuture[Any]], patience: _Patience, what: str, hint: str) -> None:
        """Wait for the first of these; one that is here needs no client."""
        if any(one.is_here for one in wanted):
            return
        try:
            await self._client.watcher.wait(self._watch, wanted, patience.left)
        except TimeoutError:
            raise ResultTimeout(
                f"task '{self.task_id}' was not {what} within {patience.timeout_s:g} s; {hint}"
            ) from None

    async def cancel(self, reason: str = "", *, wait: float = 2.0) -> str:
        """Cancel the task; see ``Client.cancel``."""
        return await self._client.cancel(self.task_id, reason, wait=wait)

    async def record(self) -> TaskRecord:
        """What is recorded of the task; raises ``TaskNotFound`` until the coordinator has taken it."""
        return await self._client.task(self.task_id)

    @contextmanager
    def waited_for(self, tell: Callable[[TaskHandle], None]) -> Iterator[None]:
        """Have ``tell`` called when the outcome is known or the submission was turned down, perhaps twice.

        Meanwhile the record is looked at besides. One that is done needs no client.
        """
        if self.outcome is not None:
            tell(self)
            yield
            return

        def look(told: asyncio.Future[Any]) -> None:
            if self.outcome is not None or (not told.cancelled() and told.exception() is not None):
                tell(self)

        watched: list[asyncio.Future[Any]] = [self._watch.outcome.future()]
        if self._answer is not None:
            watched += [self._answer.future(), self._watch.taken.future()]
        watcher = self._client.watcher
        watcher.begin_waiting(self._watch)
        for one in watched:
            one.add_done_callback(look)
        try:
            yield
        finally:
            watcher.end_waiting(self._watch)
            for one in watched:
                one.remove_done_callback(look)

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
                attempt = 0  # the outcome itself is known
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


class _Patience:
    """How long somebody waits, for one thing after the other."""

    def __init__(self, timeout: float | None) -> None:
        self.timeout_s = 0.0 if timeout is None else seconds(timeout, "timeout")
        self._until = None if timeout is None else asyncio.get_running_loop().time() + self.timeout_s

    @property
    def left(self) -> float | None:
        """Seconds; None for ever."""
        return None if self._until is None else max(0.0, self._until - asyncio.get_running_loop().time())


def closed() -> ConfigError:
    """What is told to those who wait while their client is closed."""
    return ConfigError("the client was closed while this was waited for; what was submitted goes on")
