"""A minimal asyncio protocol for Redis: commands of one turn of the loop go out together, answers go to callbacks.

The path of a task from the inbox to its report runs ten thousand times a second. redis-py's own path (a lock, a timeout
context and several coroutines for each command) would cost more than everything else. So redis-py opens the connection
(address, TLS, credentials, protocol), and this protocol takes over its transport.
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

from coord.background import call_safely
from coord.connection import refuses_only_writes
from coord.logs import get_logger
from coord.pipeline import SilenceTimer

log = get_logger()

#: The class of error answers.
ErrorAnswer: type[Exception] = hiredis.ReplyError

_NOTHING = object()


class ConnectionLost(Exception):
    """Passed to a callback instead of an answer: the command may have been sent and executed, or not."""


class PendingCommand(Struct, frozen=True):
    """A command that waits for its answer."""

    callback: Callable[[Any, Any], None]  #: called as ``callback(context, answer)``
    context: Any
    packed: bytes | None  #: the command, if it is to be sent again after a lost connection


def ignore_answer(_context: object, _answer: object) -> None:
    """Do nothing with an answer; the callback of commands whose answer does not matter."""


class RedisProtocol(asyncio.Protocol):
    """One connection. Answers arrive in the order of the commands; each is passed to the callback of its command.

    ``refused`` is called with an error answer to a command that is to be sent again. ``lost`` is called once, when the
    connection is lost for any reason, with the commands that were never answered. ``pushed`` gets what the server sends
    unasked.
    """

    def __init__(
        self,
        connection: AbstractConnection,
        refused: Callable[[PendingCommand, Exception], None],
        lost: Callable[[RedisProtocol, list[PendingCommand]], None],
        patience_s: float,
        pushed: Callable[[list[Any]], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self._connection = connection
        self._refused = refused
        self._lost = lost
        self._pushed = pushed
        self._reader = hiredis.Reader(notEnoughData=_NOTHING)
        self._pending: deque[PendingCommand] = deque()
        self._out: list[bytes] = []
        self._received_at = self._loop.time()
        self._closed = False
        self._patience_s = patience_s
        self._silence = SilenceTimer(patience_s, lambda: self._received_at if self._pending else None, self._silent)
        self._disconnected = asyncio.Event()
        # redis-py has no public way to hand over a connection; the version is pinned below 9 and tests open one.
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
        pushed: Callable[[list[Any]], None] | None = None,
    ) -> RedisProtocol:
        """Connect as ``redis`` would, to a server that answers; raises what redis-py raises.

        Args:
            redis: opens the connection.
            refused: see the class.
            lost: see the class.
            patience_s: seconds without a byte, while answers are due, after which the connection is given up.
            pushed: see the class.
        """
        connection = redis.connection_pool.make_connection()
        try:
            await connection.connect()
            await connection.send_command("PING")  # a server that still loads its data accepts connections already
            await _read_pong(connection)
            _check_open(connection)
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return cls(connection, refused, lost, patience_s, pushed)

    def send(self, packed: bytes, command: PendingCommand) -> None:
        """Send a command with the others of this turn; its callback gets the answer, unless the connection is lost."""
        if not self._out:
            self._loop.call_soon(self._flush)
        if not self._pending:
            self._received_at = self._loop.time()
            self._pending.append(command)
            self._silence.start()
        else:
            self._pending.append(command)
        self._out.append(packed)

    def close(self) -> None:
        """Close after the commands of this turn are out; the commands without an answer are lost."""
        self._flush()
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._transport.close()
        self._end()

    async def wait_closed(self, limit_s: float) -> None:
        """Wait until the other side knows of the end (under TLS that takes a round trip), up to ``limit_s`` seconds."""
        try:
            await asyncio.wait_for(self._disconnected.wait(), limit_s)
        except TimeoutError:
            self._transport.abort()

    def _flush(self) -> None:
        if self._out and not self._closed:
            try:
                self._transport.write(b"".join(self._out) if len(self._out) > 1 else self._out[0])
            except (RuntimeError, OSError):  # the transport is closed, and ``connection_lost`` is still to come
                self._abort()
        self._out.clear()

    def data_received(self, data: bytes) -> None:
        """Pass each complete answer to its command."""
        self._received_at = self._loop.time()
        reader, pending = self._reader, self._pending
        reader.feed(data)
        while True:
            try:
                answer = reader.gets()
            except hiredis.HiredisError:
                log.exception("redis.not_understood")
                self._abort()
                return
            if answer is _NOTHING:
                return
            if isinstance(answer, hiredis.PushNotification):
                if self._pushed is not None:
                    call_safely("redis.pushed", self._pushed, answer)
                continue
            if not pending:
                continue
            command = pending.popleft()
            try:
                if command.packed is not None and isinstance(answer, ErrorAnswer):
                    self._refused(command, answer)
                else:
                    command.callback(command.context, answer)
            except Exception:
                log.exception("sdk.defect")  # the error of one callback must not shift the answers after it

    def eof_received(self) -> bool:
        """Close as well, because the server has closed."""
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Return the commands without an answer."""
        self._end()
        self._disconnected.set()

    def _silent(self) -> None:
        """Give up a connection on which nothing has arrived for too long (a half-open connection gives no error)."""
        if self._pending and not self._closed:
            log.warning("redis.silent", seconds=round(self._patience_s, 1))
            self._abort()

    def _abort(self) -> None:
        """Give up the connection at once."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._transport.abort()
        self._end()

    def _end(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._silence.stop()
        with contextlib.suppress(RuntimeError):
            self._connection._close()  # noqa: SLF001
        commands = list(self._pending)
        self._pending.clear()
        self._out.clear()
        self._lost(self, commands)


async def _read_pong(connection: AbstractConnection) -> None:
    """Read the answer to PING; a server that refuses writes refuses PING too, but can be used."""
    try:
        await connection.read_response()
    except ResponseError as error:
        if not refuses_only_writes(error):
            raise


def _check_open(connection: AbstractConnection) -> None:
    """Raise if the connection was lost while it was opened: its new owner would never get ``connection_lost``."""
    reader, writer = connection._reader, connection._writer  # noqa: SLF001
    if reader is None or writer is None or reader.at_eof() or writer.transport.is_closing():
        raise RedisConnectionError("the connection was lost as soon as it was open")
