"""Connections of redis-py that pack commands with hiredis, and read the answers of a round trip together.

redis-py already reads answers with hiredis, but packs commands in Python, one argument at a time. A batch of 256
reports has 2,560 arguments, and packing them was a third of a distributor's work. redis-py's pipeline reads each answer
in three coroutines and under a timeout of its own, which was a quarter of a client's work. ``send_and_read`` does that
once for all answers that have arrived. And ``Pool`` gives out an idle connection without redis-py's locks, timeouts and
events: together these are three quarters of the client's work for a short command.

The connections differ from redis-py's in two more ways. A closed transport is a lost connection: uvloop raises
``RuntimeError`` for a write to a closed transport, which redis-py passes on. And the timeout of an answer counts from
the last byte that arrived, and does not fire because this process was suspended (``SilenceTimer``).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.asyncio import Redis
from redis.asyncio.connection import (
    AbstractConnection,
    BlockingConnectionPool,
    Connection,
    SSLConnection,
    UnixDomainSocketConnection,
)
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

#: Packs a command, a tuple of str, bytes, int or float.
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


#: Text of uvloop's error for an operation on a closed transport. (asyncio's own loop raises an OSError.)
CLOSED = "the handler is closed"
#: Shortest time between the two checks of a ``SilenceTimer``, in seconds: enough for the loop to read its sockets.
SECOND_CHECK_S = 0.05


def is_closed_transport(error: BaseException) -> bool:
    """Return True if an event loop refused an operation because the transport is closed."""
    return isinstance(error, RuntimeError) and CLOSED in str(error)


class SilenceTimer:
    """Calls ``alarm`` when an answer is due and nothing has arrived for ``limit_s`` seconds.

    An event loop runs its timers before it reads its sockets. So after this process was suspended for longer than a
    timeout, the timer is due first, although the answer arrived long ago. Here a due timer only starts a second check:
    by then the loop has read whatever had arrived.

    Args:
        limit_s: seconds.
        received_at: returns the time of the last arrival, or since when an answer is due, on the loop's clock; None if
            no answer is due. ``start`` is called again when one is.
        alarm: called once, from the event loop.
    """

    __slots__ = ("_alarm", "_due_at", "_limit_s", "_loop", "_received_at", "_seen", "_timer")

    def __init__(self, limit_s: float, received_at: Callable[[], float | None], alarm: Callable[[], None]) -> None:
        self._limit_s = limit_s
        self._received_at = received_at
        self._alarm = alarm
        self._loop = asyncio.get_running_loop()
        self._seen: float | None = None
        self._due_at = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Start to check, unless that has started already."""
        if self._timer is None:
            self._check_later()

    def stop(self) -> None:
        """Stop to check; no alarm is raised after this."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _check_later(self) -> None:
        self._seen = self._received_at()
        if self._seen is None:
            self._timer = None
            return
        self._due_at = self._seen + self._limit_s
        self._timer = self._loop.call_at(self._due_at, self._check)

    def _check(self) -> None:
        if self._received_at() != self._seen:
            self._check_later()
            return
        # A timer that fires late means that this process was suspended. So may the other side have been (a machine that
        # was suspended), so it gets the same time again.
        late_s = min(self._loop.time() - self._due_at, self._limit_s)
        self._timer = self._loop.call_later(max(SECOND_CHECK_S, late_s), self._check_again)

    def _check_again(self) -> None:
        if self._received_at() != self._seen:
            self._check_later()
        else:
            self._timer = None
            self._alarm()


class TimestampingParser(_AsyncHiredisParser):
    """redis-py's parser, which also records when bytes arrive."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self.received_at = 0.0  #: on the loop's clock
        self.due_since: float | None = None  #: when the wait for the answer began; None: no answer is due

    def last_sign(self) -> float | None:
        """Return when bytes arrived last, or when the wait for the answer began; None if no answer is due."""
        return None if self.due_since is None else max(self.due_since, self.received_at)

    async def read_from_socket(self) -> bool:
        """Read the bytes that have arrived."""
        has_read: bool = await super().read_from_socket()  # type: ignore[no-untyped-call]
        self.received_at = asyncio.get_running_loop().time()
        return has_read


