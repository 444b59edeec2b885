"""A connection that comes back by itself, and the one that the agents of a process share for what they write.

A command is *lasting* or not. A lasting one is sent again after a lost connection until it is answered, so it may run
twice: only facts go this way, whose identity makes a second one harmless, and deletions. Any other gets
``ConnectionLost``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from redis import exceptions as redis_errors

from coord.agent.protocol import ConnectionLost, PendingCommand, RedisProtocol
from coord.aio import end
from coord.background import call_safely, retry
from coord.config import Settings
from coord.connection import connect_worker, safe_url, wait_for_server
from coord.logs import get_logger
from coord.refusals import FOR_NOW
from coord.translation import read_failure

log = get_logger()

#: How long ``open`` goes on trying.
OPEN_S = 30.0
#: Waits between attempts to connect: doubling, with jitter.
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0
#: Before a lasting command that the server refused for now (out of memory, loading, …) is sent again.
REFUSED_WAIT_S = 0.5
#: Before the same refusal is logged again.
SAID_AGAIN_S = 10.0
#: What the other side has to take note that a connection ends.
CLOSE_S = 1.0
#: How those of a server begin that is not the primary of our keys, or not any more.
DEMOTED = ("READONLY", "MOVED", "CLUSTERDOWN", "UNBLOCKED")


class ReconnectingConnection:
    """A connection that comes back by itself.

    ``on_up`` is called each time that it has come up, the first time too.

    Args:
        url: where Redis is.
        settings: for the timeouts.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        #: Called each time that the connection has come up.
        self.on_up: list[Callable[[], None]] = []
        self._redis = connect_worker(url, settings)
        # The same for reads that block and for writes: a server that stands still for 2 s is no alarm for either.
        self._patience_s = settings.read_block_ms / 1000 + settings.answer_timeout_s
        self._wire: RedisProtocol | None = None
        self._waiting: list[PendingCommand] = []
        self._coming_back: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_demoted = False  # the server that the last connection led to
        self._refusal = "", 0.0  # what was logged last of refused commands, and when

    async def open(self) -> None:
        """Connect for the first time; several callers may wait for it.

        Raises:
            ServerUnavailable: nobody answers there.
            ConfigError: the server refuses the credentials, or its certificate is not trusted.
        """
        if self._opening is None:
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + OPEN_S
        while True:
            await wait_for_server(self._redis, self.url, limit_s=max(FIRST_WAIT_S, until - loop.time()))
            try:
                wire = await self._connect()
            except (redis_errors.RedisError, OSError) as error:  # lost again, between the one connection and the other
                if loop.time() >= until:
                    raise read_failure(error, safe_url(self.url)) from error
                await asyncio.sleep(FIRST_WAIT_S)
            else:
                self._up(wire)
                return

    async def _connect(self) -> RedisProtocol:
        return await RedisProtocol.open(self._redis, self._refused, self._lost, self._patience_s)

    @property
    def is_up(self) -> bool:
        """Whether there is a connection at the moment."""
        return self._wire is not None

    def send(self, packed: bytes, done: Callable[[Any, Any], None], about: Any = None) -> None:
        """Send a command; ``done(about, answer)`` gets its answer, or ``ConnectionLost`` in its place."""
        order = PendingCommand(done, about, None)
        if self._wire is not None:
            self._wire.send(packed, order)
        else:
            asyncio.get_running_loop().call_soon(done, about, ConnectionLost())

    def send_until_answered(self, packed: bytes, done: Callable[[Any, Any], None], about: Any = None) -> None:
        """Send a command again and again until it is answered; an answer may be an error that no repeating mends."""
        order = PendingCommand(done, about, packed)
        if self._wire is not None:
            self._wire.send(packed, order)
        else:
            self._waiting.append(order)

    def drop(self) -> None:
        """Give this connection up and come back with another."""
        if self._wire is not None:
            self._wire.close()

    def drop_demoted(self, error: Exception) -> bool:
        """If an error answer says that this server is no primary (any more), give it up; whether it was so.

        The address leads to the new one by now, or will in a moment: the next attempt waits a little.
        """
        if not str(error).startswith(DEMOTED):
            return False
        if self._wire is not None:
            log.warning("redis.demoted", url=safe_url(self.url), error=str(error))
            self._is_demoted = True
            self._wire.close()
        return True

    async def close(self) -> None:
        """Close for good; what was not answered is dropped."""
        self._is_closed = True
        await end(self._opening, self._coming_back)
        wire = self._wire
        if wire is not None:
            wire.close()
            await wire.wait_closed(CLOSE_S)
        self._waiting.clear()
        await self._redis.aclose()

    def _up(self, wire: RedisProtocol) -> None:
        self._wire = wire
        waiting, self._waiting = self._waiting, []
        for order in waiting:
            wire.send(order.packed or b"", order)
        for tell in tuple(self.on_up):
            call_safely("link.up", tell)

    def _refused(self, order: PendingCommand, error: Exception) -> None:
        if not str(error).startswith(FOR_NOW):
            order.done(order.about, error)
            return
        if self.drop_demoted(error):
            self._waiting.insert(0, order)  # before those that came after it, which are lost with the connection
            return
        self._log_refusal(str(error))
        asyncio.get_running_loop().call_later(REFUSED_WAIT_S, self._send_again, order)

    def _log_refusal(self, error: str) -> None:
        """Log what every command is refused with once, and again every few seconds."""
        now = asyncio.get_running_loop().time()
        said, said_at = self._refusal
        if error != said or now - said_at >= SAID_AGAIN_S:
            self._refusal = error, now
            log.warning("redis.refused", error=error)

    def _send_again(self, order: PendingCommand) -> None:
        if order.packed is not None and not self._is_closed:
            self.send_until_answered(order.packed, order.done, order.about)

    def _lost(self, wire: RedisProtocol, orders: list[PendingCommand]) -> None:
        if wire is self._wire:
            self._wire = None
        if self._is_closed:
            return
        log.warning("redis.lost", url=safe_url(self.url), under_way=len(orders))
        self._waiting[:0] = [order for order in orders if order.packed is not None]
        if self._coming_back is None or self._coming_back.done():
            self._coming_back = retry("link.come_back", self._come_back)
        for order in orders:
            if order.packed is None:
                call_safely("link.lost", order.done, order.about, ConnectionLost())

    async def _come_back(self) -> None:
        wait_s = FIRST_WAIT_S
        said = ""
        if self._is_demoted:
            self._is_demoted = False
            await asyncio.sleep(REFUSED_WAIT_S * random.uniform(0.5, 1))  # noqa: S311 -- jitter is no secret
        while self._wire is None:
            try:
                wire = await self._connect()
            except (redis_errors.RedisError, OSError) as error:
                if str(error) != said:
                    said = str(error)
                    log.warning("redis.away", url=safe_url(self.url), error=said)
            else:
                log.info("redis.back", url=safe_url(self.url))
                self._coming_back = None  # this one may be lost as soon as it is used
                self._up(wire)
                return
            await asyncio.sleep(wait_s * random.uniform(0.5, 1))  # noqa: S311 -- jitter is no secret
            wait_s = min(wait_s * 2, LONGEST_WAIT_S)


class Shared:
    """The links that agents of one event loop share for what they write, so that it goes out together."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, Settings], ReconnectingConnection] = {}
        self._users: dict[ReconnectingConnection, int] = {}

    async def join(self, url: str, settings: Settings) -> ReconnectingConnection:
        """The link to ``url``, open; raises as ``ReconnectingConnection.open``. To be left again."""
        link = self._links.get((url, settings))
        if link is None:
            link = self._links[url, settings] = ReconnectingConnection(url, settings)
        self._users[link] = self._users.get(link, 0) + 1
        try:
            await link.open()
        except BaseException:
            await self.leave(link)
            raise
        return link

    async def leave(self, link: ReconnectingConnection) -> None:
        """Give a link back; the last one to leave closes it."""
        self._users[link] -= 1
        if not self._users[link]:
            del self._users[link]
            self._links = {key: other for key, other in self._links.items() if other is not link}
            await link.close()


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, Shared] = WeakKeyDictionary()


def shared() -> Shared:
    """The shared links of the running event loop."""
    return _shared.setdefault(asyncio.get_running_loop(), Shared())
