"""A connection that reconnects by itself, and the shared one that the agents of a process write on.

A command of ``send_until_answered`` is sent again after a lost connection until it is answered, so it may run twice.
Only facts, whose identity makes a second one harmless, and deletions are sent so. The callback of any other command
gets ``ConnectionLost``.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from typing import Any
from weakref import WeakKeyDictionary

from redis import exceptions as redis_errors

from coord.background import call_safely, cancel_and_wait, retry
from coord.backoff import Backoff
from coord.config import Settings
from coord.connection import TEMPORARY, connect_worker, read_failure, safe_url, wait_for_server
from coord.logs import get_logger
from coord.redis_protocol import ConnectionLost, PendingCommand, RedisProtocol

log = get_logger()

#: Seconds for which ``open`` retries.
OPEN_S = 30.0
#: Seconds between attempts to connect: doubling, with jitter.
FIRST_WAIT_S = 0.05
LONGEST_WAIT_S = 1.0
#: Seconds before a command that the server refused temporarily (out of memory, loading, …) is sent again.
REFUSED_WAIT_S = 0.5
#: Seconds after which the same refusal is logged again.
LOG_AGAIN_S = 10.0
#: Seconds that the other side has to confirm the end of a connection.
CLOSE_S = 1.0
#: How error answers begin that mean: this server is not the primary of these keys, or not any more.
DEMOTED = ("READONLY", "MOVED", "CLUSTERDOWN", "UNBLOCKED")


class ReconnectingConnection:
    """A connection that reconnects by itself.

    Args:
        url: URL of Redis.
        settings: for the timeouts.
    """

    def __init__(self, url: str, settings: Settings) -> None:
        self.url = url
        #: Functions that are called each time that the connection is up, the first time too.
        self.on_up: list[Callable[[], None]] = []
        #: Called with what the server sends unasked.
        self.on_push: Callable[[list[Any]], None] | None = None
        self._redis = connect_worker(url, settings)
        # The same for blocking reads and for writes: a server that hangs for 2 s is no error for either.
        self._patience_s = settings.read_block_ms / 1000 + settings.answer_timeout_s
        self._protocol: RedisProtocol | None = None
        self._waiting: list[PendingCommand] = []
        self._reconnecting: asyncio.Task[None] | None = None
        self._opening: asyncio.Task[None] | None = None
        self._is_closed = False
        self._is_demoted = False  # True if the server of the last connection is not the primary any more
        self._refusal = "", 0.0  # the refusal that was logged last, and when

    async def open(self) -> None:
        """Connect for the first time; several callers may wait for this.

        Raises:
            ServerUnavailable: no server answers.
            ConfigError: the server refuses the credentials, or its certificate is not trusted.
        """
        if self._opening is None or (self._opening.done() and self._opening.exception() is not None):
            self._opening = asyncio.create_task(self._open())
        await asyncio.shield(self._opening)

    async def _open(self) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + OPEN_S
        while True:
            await wait_for_server(self._redis, self.url, limit_s=max(FIRST_WAIT_S, until - loop.time()))
            try:
                protocol = await self._connect()
            except (redis_errors.RedisError, OSError) as error:  # lost between the first connection and this one
                if loop.time() >= until:
                    raise read_failure(error, safe_url(self.url)) from error
                await asyncio.sleep(FIRST_WAIT_S)
            else:
                self._up(protocol)
                return

    async def _connect(self) -> RedisProtocol:
        return await RedisProtocol.open(self._redis, self._refused, self._lost, self._patience_s, self.on_push)

    @property
    def is_up(self) -> bool:
        """True while there is a connection."""
        return self._protocol is not None

    def send(self, packed: bytes, callback: Callable[[Any, Any], None], context: Any = None) -> None:
        """Send a command; ``callback(context, answer)`` gets its answer, or ``ConnectionLost`` instead."""
        command = PendingCommand(callback, context, None)
        if self._protocol is not None:
            self._protocol.send(packed, command)
        else:
            asyncio.get_running_loop().call_soon(callback, context, ConnectionLost())

    def send_until_answered(self, packed: bytes, callback: Callable[[Any, Any], None], context: Any = None) -> None:
        """Send a command repeatedly until it is answered; the answer may be an error that no retry can fix."""
        command = PendingCommand(callback, context, packed)
        if self._protocol is not None:
            self._protocol.send(packed, command)
        else:
            self._waiting.append(command)

    def drop(self) -> None:
        """Close this connection and reconnect."""
        if self._protocol is not None:
            self._protocol.close()

    def drop_demoted(self, error: Exception) -> bool:
        """Reconnect if an error answer means that this server is not the primary (any more); return True if it does.

        The address leads to the new primary by now or soon, so the next attempt waits a little.
        """
        if not str(error).startswith(DEMOTED):
            return False
        if self._protocol is not None:
            log.warning("redis.demoted", url=safe_url(self.url), error=str(error))
            self._is_demoted = True
            self._protocol.close()
        return True

    async def close(self) -> None:
        """Close permanently; commands without an answer are dropped."""
        self._is_closed = True
        await cancel_and_wait(self._opening, self._reconnecting)
        protocol = self._protocol
        if protocol is not None:
            protocol.close()
            await protocol.wait_closed(CLOSE_S)
        self._waiting.clear()
        await self._redis.aclose()

    def _up(self, protocol: RedisProtocol) -> None:
        self._protocol = protocol
        waiting, self._waiting = self._waiting, []
        for command in waiting:
            protocol.send(command.packed or b"", command)
        for function in tuple(self.on_up):
            call_safely("link.up", function)

    def _refused(self, command: PendingCommand, error: Exception) -> None:
        if not str(error).startswith(TEMPORARY):
            command.callback(command.context, error)
            return
        if self.drop_demoted(error):
            self._waiting.insert(0, command)  # before later ones, which are lost with the connection
            return
        self._log_refusal(str(error))
        asyncio.get_running_loop().call_later(REFUSED_WAIT_S, self._send_again, command)

    def _log_refusal(self, error: str) -> None:
        """Log a refusal once, and again every few seconds if it stays the same."""
        now = asyncio.get_running_loop().time()
        logged, logged_at = self._refusal
        if error != logged or now - logged_at >= LOG_AGAIN_S:
            self._refusal = error, now
            log.warning("redis.refused", error=error)

    def _send_again(self, command: PendingCommand) -> None:
        if command.packed is not None and not self._is_closed:
            self.send_until_answered(command.packed, command.callback, command.context)

    def _lost(self, protocol: RedisProtocol, commands: list[PendingCommand]) -> None:
        if protocol is self._protocol:
            self._protocol = None
        if self._is_closed:
            return
        log.warning("redis.lost", url=safe_url(self.url), under_way=len(commands))
        self._waiting[:0] = [command for command in commands if command.packed is not None]
        if self._reconnecting is None or self._reconnecting.done():
            self._reconnecting = retry("link.reconnect", self._reconnect)
        for command in commands:
            if command.packed is None:
                call_safely("link.lost", command.callback, command.context, ConnectionLost())

    async def _reconnect(self) -> None:
        backoff = Backoff(FIRST_WAIT_S, LONGEST_WAIT_S)
        logged = ""
        if self._is_demoted:
            self._is_demoted = False
            await asyncio.sleep(REFUSED_WAIT_S * random.uniform(0.5, 1))  # noqa: S311 -- jitter is no secret
        while self._protocol is None:
            try:
                protocol = await self._connect()
            except (redis_errors.RedisError, OSError) as error:
                if str(error) != logged:
                    logged = str(error)
                    log.warning("redis.away", url=safe_url(self.url), error=logged)
            else:
                log.info("redis.back", url=safe_url(self.url))
                self._reconnecting = None  # the new connection may be lost as soon as it is used
                self._up(protocol)
                return
            await asyncio.sleep(backoff.next_s() * random.uniform(0.5, 1))  # noqa: S311 -- jitter is no secret


class SharedConnections:
    """The connections on which the agents of one event loop write, so that their commands go out together."""

    def __init__(self) -> None:
        self._links: dict[tuple[str, Settings], ReconnectingConnection] = {}
        self._users: dict[ReconnectingConnection, int] = {}

    async def join(self, url: str, settings: Settings) -> ReconnectingConnection:
        """Return the open connection to ``url``, until ``leave``; raises as ``ReconnectingConnection.open``."""
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
        """Stop using a connection; it closes when its last user leaves."""
        self._users[link] -= 1
        if not self._users[link]:
            del self._users[link]
            self._links = {key: other for key, other in self._links.items() if other is not link}
            await link.close()


_shared: WeakKeyDictionary[asyncio.AbstractEventLoop, SharedConnections] = WeakKeyDictionary()


def shared_connections() -> SharedConnections:
    """Return the shared connections of the running event loop."""
    return _shared.setdefault(asyncio.get_running_loop(), SharedConnections())