class _PackingMixin(AbstractConnection):
    """The methods in which coord's connections differ from redis-py's."""

    _silence: SilenceTimer | None = None  #: of this connection, from its first read on

    def pack_command(self, *args: Any) -> list[bytes]:
        return [_pack(args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(map(_pack, commands))]

    async def connect(self) -> None:
        if self.is_connected:
            return
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if not is_closed_transport(error):
                raise
            raise self._lost() from error

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
        silence, self._silence = self._silence, None
        if silence is not None:
            silence.stop()
        try:
            await super().disconnect(*args, **kwargs)
        except RuntimeError as error:
            if not is_closed_transport(error):
                raise

    async def send_packed_command(self, command: bytes | str | Iterable[bytes], check_health: bool = True) -> None:
        if not self.is_connected:
            await self.connect_check_health(check_health=False)
        if isinstance(command, str):
            command = command.encode()
        try:
            await self._write((command,) if isinstance(command, bytes) else command)
        except BaseException as error:
            await self.disconnect(nowait=True)  # a part of the command may have been sent
            self._raise_translated(error)
            raise

    async def read_response(
        self,
        disable_decoding: bool = False,
        timeout: float | None = None,
        *,
        disconnect_on_error: bool = True,
        push_request: bool | None = False,
    ) -> Any:
        if timeout is not None:  # coord never passes one
            return await super().read_response(
                disable_decoding, timeout, disconnect_on_error=disconnect_on_error, push_request=push_request
            )
        parser = cast("TimestampingParser", self._parser)
        self._watch(parser)
        try:
            response = await parser.read_response(disable_decoding, bool(push_request))
        except BaseException as error:
            if disconnect_on_error:
                await self.disconnect(nowait=True)
            self._raise_translated(error)
            raise
        finally:
            parser.due_since = None
        if isinstance(response, ResponseError):
            raise response
        return response

    def _raise_translated(self, error: BaseException) -> None:
        """Raise redis-py's error for an error of the event loop; return for any other error."""
        if isinstance(error, TimeoutError):  # of a ``SilenceTimer``, or the system's: ETIMEDOUT
            raise RedisTimeoutError(f"{self._host_error()} did not answer in time") from error
        if isinstance(error, OSError):
            raise RedisConnectionError(f"the connection to {self._host_error()} failed: {error}") from error
        if is_closed_transport(error):
            raise self._lost() from error

    def _lost(self) -> RedisConnectionError:
        return RedisConnectionError(f"the connection to {self._host_error()} was closed while it was used")

    async def can_read(self) -> bool:
        """Check that an idle connection can be used; an error or True makes the pool open another one."""
        writer = self._writer
        if writer is None or writer.transport.is_closing():
            await self.disconnect(nowait=True)
            raise RedisConnectionError(f"the connection to {self._host_error()} was closed while it was idle")
        return bool(await super().can_read())

    async def _write(self, parts: Iterable[bytes]) -> None:
        writer = self._writer
        if writer is None:
            raise RedisConnectionError(f"the connection to {self._host_error()} was closed before it was used")
        for part in parts:
            writer.write(part)
        transport = writer.transport
        if transport.get_write_buffer_size():
            await self._drain(writer)
        elif transport.is_closing():
            await writer.drain()  # raises why

    async def _drain(self, writer: asyncio.StreamWriter) -> None:
        """Wait until a large command is written; raise ``TimeoutError`` if the server reads nothing for too long."""
        if self.socket_timeout is None:
            await writer.drain()
            return
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(None) as limit:
            last_change = _last_change(writer.transport.get_write_buffer_size)
            timer = SilenceTimer(self.socket_timeout, last_change, lambda: limit.reschedule(loop.time()))
            timer.start()
            try:
                await writer.drain()
            finally:
                timer.stop()

    def _watch(self, parser: TimestampingParser) -> None:
        """Let the next read raise ``TimeoutError`` once nothing has arrived for the socket's timeout.

        A connection has one timer. It outlasts the reads, so that a round trip does not cost a timer.
        """
        if self.socket_timeout is None:
            return
        parser.due_since = asyncio.get_running_loop().time()
        if self._silence is None:
            self._silence = SilenceTimer(self.socket_timeout, parser.last_sign, self._end_read)
        self._silence.start()

    def _end_read(self) -> None:
        if self._reader is not None:
            self._reader.set_exception(TimeoutError())

    def is_usable(self) -> bool:
        """Return True if the connection is open, and nothing has arrived that no command asked for."""
        writer, reader = self._writer, cast("Any", self._reader)
        return (
            writer is not None
            and reader is not None
            and not self._should_reconnect
            and not writer.transport.is_closing()
            and not reader.at_eof()
            and not reader._buffer  # noqa: SLF001 - as redis-py's can_read
            and not cast("Any", self._parser)._reader.has_data()  # noqa: SLF001
        )


def _last_change(size: Callable[[], int]) -> Callable[[], float]:
    """Return a function that returns when ``size`` was last seen to change, on the loop's clock."""
    loop = asyncio.get_running_loop()
    seen, changed_at = size(), loop.time()

    def last_change() -> float:
        nonlocal seen, changed_at
        if (now := size()) != seen:
            seen, changed_at = now, loop.time()
        return changed_at

    return last_change


class PackingConnection(_PackingMixin, Connection):
    """Connection over TCP."""


class PackingSSLConnection(_PackingMixin, SSLConnection):
    """Connection over TLS."""


class PackingUnixConnection(_PackingMixin, UnixDomainSocketConnection):
    """Connection over a unix socket."""


class Pool(BlockingConnectionPool):
    """redis-py's pool, with a short way for the usual case: a connection is idle and open, and no caller waits for one.

    redis-py's own way takes two locks, a timeout, a retry and an event, which is a third of a round trip's time.
    """

    _waiting = 0  #: callers that take redis-py's way, and so may wait

    async def get_connection(self, command_name: str | None = None, *keys: Any, **options: Any) -> AbstractConnection:
        """Return an open connection; wait until there is one."""
        if self._available_connections and not self._waiting:
            connection = self._available_connections[-1]
            if isinstance(connection, _PackingMixin) and connection.is_usable():
                self._available_connections.pop()
                self._in_use_connections.add(connection)
                return connection
        self._waiting += 1
        try:
            return cast("AbstractConnection", await super().get_connection())  # type: ignore[no-untyped-call]
        finally:
            self._waiting -= 1

    async def release(self, connection: AbstractConnection) -> None:
        """Take back a connection."""
        if self._waiting or connection.should_reconnect() or connection not in self._in_use_connections:
            await super().release(connection)
            return
        self._in_use_connections.remove(connection)
        self._available_connections.append(connection)


#: redis-py's class of a connection -> coord's.
CONNECTION_CLASSES: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: PackingConnection,
    SSLConnection: PackingSSLConnection,
    UnixDomainSocketConnection: PackingUnixConnection,
}


