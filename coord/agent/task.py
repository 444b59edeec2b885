"""A task as its handler sees it, and the exceptions with which a handler says more than "it failed"."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from coord import values
from coord.agent.attempt import Attempt
from coord.codec import BAD_JSON, decode_json
from coord.logs import get_logger

log = get_logger()


class NonRetryable(Exception):
    """Raise it in a handler: the task fails for good, with this code and message, whatever attempts are left.

    ``detail`` is any JSON of up to 4 KiB. The caller finds all three at its ``TaskFailed``.
    """

    def __init__(self, code: str, message: str = "", *, detail: Any = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.detail = detail


class Retryable(Exception):
    """Raise it in a handler: this attempt failed, with this code and message; it is tried again if attempts are left.

    Any other exception does the same, with the code ``handler_failed`` and a traceback in the agent's log. ``detail``
    is any JSON of up to 4 KiB; where no attempt is left, the caller finds all three at its ``TaskFailed``.
    """

    def __init__(self, code: str, message: str = "", *, detail: Any = None) -> None:
        super().__init__(f"{code}: {message}" if message else code)
        self.code = code
        self.message = message
        self.detail = detail


class Release(Exception):
    """Raise it in a handler: the task is given back unfinished and tried again soon; it counts as no attempt."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason


class Task:
    """One attempt at a task."""

    __slots__ = ("_attempt", "_payload", "_tell")

    def __init__(self, attempt: Attempt, tell: Callable[[Attempt, bytes], None]) -> None:
        self._attempt = attempt
        self._tell = tell
        self._payload: Any = msgspec.UNSET

    @property
    def task_id(self) -> str:
        """Its id."""
        return self._attempt.task_id

    @property
    def task_type(self) -> str:
        """Its type: what handlers are chosen by."""
        return self._attempt.task_type

    @property
    def attempt(self) -> int:
        """How often it was assigned, this time included. Execution is at least once: a handler may want to know."""
        return self._attempt.number

    @property
    def lease(self) -> str:
        """What makes this attempt's reports count: 16 hex digits."""
        return self._attempt.lease

    @property
    def payload(self) -> Any:
        """What the client sent; decoded at the first look.

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
        """The same as the client sent it: JSON, not looked into."""
        return bytes(self._attempt.raw)

    @property
    def cancelled(self) -> bool:
        """Whether this attempt shall stop.

        An async handler is cancelled besides. One that runs in a thread should look here now and then and return;
        whatever it returns then is dropped.
        """
        return self._attempt.stop_reason is not None

    async def progress(self, value: Any) -> None:
        """Record how far it is: any JSON. Only the newest counts; one that comes too soon after another is skipped.

        A value that cannot be JSON is left out, with a warning in the agent's log: progress never fails a task.
        """
        self.report_progress(value)
        await asyncio.sleep(0)

    def report_progress(self, value: Any) -> None:
        """The same for a handler that runs in a thread; may be called from anywhere."""
        try:
            raw = values.encode(value, "progress")
        except values.ValueRefused as error:
            log.warning("task.progress_refused", task_id=self.task_id, error=str(error))
            return
        self._tell(self._attempt, raw)

    def __repr__(self) -> str:
        return f"<Task {self.task_id} {self.task_type!r} attempt {self.attempt}>"
