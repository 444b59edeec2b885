"""Reads the statistics of the cell for ``/metrics`` and the like: requests within some seconds share one read."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from time import monotonic
from typing import Any, Generic, TypeVar

from coord.gateway.backend import Backend
from coord.gateway.exposition import render
from coord.models.statistics import CellStatistics

T = TypeVar("T")

#: Seconds for which a read is shared.
SHARED_S = 1.0
#: The same for the weights of the agents: a read costs a command for each agent, and weights rarely change.
WEIGHTS_S = 10.0


class Scrapes:
    """The latest statistics of the cell, and the metrics made of them.

    Args:
        backend: the client.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._statistics: _Shared[CellStatistics] = _Shared(SHARED_S)
        self._weights: _Shared[dict[str, float]] = _Shared(WEIGHTS_S)
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


class _Shared(Generic[T]):
    """A read that all requests within a time share."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._reading: asyncio.Task[T] | None = None
        self._read_at = 0.0

    async def get(self, read: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Return what was read; read again if it is too old, or if the last read failed."""
        reading = self._reading
        if reading is None or (reading.done() and (_failed(reading) or monotonic() - self._read_at > self._seconds)):
            reading = self._reading = asyncio.create_task(read())
            self._read_at = monotonic()
        return await asyncio.shield(reading)


def _failed(reading: asyncio.Task[T]) -> bool:
    return reading.cancelled() or reading.exception() is not None
