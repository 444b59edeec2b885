"""Reads the statistics of the cell for ``/metrics`` and the like: requests within a second share one read."""

from __future__ import annotations

import asyncio
from time import monotonic

from coord.gateway.backend import Backend
from coord.gateway.exposition import render
from coord.models.statistics import CellStatistics

#: Seconds for which a read is shared.
SHARED_S = 1.0


class Scrapes:
    """The latest statistics of the cell, and the metrics made of them.

    Args:
        backend: the client.
    """

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._reading: asyncio.Task[CellStatistics] | None = None
        self._read_at = 0.0
        self._rendered: dict[str, tuple[bytes, str]] = {}  # Accept -> metrics of the current read

    async def statistics(self) -> CellStatistics:
        """Return the statistics of the cell, at most a second old.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        reading = self._reading
        if reading is None or (reading.done() and (_failed(reading) or monotonic() - self._read_at > SHARED_S)):
            reading = self._reading = asyncio.create_task(self._backend.stats())
            self._read_at = monotonic()
            self._rendered = {}
        return await asyncio.shield(reading)

    async def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the metrics and their content type.

        Args:
            accept: the header Accept of the request.

        Raises:
            ServerUnavailable: Redis does not answer.
        """
        statistics = await self.statistics()
        found = self._rendered.get(accept)
        if found is None:
            if len(self._rendered) >= 8:
                self._rendered = {}
            found = self._rendered[accept] = render(statistics, accept)
        return found


def _failed(reading: asyncio.Task[CellStatistics]) -> bool:
    return reading.cancelled() or reading.exception() is not None
