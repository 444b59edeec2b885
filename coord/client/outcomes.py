"""What a client knows of the outcomes of tasks: ``Outcome``, and ``Watch``, which waits for one."""

from __future__ import annotations

import asyncio
from typing import Generic, NamedTuple, TypeVar
from weakref import ref

from msgspec import Struct

from coord.errors import ConfigError

T = TypeVar("T")


class Outcome(NamedTuple):
    """How a task ended, or why its outcome is unknown."""

    state: str  #: completed, failed, cancelled, expired; refused; unknown
    data: bytes = b"null"  #: the result, or the error, as JSON
    is_dropped: bool = False  #: it completed, and its result was dropped to free memory; ``data`` is that error


class LazyFuture(Struct, Generic[T], eq=False):
    """A value that is set once, and a future for it only if a coroutine waits.

    Most tasks of a large batch are never awaited one by one. Without a future the object holds nothing that Python's
    cyclic garbage collector has to visit, which otherwise visits futures by the hundred thousand.
    """

    value: T | None = None  #: None until it is set
    _future: asyncio.Future[T] | None = None

    @property
    def done(self) -> bool:
        """True when the value is set."""
        return self.value is not None

    def set_result(self, value: T) -> None:
        """Set the value; later values change nothing."""
        if self.value is not None:
            return
        self.value = value
        future = self._future
        if future is not None and not future.done() and not future.get_loop().is_closed():
            future.set_result(value)

    def set_exception(self, error: Exception) -> None:
        """Raise ``error`` in the coroutines that wait now. The value may still be set later."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # marks it as retrieved, so asyncio logs no warning

    def future(self) -> asyncio.Future[T]:
        """Return a future for ``asyncio.wait``. All waiters share it, so cancelling it ends the wait of all."""
        loop = asyncio.get_running_loop()
        if self._future is None or self._future.cancelled() or self._future.get_loop() is not loop:
            self._future = loop.create_future()
            if self.value is not None:
                self._future.set_result(self.value)
        return self._future


class Watch(Struct, eq=False, weakref=True):
    """What is known of the outcome of one submission, or of a task of another client."""

    task_id: str
    interval_s: float  #: seconds until the next read of the record
    after: str  #: the last reply read at the start; replies up to it are of something else
    entry: str | None = ""  #: entry id of the submission; None while it is being appended; "" for another client's task
    stream: str = ""  #: stream of the submission
    previous: ref[Watch] | None = None  #: the submission of the task before this one; replies are for it as well
    last_reply: str | None = None  #: the last reply when the submission was first seen to be consumed
    stream_ends: dict[str, str] | None = None  #: of another client's task: last entry of each stream at the first read
    waiters: int = 0  #: coroutines that wait for the outcome; the record is read only while there are any
    read_at: float = 0.0  #: time of the next read of the record, on the clock of the event loop
    _outcome: LazyFuture[Outcome] | None = None
    _taken: LazyFuture[bool] | None = None

    @property
    def outcome(self) -> LazyFuture[Outcome]:
        """The outcome of the task."""
        if self._outcome is None:
            self._outcome = LazyFuture()
        return self._outcome

    @property
    def taken(self) -> LazyFuture[bool]:
        """Set when the submission was certainly consumed or lost, so its answer need not be awaited any more."""
        if self._taken is None:
            self._taken = LazyFuture()
        return self._taken


def closed() -> ConfigError:
    """Return the error for coroutines that wait while their client is closed."""
    return ConfigError("the client was closed while this was waited for; what was submitted goes on")
