"""Appends the facts of a client. Facts that are added during one round trip travel together in the next.

So a thousand coroutines that submit one task each need few round trips and one connection instead of a thousand. A
caller that is cancelled while its facts wait withdraws them; facts that are sent cannot be withdrawn.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from typing import NamedTuple

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.background import cancel_and_wait, run_once
from coord.connection import write_failure
from coord.errors import ServerUnavailable
from coord.keys import Keys
from coord.pipeline import pack
from coord.streams import Append, append_command, append_each

#: Facts in one round trip, about: enough to hide its latency …
FACTS = 500
#: … and bytes of them, about: some milliseconds of work for Redis.
FACT_BYTES = 1024 * 1024


class _Batch(NamedTuple):
    """The facts of one call; they travel in one round trip."""

    packed: list[bytes]
    size: int
    entries: asyncio.Future[list[str]]


class Outbox:
    """Appends facts for one client, with at most one round trip in flight."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self._redis = redis
        self._keys = keys
        self._waiting: deque[_Batch] = deque()
        self._sending: asyncio.Task[None] | None = None

    async def append(self, facts: Sequence[Append]) -> list[str]:
        """Append facts and return their entry ids, in order.

        Raises:
            ServerUnavailable: Redis did not answer; it may have the facts or not.
            ServerFull: Redis is out of memory; it may have accepted some of the facts.
            redis.exceptions.RedisError: Redis refuses them.
        """
        packed = [pack(append_command(self._keys, fact)) for fact in facts]
        entries: asyncio.Future[list[str]] = asyncio.get_running_loop().create_future()
        self._waiting.append(_Batch(packed, sum(map(len, packed)), entries))
        if self._sending is None or self._sending.done():
            self._sending = run_once("outbox.send", self._send, self._fail_all)
        return await entries

    async def close(self) -> None:
        """Stop sending; calls that wait fail."""
        await cancel_and_wait(self._sending)
        for batch in self._waiting:
            _fail(batch, ServerUnavailable("the client was closed before Redis had answered"))
        self._waiting.clear()

    def _fail_all(self, error: Exception) -> None:
        """Fail the calls that wait; the next append starts to send again."""
        for batch in self._waiting:
            _fail(batch, error)
        self._waiting.clear()

    async def _send(self) -> None:
        while batches := self._next():
            try:
                answers = iter(await append_each(self._redis, [packed for batch in batches for packed in batch.packed]))
                for batch in batches:
                    _deliver(batch, [next(answers) for _ in batch.packed])
            except Exception as error:  # noqa: BLE001 -- every error must reach the calls that wait
                for batch in batches:
                    _fail(batch, write_failure(error))
            except asyncio.CancelledError:
                self._waiting.extendleft(reversed(batches))
                raise

    def _next(self) -> list[_Batch]:
        """Take the batches for one round trip: at least one while there is any."""
        batches: list[_Batch] = []
        facts = size = 0
        while self._waiting:
            if self._waiting[0].entries.done():
                self._waiting.popleft()  # its caller was cancelled
                continue
            facts += len(self._waiting[0].packed)
            size += self._waiting[0].size
            if batches and (facts > FACTS or size > FACT_BYTES):
                break
            batches.append(self._waiting.popleft())
        return batches


def _deliver(batch: _Batch, answers: list[str | redis_errors.RedisError]) -> None:
    entries: list[str] = []
    for answer in answers:
        if not isinstance(answer, str):
            _fail(batch, write_failure(answer))
            return
        entries.append(answer)
    if not batch.entries.done():
        batch.entries.set_result(entries)


def _fail(batch: _Batch, error: Exception) -> None:
    if not batch.entries.done():
        batch.entries.set_exception(error)
