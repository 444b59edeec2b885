"""A task in an agent: ``Task`` as its handler sees it, ``Attempt`` as the agent does, and exceptions for handlers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from coord import values
from coord.arguments import as_seconds
from coord.codec import BAD_JSON, decode_json
from coord.logs import get_logger

log = get_logger()


class NonRetryable(Exception):
    """Raise it in a handler to fail the task without a retry, even if attempts are left.

    The caller finds the code, the message and the detail in its ``TaskFailed``.

    Args:
        code: error code in the record of the task, up to 128 characters.
        message: reason in the record of the task, up to 4,096 characters.
        detail: any JSON of up to 4 KiB, for programs.
    """

    def __init__(self, code: str, message: str = "", *, detail: Any = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.detail = detail


class Retryable(Exception):
    """Raise it in a handler to fail this attempt with a code; the task is retried if attempts are left.

    Any other exception does the same, with the code ``handler_failed`` and a traceback in the agent's log. If no
    attempt is left, the caller finds the code, the message and the detail in its ``TaskFailed``.

    In a message handler, ``Retryable(after=5)`` puts the message off: the handler gets it again after 5 seconds, and so
    on until the message expires. Later messages do not wait for it.

    Args:
        code: error code in the record of the task, up to 128 characters.
        message: reason in the record of the task, up to 4,096 characters.
        detail: any JSON of up to 4 KiB, for programs.
        after: seconds until a message handler gets its message again. A task waits for its own backoff instead.

    Raises:
        FactInvalid: ``after`` is not a finite number.
    """

    def __init__(
        self, code: str = "try_again", message: str = "", *, detail: Any = None, after: float | None = None
    ) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.detail = detail
        self.after = None if after is None else as_seconds(after, "after")


class Release(Exception):
    """Raise it in a handler to give the task back unfinished; it is retried soon, and the attempt is not counted.

    Args:
        reason: kept in the record of the task.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Attempt(msgspec.Struct, eq=False):
    """One attempt at a task, from the read of its inbox entry to the answer to its report."""

    task_id: str
    lease: str
    number: int  #: 1 for the first
    lane: int  #: of the inbox
    entry: bytes  #: of the inbox
    raw: bytes | msgspec.Raw  #: the task as submitted; only its payload once the handler has started
    task_type: str = ""
    traceparent: str | None = None
    is_unclaimed: bool = True
    started_at: float = 0.0  #: on the clock of the event loop; 0 until the handler has started
    has_reported_start: bool = False
    stop_reason: str | None = None  #: why the attempt must stop; None: it may continue
    future: asyncio.Future[Any] | None = None
    is_sending_progress: bool = False
    next_progress: bytes | None = None


class Task:
    """One attempt at a task, for its handler."""

    __slots__ = ("_attempt", "_payload", "_report_progress")

    def __init__(self, attempt: Attempt, report_progress: Callable[[Attempt, bytes], None]) -> None:
        self._attempt = attempt
        self._report_progress = report_progress
        self._payload: Any = msgspec.UNSET

    @property
    def task_id(self) -> str:
        """Id of the task."""
        return self._attempt.task_id

    @property
    def task_type(self) -> str:
        """Type of the task, by which its handler is chosen."""
        return self._attempt.task_type

    @property
    def attempt(self) -> int:
        """Number of the attempt, 1 for the first. Execution is at-least-once, so a handler may need it."""
        return self._attempt.number

    @property
    def lease(self) -> str:
        """Lease of the attempt, 16 hex digits; only reports with the current lease count."""
        return self._attempt.lease

    @property
    def traceparent(self) -> str | None:
        """Place of the task in a distributed trace, as it was submitted; what the handler sends has the same."""
        return self._attempt.traceparent

    @property
    def payload(self) -> Any:
        """Payload that the client sent; decoded at the first access.

        Raises:
            NonRetryable: it cannot be decoded (``payload_invalid``), such as a number that is out of range.
        """
        if self._payload is msgspec.UNSET:
            raw = bytes(self._attempt.raw)
            try:
                self._payload = decode_json(raw)
            except BAD_JSON as error:
                raise NonRetryable("payload_invalid", values.why_undecodable(raw, "payload", error)) from None
        return self._payload

    @property
    def payload_json(self) -> bytes:
        """Payload as the client sent it: JSON, not decoded."""
        return bytes(self._attempt.raw)

    @property
    def cancelled(self) -> bool:
        """True when this attempt must stop.

        An async handler is cancelled as well. A handler that runs in a thread should check this regularly and return;
        its result is then dropped.
        """
        return self._attempt.stop_reason is not None

    async def progress(self, value: Any) -> None:
        """Record the progress, any JSON value. Only the newest value counts; intermediate values are skipped.

        A value that cannot be encoded as JSON is left out, with a warning in the agent's log: progress never fails a
        task.
        """
        self.report_progress(value)
        await asyncio.sleep(0)

    def report_progress(self, value: Any) -> None:
        """Record the progress like ``progress``, from a handler that runs in a thread; may be called anywhere."""
        try:
            raw = values.encode(value, "progress")
        except values.ValueRefused as error:
            log.warning("task.progress_refused", task_id=self.task_id, error=str(error))
            return
        self._report_progress(self._attempt, raw)

    def __repr__(self) -> str:
        return f"<Task {self.task_id} {self.task_type!r} attempt {self.attempt}>"
