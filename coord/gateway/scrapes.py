"""Reads the state of the cell for ``/metrics``, ``/system`` and the like: requests within a second share one read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from time import monotonic
from typing import Any, Generic, TypeVar

from coord.doctor import Snapshot
from coord.gateway.backend import Backend
from coord.gateway.exposition import render
from coord.models.statistics import CellStatistics

T = TypeVar("T")

#: Seconds for which a read is shared.
SHARED_S = 1.0
#: The same for the weights of the agents: a read costs a command for each agent, and weights rarely change.
WEIGHTS_S = 10.0
#: The same for the check of the ledger, which reads every record.
LEDGER_S = 30.0


class SharedRead(Generic[T]):
    """A read that concurrent requests share, and those within a time after it began.

    Args:
        shared_s: for how long its result is returned, in seconds.
    """

    def __init__(self, shared_s: float = SHARED_S) -> None:
        self._shared_s = shared_s
        self._reading: asyncio.Task[T] | None = None
        self._read_at = 0.0

    async def get(self, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what was read; read again if it is too old, or if the last read failed.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        reading = self._reading
        if reading is None or (reading.done() and (_failed(reading) or monotonic() - self._read_at > self._shared_s)):
            reading = self._reading = asyncio.create_task(read())
            self._read_at = monotonic()
        return await asyncio.shield(reading)


class Scrapes:
    """The latest statistics of the cell, the metrics made of them, and the latest snapshots for ``/system``.

    Args:
        backend: the client.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._statistics: SharedRead[CellStatistics] = SharedRead()
        self._weights: SharedRead[dict[str, float]] = SharedRead(WEIGHTS_S)
        self._system: SharedRead[Snapshot] = SharedRead()
        self._checked_system: SharedRead[Snapshot] = SharedRead(LEDGER_S)
        self._rendered: dict[str, tuple[bytes, str]] = {}  # Accept -> metrics of the current read
        self._rendered_of: CellStatistics | None = None

    async def statistics(self) -> CellStatistics:
        """Return the statistics of the cell, at most a second old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._statistics.get(self._backend.stats)

    async def weights(self) -> dict[str, float]:
        """Return the weight of each agent that may get work, if it is not 1; at most ten seconds old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._weights.get(self._backend.agent_weights)

    async def system(self) -> Snapshot:
        """Return a snapshot of the cell, at most a second old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._system.get(self._backend.system)

    async def checked_system(self) -> Snapshot:
        """Return a snapshot with a check of the ledger, at most 30 s old; only one check runs at a time.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        return await self._checked_system.get(partial(self._backend.system, checks_ledger=True))

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: the header Accept of the request.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        statistics = await self.statistics()
        if statistics is not self._rendered_of or len(self._rendered) >= 8:
            self._rendered, self._rendered_of = {}, statistics
        found = self._rendered.get(accept)
        if found is None:
            found = self._rendered[accept] = render(statistics, accept)
        return found


def _failed(reading: asyncio.Task[T]) -> bool:
    return reading.cancelled() or reading.exception() is not None
