"""Reads the state of the cell for ``/metrics``, ``/system`` and the like: requests within a second share one read."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import Generic, TypeVar

from coord.doctor import Snapshot
from coord.gateway.backend import Backend
from coord.gateway.exposition import render
from coord.models.statistics import CellStatistics

#: Seconds for which a read is shared.
SHARED_S = 1.0
#: The same for the check of the ledger, which reads every record.
LEDGER_S = 30.0

T = TypeVar("T")


class SharedRead(Generic[T]):
    """A read that concurrent requests share, and those within a time after it began.

    Args:
        read: reads from the cell.
        shared_s: for how long its result is returned, in seconds.
    """

    def __init__(self, read: Callable[[], Awaitable[T]], shared_s: float = SHARED_S) -> None:
        self._read = read
        self._shared_s = shared_s
        self._reading: asyncio.Task[T] | None = None
        self._read_at = 0.0
        self.number = 0  #: of the read whose result is returned, from 1

    async def get(self) -> T:
        """Return the result of the read.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        reading = self._reading
        if reading is None or (reading.done() and (_failed(reading) or monotonic() - self._read_at > self._shared_s)):
            reading = self._reading = asyncio.create_task(self._run())
            self._read_at = monotonic()
            self.number += 1
        return await asyncio.shield(reading)

    async def _run(self) -> T:
        return await self._read()


class Scrapes:
    """The latest statistics of the cell, the metrics made of them, and the latest snapshots for ``/system``.

    Args:
        backend: the client.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._statistics = SharedRead(self._read_statistics)
        self._system = SharedRead(self._read_system)
        self._checked_system = SharedRead(self._read_checked_system, LEDGER_S)
        self._rendered_of = 0
        self._rendered: dict[str, tuple[bytes, str]] = {}  # Accept -> metrics of that read of the statistics

    async def statistics(self) -> CellStatistics:
        """Return the statistics of the cell, at most a second old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._statistics.get()

    async def system(self) -> Snapshot:
        """Return a snapshot of the cell, at most a second old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._system.get()

    async def checked_system(self) -> Snapshot:
        """Return a snapshot with a check of the ledger, at most 30 s old; only one check runs at a time.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._checked_system.get()

    async def _read_statistics(self) -> CellStatistics:
        return await self._backend.stats()

    async def _read_system(self) -> Snapshot:
        return await self._backend.system()

    async def _read_checked_system(self) -> Snapshot:
        return await self._backend.system(checks_ledger=True)

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: the header Accept of the request.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        statistics = await self.statistics()
        if self._rendered_of != self._statistics.number:
            self._rendered_of, self._rendered = self._statistics.number, {}
        found = self._rendered.get(accept)
        if found is None:
            if len(self._rendered) >= 8:
                self._rendered = {}
            found = self._rendered[accept] = render(statistics, accept)
        return found


def _failed(reading: asyncio.Task[T]) -> bool:
    return reading.cancelled() or reading.exception() is not None
