"""The connection of a client to a cell: appends facts and receives the answers of workers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

from msgspec import Struct
from redis.asyncio import Redis

from coord.arguments import as_seconds, check_connection_options
from coord.cells import absence_advice
from coord.client.answers import Answer, Appended
from coord.client.events import LogReader
from coord.client.outbox import Outbox
from coord.client.submission import build_fact
from coord.client.watcher import Watcher
from coord.config import Settings
from coord.connection import connect, locate, wait_for_server
from coord.errors import ConfigError, ResultTimeout
from coord.keys import Keys
from coord.models.events import Position
from coord.models.ids import new_id
from coord.program_settings import load_in_program
from coord.streams import Append

T = TypeVar("T")

#: Seconds to wait for a server at the start: a server that restarts at the same time is up by then.
REACH_S = 30.0

NOT_OPEN = "the client is not open: use it as `async with Client() as client`"
OTHER_LOOP = "the client was opened in another event loop: open one in each loop that uses one"


class AnsweredFact(NamedTuple):
    """A fact that a worker has answered."""

    entry_id: str
    answer: Answer


class FactHandle:
    """A fact that was appended with ``ClientConnection.append_fact``."""

    def __init__(self, connection: ClientConnection, stream: str, entry_id: str) -> None:
        self._connection = connection
        self._stream = stream
        self.entry_id = entry_id  #: milliseconds since 1970 on the server's clock, a dash, a number

    async def accepted(self, timeout: float) -> None:
        """Return when its worker has accepted the fact.

        Args:
            timeout: seconds to wait.

        Raises:
            CoordError: the error in the worker's answer, if it refused the fact.
            ResultTimeout: no answer within ``timeout`` seconds; the fact waits for a worker.
        """
        timeout = as_seconds(timeout, "timeout")
        answer = await self._connection.watcher.wait_for_answer((self._stream, self.entry_id), timeout)
        if answer is None:
            raise ResultTimeout(f"no worker answered within {timeout:g} s; the fact waits for one")
        if not answer.ok:
            raise answer.error


class ClientConnection:
    """One connection to a cell, for any number of coroutines of one event loop.

    Args:
        url: URL of Redis; default: of the cell in use, see ``coord.cells``.
        settings: default: from the environment.
        reach_s: seconds that ``open`` waits for a server that does not answer or is loading its data.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, reach_s: float = REACH_S) -> None:
        check_connection_options(url, settings)
        self.settings = settings if settings is not None else load_in_program(url)
        self.caller = new_id()  #: id under which this client receives answers, from open to close
        #: ``open`` fails at once if nothing listens at the address, and logs nothing: for commands, which say it.
        self.refused_is_final = False
        self._url = url
        self._reach_s = as_seconds(reach_s, "reach_s")
        self._keys = Keys(self.settings.namespace)
        self._redis: Redis | None = None
        self._outbox: Outbox | None = None
        self._watcher: Watcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None  # kept, so that it continues if ``close`` is cancelled

    async def open(self) -> None:
        """Connect.

        Raises:
            ServerUnavailable: no Redis answers.
            ConfigError: the server refuses the credentials, or its certificate is not trusted; or the client is open
                in another event loop.
            ServerUnfit: the server refuses a PING permanently, for example to a user without the permission.
        """
        if self._redis is not None and not self._forget_closed_loop():
            return
        url, settings = locate(self.settings, self._url)
        redis = connect(url, settings)
        try:
            final = self.refused_is_final
            advice = absence_advice(settings, url)
            await wait_for_server(
                redis, url, limit_s=self._reach_s, logs=not final, refused_is_final=final, advice=advice
            )
        except BaseException:
            await redis.aclose()
            raise
        if self._redis is not None and not self._forget_closed_loop():
            await redis.aclose()  # another coroutine opened the client meanwhile
            return
        self.settings, self._keys = settings, Keys(settings.namespace)
        if self._loop is not None:
            self.caller = new_id()  # replies from before the close may be outdated
        self._loop = asyncio.get_running_loop()
        self._redis = redis
        self._outbox = Outbox(redis, self._keys)
        self._watcher = Watcher(redis, url, settings, self.caller)

    async def close(self) -> None:
        """Disconnect. Coroutines that wait get a ``ConfigError``; submitted tasks continue."""
        if self._redis is None or self._forget_closed_loop():
            return
        redis, outbox, watcher = self._redis, self._outbox, self._watcher
        self._redis = self._outbox = self._watcher = None
        self._closing = asyncio.create_task(_close(outbox, watcher, redis))
        await asyncio.shield(self._closing)

    @property
    def redis(self) -> Redis:
        """The Redis connection, for reading."""
        return self._opened(self._redis)

    @property
    def keys(self) -> Keys:
        """The key names of the cell, for reading."""
        return self._keys

    @property
    def watcher(self) -> Watcher:
        """Waits for outcomes and answers."""
        return self._opened(self._watcher)

    async def append(self, batch: Sequence[Append]) -> list[str]:
        """Append facts and return their entry ids, in order.

        Raises:
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        return await self._opened(self._outbox).append(batch)

    async def append_fact(self, stream: str, fact: Struct, *, wants_answer: bool, token: str = "") -> FactHandle:
        """Append one fact.

        Args:
            stream: without the namespace, such as ``in:registry``.
            fact: one of ``coord.models.facts``.
            wants_answer: let the worker answer, so that ``FactHandle.accepted`` may be awaited.
            token: of the agent that the fact is about; empty: none.

        Raises:
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was appended.
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        checked, data = build_fact(stream, type(fact), fact, self.settings.max_entry_bytes)
        (entry,) = await self.append([Append(stream, checked, self.caller if wants_answer else "", data, token)])
        return FactHandle(self, stream, entry)

    async def open_logs(self, start: str | Position | None, count: int) -> LogReader:
        """Return a reader of the logs.

        Args:
            start: None: from now on; an entry id: after it, in all logs; else a position.
            count: entries of each log in one read.

        Raises:
            redis.exceptions.RedisError: Redis is unavailable.
        """
        reader = LogReader(self.redis, self.keys, count=count)
        await reader.open(start)
        return reader

    async def request(self, append: Append, timeout: float, worker: str, subject: str = "request") -> AnsweredFact:
        """Append one fact and wait for its answer, which may be an error.

        Args:
            append: the fact, with this client as its caller.
            timeout: seconds to wait.
            worker: the kind of worker that answers, for the error message.
            subject: what waits for a worker after the timeout, for the error message.

        Raises:
            ResultTimeout: no answer within ``timeout`` seconds.
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        (entry,) = await self.append([append])
        fact: Appended = (append.stream, entry)
        answer = await self.watcher.wait_for_answer(fact, timeout)
        if answer is None:
            raise ResultTimeout(f"no {worker} answered within {timeout:g} s; the {subject} waits for one")
        return AnsweredFact(entry, answer)

    async def request_many(self, batch: Sequence[Append], timeout: float) -> list[Answer | None]:
        """Append facts in one round trip, and wait for the answers; None for each without one in time.

        Args:
            batch: the facts, each with this client as its caller; some hundreds at most.
            timeout: seconds to wait.

        Raises:
            ServerUnavailable, ServerFull: Redis does not answer, or is out of memory.
        """
        entries = await self.append(batch)
        facts: list[Appended] = [(append.stream, entry) for append, entry in zip(batch, entries, strict=True)]
        return await asyncio.gather(*(self.watcher.wait_for_answer(fact, timeout) for fact in facts))

    def _opened(self, part: T | None) -> T:
        if part is None:
            raise ConfigError(NOT_OPEN)
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            loop = None
        if loop is not self._loop:
            raise ConfigError(OTHER_LOOP)
        return part

    def _forget_closed_loop(self) -> bool:
        """Return True if the client was open in a loop that is closed; its connections cannot be closed properly.

        Raises:
            ConfigError: it is open in another loop.
        """
        if self._loop is not None and self._loop.is_closed():
            self._redis = self._outbox = self._watcher = None
            return True
        self._opened(self._redis)
        return False


async def _close(outbox: Outbox | None, watcher: Watcher | None, redis: Redis | None) -> None:
    if outbox is not None:
        await outbox.close()
    if watcher is not None:
        await watcher.close()
    if redis is not None:
        await redis.aclose()
