"""A value that comes once, and may be asked for before or after."""

from __future__ import annotations

import asyncio
from typing import Generic, TypeVar

from msgspec import Struct

T = TypeVar("T")


class LazyFuture(Struct, Generic[T], eq=False):
    """A value that comes once.

    Most of a bulk of tasks are never waited for one by one: a future is made for whoever does. Until then it holds
    nothing that Python's collector of cycles has to look at, which visits futures by the hundred thousand otherwise.
    """

    value: T | None = None  #: None until it has come
    _future: asyncio.Future[T] | None = None

    @property
    def is_here(self) -> bool:
        """Whether it has come."""
        return self.value is not None

    def tell(self, value: T) -> None:
        """It has come; what comes after the first changes nothing."""
        if self.value is not None:
            return
        self.value = value
        future = self._future
        if future is not None and not future.done() and not future.get_loop().is_closed():
            future.set_result(value)

    def give_up(self, error: Exception) -> None:
        """It will not come for those who wait for it now: they are told why."""
        future, self._future = self._future, None
        if future is not None and not future.done():
            future.set_exception(error)
            future.exception()  # looked at, so that nobody warns of it

    def future(self) -> asyncio.Future[T]:
        """To wait for it with ``asyncio.wait``: all who do share it, so whoever cancels it gives up for all."""
        loop = asyncio.get_running_loop()
        if self._future is None or self._future.cancelled() or self._future.get_loop() is not loop:
            self._future = loop.create_future()
            if self.value is not None:
                self._future.set_result(self.value)
        return self._future
