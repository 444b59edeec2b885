"""Appends a client's facts: what any number of coroutines append while one round trip is under way goes in the next.

So a thousand coroutines that submit one task each need few round trips and one connection instead of a thousand. A
caller that gives up while its facts wait takes them back; once they are sent, they are Redis's.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.aio import end
from coord.background import run_once
from coord.connection import write_failure
from coord.errors import ServerUnavailable
from coord.keys import Keys
from coord.pipeline import pack
from coord.streams import Append, append_each, command_of

#: Facts in one round trip, about: enough to hide its latency …
FACTS = 500
#: … and bytes of them, about: what Redis is busy with for a few ms.
FACT_BYTES = 1024 * 1024


class _Parcel(NamedTuple):
    """What one call appends; it travels in one piece."""

    packed: list[bytes]
    size: int
    entries: asyncio.Future[list[str]]


class Outbox:
    """One client's way to the streams, with one round trip under way at most."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._waiting: deque[_Parcel] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def append(self, batch: Sequence[Append]) -> list[str]:
        """Append facts; their entry ids, in order.

        Raises:
            ServerUnavailable: Redis did not answer; it may have them or not.
            ServerFull: it is out of memory; some of them may have been taken.
            redis.exceptions.RedisError: it refuses them.
        """
        packed = [pack(command_of(self._keys, one)) for one in batch]
        entries: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Parcel(packed, sum(map(len, packed)), entries))
        if self._sending is None or self._sending.done():
            self._sending = run_once("outbox.send", self._send, self._give_up)
        return await entries

    async def close(self) -> None:
        """Send nothing more; who waits is told so."""
        await end(self._sending)
        for parcel in self._waiting:
            _fail(parcel, ServerUnavailable("the client was closed before Redis had answered"))
        self._waiting.clear()

    def _give_up(self, error: Exception) -> None:
        """The sending ended unexpectedly: those who wait get the error, and the next append starts it again."""
        for parcel in self._waiting:
            _fail(parcel, error)
        self._waiting.clear()

    async def _send(self) -> None:
        while parcels := self._next():
            try:
                told = await append_each(self._redis, [command for one in parcels for command in one.packed])
                rest = iter(told)
                for parcel in parcels:
                    _deliver(parcel, [next(rest) for _ in parcel.packed])
            except Exception as error:  # noqa: BLE001 -- whatever it is, those who wait for it must hear of it
                for parcel in parcels:
                    _fail(parcel, write_failure(error))
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(parcels))
                raise

    def _next(self) -> list[_Parcel]:
        """What goes in one round trip: at least one parcel while there is any."""
        parcels: list[_Parcel] = []
        facts = size = 0
        while self._waiting:
            if self._waiting[0].entries.done():
                self._waiting.popleft()  # its caller has given up
                continue
            facts += len(self._waiting[0].packed)
            size += self._waiting[0].size
            if parcels and (facts > FACTS or size > FACT_BYTES):
                break
            parcels.append(self._waiting.popleft())
        return parcels


def _deliver(parcel: _Parcel, told: list[str | redis_errors.RedisError]) -> None:
    entries: list[str] = []
    for one in told:
        if not isinstance(one, str):
            _fail(parcel, write_failure(one))
            return
        entries.append(one)
    if not parcel.entries.done():
        parcel.entries.set_result(entries)


def _fail(parcel: _Parcel, error: Exception) -> None:
    if not parcel.entries.done():
        parcel.entries.set_exception(error)
