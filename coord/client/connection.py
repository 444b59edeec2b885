"""A caller: appends facts to a cell, and is told what its workers say of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TypeVar

from msgspec import Struct
from redis.asyncio import Redis

from coord import config
from coord.arguments import check_place, seconds
from coord.client.answers import Answer, Appended
from coord.client.outbox import Outbox
from coord.client.submission import checked
from coord.client.watcher import Watcher
from coord.config import Settings
from coord.connection import connect, locate, wait_for_server
from coord.errors import ConfigError
from coord.keys import Keys
from coord.models.ids import new_id
from coord.streams import Append

T = TypeVar("T")

#: Seconds to wait for a server at the start, unless told otherwise: one that is restarted beside it is there by then.
REACH_S = 30.0

NOT_OPEN = "the client is not open: use it as `async with Client() as client`"
OTHER_LOOP = "the client was opened in another event loop: open one in each loop that uses one"


class AppendResult(Struct, frozen=True):
    """A fact is in its stream."""

    entry_id: str  #: milliseconds since 1970 on the server's clock, a dash, a number
    answered: bool  #: its worker has taken it; else it waits for one


class Caller:
    """One connection to a cell, for any number of coroutines.

    Args:
        url: where Redis is; default: see ``coord.connection.locate``.
        settings: default: from the environment.
        reach_s: how long to go on trying while nobody answers there, or while the server is loading.
    """

    def __init__(self, url: str | None = None, *, settings: Settings | None = None, reach_s: float = REACH_S) -> None:
        check_place(url, settings)
        self.settings = settings if settings is not None else config.load_in_program()
        self.caller = new_id()  #: where the answers to this client go, from when it is opened until it is closed
        self._url = url
        self._reach_s = seconds(reach_s, "reach_s")
        self._keys = Keys(self.settings.namespace)
        self._redis: Redis | None = None
        self._outbox: Outbox | None = None
        self._watcher: Watcher | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._closing: asyncio.Task[None] | None = None  # held: it goes on when whoever waits for it gives up

    async def open(self) -> None:
        """Connect.

        Raises:
            ServerUnavailable: no Redis answers.
            ConfigError: the server refuses the credentials, or its certificate is not trusted; or the client is open
                in another event loop.
            ServerUnfit: the server refuses a PING for good, such as for a user without the right.
        """
        if self._redis is not None and not self._forgets():
            return
        url, settings = locate(self.settings, self._url)
        redis = connect(url, settings)
        try:
            await wait_for_server(redis, url, limit_s=self._reach_s)
        except BaseException:
            await redis.aclose()
            raise
        if self._redis is not None and not self._forgets():
            await redis.aclose()  # it was opened meanwhile
            return
        self.settings, self._keys = settings, Keys(settings.namespace)
        if self._loop is not None:
            self.caller = new_id()  # what was replied before it was closed tells of what may have changed since
        self._loop = asyncio.get_running_loop()
        self._redis = redis
        self._outbox = Outbox(redis, self._keys)
        self._watcher = Watcher(redis, url, settings, self.caller)

    async def close(self) -> None:
        """Disconnect; who waits for something is told so. What was submitted goes on."""
        if self._redis is None or self._forgets():
            return
        redis, outbox, watcher = self._redis, self._outbox, self._watcher
        self._redis = self._outbox = self._watcher = None
        self._closing = asyncio.create_task(_close(outbox, watcher, redis))
        await asyncio.shield(self._closing)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def redis(self) -> Redis:
        """The connection, for reading."""
        return self._opened(self._redis)

    @property
    def keys(self) -> Keys:
        """The names of the cell's keys, for reading."""
        return self._keys

    @property
    def watcher(self) -> Watcher:
        """What waits for outcomes and answers."""
        return self._opened(self._watcher)

    async def tell(self, stream: str, fact: Struct, *, wait: float) -> AppendResult:
        """Append one fact and wait ``wait`` seconds for what its worker says of it; 0: do not wait.

        Raises:
            FactInvalid, IdInvalid, FactTooLarge: it does not fit; nothing was appended.
            CoordError: what the worker said, if it did not take the fact.
            ServerUnavailable, ServerFull: Redis does not answer, or has no memory left.
        """
        wait = seconds(wait, "wait")
        same, data = checked(stream, type(fact), fact, self.settings.max_entry_bytes)
        (entry,) = await self._append([Append(stream, same, self.caller if wait > 0 else "", data)])
        answer = await self._answer((stream, entry), wait) if wait > 0 else None
        if answer is not None and not answer.ok:
            raise answer.error
        return AppendResult(entry, answer is not None)

    async def _append(self, batch: Sequence[Append]) -> list[str]:
        return await self._opened(self._outbox).append(batch)

    async def _answer(self, fact: Appended, timeout: float) -> Answer | None:
        return await self.watcher.ask(fact, timeout)

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

    def _forgets(self) -> bool:
        """Whether it was open in a loop that is closed, so that nothing is left to be disconnected in good order.

        Raises:
            ConfigError: it is open, in a loop that is not this one.
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
