"""One connection to Redis at its barest: commands go out in one piece per turn of the loop, answers come to callbacks.

An agent's path from inbox entry to report runs ten thousand times a second, where redis-py's own (a lock, a timeout
context and several coroutines for each command) would cost more than everything else. So redis-py opens the
connection (address, TLS, credentials, protocol), and this protocol takes over its transport.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Callable
from typing import Any, cast

import hiredis
from msgspec import Struct
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from coord.logs import get_logger
from coord.refusals import refuses_only_writes
from coord.silence import Silence

log = get_logger()

#: What an error answer is an instance of.
ErrorAnswer: type[Exception] = hiredis.ReplyError

_NOTHING = object()


class ConnectionLost(Exception):
    """Given to a callback instead of an answer: the command was sent or not, was carried out or not."""


class PendingCommand(Struct, frozen=True):
    """A command under way."""

    done: Callable[[Any, Any], None]  #: called as ``done(about, answer)``
    about: Any
    packed: bytes | None  #: kept where the command is to be sent again after a lost connection


class RedisProtocol(asyncio.Protocol):
    """One connection. Answers come in the order of the commands; each is given to its order's callback.

    ``refused`` is called with an error answer to an order that is to be sent again; ``lost`` with the orders that
    were never answered, once, when the connection is gone for whatever reason.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        refused: Callable[[PendingCommand, Exception], None],
        lost: Callable[[RedisProtocol, list[PendingCommand]], None],
        patience_s: float,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._refused = refused
        self._lost = lost
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._pending: deque[PendingCommand] = deque()
        self._out: list[bytes] = []
        self._heard_at = self._loop.time()
        self._closed = False
        self._patience_s = patience_s
        self._silence = Silence(patience_s, lambda: self._heard_at if self._pending else None, self._silent)
        self._disconnected = asyncio.Event()
        # redis-py has no public way to hand a connection over; the version is pinned below 9 and tests open one.
        writer = cast("asyncio.StreamWriter", connection._writer)  # noqa: SLF001
        self._transport = writer.transport
        self._transport.set_protocol(self)

    @classmethod
    async def open(
        cls,
        redis: Redis,
        refused: Callable[[PendingCommand, Exception], None],
        lost: Callable[[RedisProtocol, list[PendingCommand]], None],
        patience_s: float,
    ) -> RedisProtocol:
        """Connect as ``redis`` would, to a server that answers; raises what redis-py raises.

        Args:
            redis: opens the connection.
            refused: see the class.
            lost: see the class.
            patience_s: the connection is given up once answers are due and nothing has arrived for so long.
        """
        connection = redis.connection_pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("PING")  # a server that still loads its data takes connections already
            await _read_pong(connection)
            _check_open(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return cls(connection, refused, lost, patience_s)

    @property
    def is_closed(self) -> bool:
        """Whether nothing can be sent any more."""
        return self._closed

    def send(self, packed: bytes, order: PendingCommand) -> None:
        """Send a command with this turn's others; ``order.done`` gets the answer, unless the connection is lost."""
        if not self._out:
            self._loop.call_soon(self._flush)
        if not self._pending:
            self._heard_at = self._loop.time()
            self._pending.append(order)
            self._silence.start()
        else:
            self._pending.append(order)
        self._out.append(packed)

    def close(self) -> None:
        """Close, after what was said in this turn is out; the orders under way are lost."""
        self._flush()
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._transport.close()
        self._gone()

    async def wait_closed(self, limit_s: float) -> None:
        """Wait until the other side has heard of the end (under TLS that takes a round trip), but not for ever."""
        try:
            await asyncio.wait_for(self._disconnected.wait(), limit_s)
        except TimeoutError:
            self._transport.abort()

    def _flush(self) -> None:
        if self._out and not self._closed:
            try:
                self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
            except (RuntimeError, OSError):  # the transport was closed, and nobody said so yet
                self._give_up()
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        """Hand each complete answer to its order."""
        self._heard_at = self._loop.time()
        reader, pending = self._reader, self._pending
        reader.feed(data)
        while True:
            try:
                answer = reader.gets()
            except hiredis.HiredisError:
                log.exception("redis.not_understood")
                self._give_up()
                return
            if answer is _NOTHING:
                return
            if isinstance(answer, hiredis.PushNotification) or not pending:
                continue
            order = pending.popleft()
            try:
                if order.packed is not None and isinstance(answer, ErrorAnswer):
                    self._refused(order, answer)
                else:
                    order.done(order.about, answer)
            except Exception:
                log.exception("sdk.defect")  # one callback's fault must not misplace the answers after it

    def eof_received(self) -> bool:
        """The server closed; so do we."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Give the orders under way back."""
        self._gone()
        self._disconnected.set()

    def _silent(self) -> None:
        """Nothing has arrived for so long (a half-open connection says nothing)."""
        if self._pending and not self._closed:
            log.warning("redis.silent", seconds=round(self._patience_s, 1))
            self._give_up()

    def _give_up(self) -> None:
        """Do without the connection from now on, without waiting for anything."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._transport.abort()
        self._gone()

    def _gone(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._silence.stop()
        with contextlib.suppress(RuntimeError):
            self._connection._close()  # noqa: SLF001
        orders = list(self._pending)
        self._pending.clear()
        self._out.clear()
        self._lost(self, orders)


async def _read_pong(connection: AbstractConnection) -> None:
    """Read the answer to PING; a server that refuses writes refuses PING too, and is there all the same."""
    try:
        await connection.read_response()
    except ResponseError as error:
        if not refuses_only_writes(error):
            raise


def _check_open(connection: AbstractConnection) -> None:
    """Raise if the connection was lost while it was opened: its new owner would never be told."""
    reader, writer = connection._reader, connection._writer  # noqa: SLF001
    if reader is None or writer is None or reader.at_eof() or writer.transport.is_closing():
        raise RedisConnectionError("the connection was lost as soon as it was open")