async def send_and_read(
    redis: Redis, packed: Sequence[bytes], *, to_raise: bool = False, sent: asyncio.Future[None] | None = None
) -> list[Any]:
    """Send packed commands in one round trip; return the answer or the error of each, in order.

    They are retried as ``redis`` retries its commands, so they may run twice.

    Args:
        redis: a client of ``coord.connection``.
        packed: the commands, each packed by ``pack``.
        to_raise: raise the first error of any command; first retry, if it is an error that ``redis`` retries.
        sent: completed when the commands have been sent. On a busy server that is long before their answers.

    Raises:
        redis.exceptions.RedisError: the round trip failed; any of the commands may have run.
    """
    pool = redis.connection_pool
    connection = cast("AbstractConnection", await pool.get_connection())

    async def attempt() -> list[Any]:
        await connection.send_packed_command(b"".join(packed))
        if sent is not None and not sent.done():
            sent.set_result(None)
        answers = await _read_answers(connection, len(packed))
        if to_raise and (error := next((answer for answer in answers if isinstance(answer, ResponseError)), None)):
            raise error
        return answers

    try:
        return await connection.retry.call_with_retry(attempt, lambda error: connection.disconnect(error=error))
    finally:
        await pool.release(connection)


async def _read_answers(connection: AbstractConnection, count: int) -> list[Any]:
    answers: list[Any] = []
    try:
        while len(answers) < count:
            answer = _next_buffered(connection)
            if answer is NOT_ENOUGH_DATA:
                answer = await _read_answer(connection)
            if not isinstance(answer, hiredis.PushNotification):
                answers.append(answer)
    except BaseException:
        await connection.disconnect(nowait=True)  # the answers still to come belong to no command any more
        raise
    return answers


def _next_buffered(connection: AbstractConnection) -> Any:
    """Return the next answer that has arrived, or ``NOT_ENOUGH_DATA``."""
    # redis-py has no public access to it; the version is pinned below 9 and tests append through it.
    answer = cast("Any", connection)._parser._reader.gets()  # noqa: SLF001
    if isinstance(answer, RedisConnectionError):  # the server does not serve yet, or no longer
        raise answer
    return answer


async def _read_answer(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error


def _pack(command: Iterable[Any]) -> bytes:
    name, *args = command
    # redis-py names some commands with a space ("SCRIPT LOAD"); the server expects two arguments.
    return pack((*name.split(), *args))
