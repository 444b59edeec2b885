"""Connections that write commands with hiredis, as redis-py's asyncio ones already read answers with it.

They also differ from redis-py's in two ways. A closed transport is a lost connection: uvloop raises ``RuntimeError``
from a write to one, which redis-py passes on. And the timeout of an answer counts from the last byte that arrived, and
does not fire because this process stood still (``coord.silence``).

redis-py's own packing is Python, an argument at a time; a batch of 256 reports has 2,560 arguments, and packing them
was a third of a distributor's work. Its pipeline reads each answer in three coroutines and under a timeout of its own,
which was a quarter of a client's: ``exchange`` does that once for all answers that have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import Any, TypeVar, cast

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA, _AsyncHiredisParser
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from coord.silence import Silence

T = TypeVar("T")

#: Packs a command: a tuple of str, bytes, int or float.
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


def _pack(command: Iterable[Any]) -> bytes:
    name, *args = command
    # redis-py names some commands with a space ("SCRIPT LOAD"); the server wants them as two arguments.
    return pack((*name.split(), *args))


#: What uvloop says of an operation on a transport that is closed. (asyncio's own loop raises an OSError.)
CLOSED = "the handler is closed"


def is_closed_transport(error: BaseException) -> bool:
    """Return True if an event loop refused an operation because the transport is closed."""
    return isinstance(error, RuntimeError) and CLOSED in str(error)


class ListeningParser(_AsyncHiredisParser):
    """redis-py's parser, which also notes when something arrives."""

    def __init__(self, socket_read_size: int) -> None:
        super().__init__(socket_read_size)
        self.heard_at = 0.0  #: on the loop's clock

    async def read_from_socket(self) -> bool:
        """Read what has arrived."""
        has_read: bool = await super().read_from_socket()  # type: ignore[no-untyped-call]
        self.heard_at = asyncio.get_running_loop().time()
        return has_read


class _Packing(AbstractConnection):
    def pack_command(self, *args: Any) -> list[bytes]:
        return [_pack(args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(map(_pack, commands))]

    async def connect(self) -> None:
        try:
            await super().connect()  # type: ignore[no-untyped-call]
        except RuntimeError as error:
            if not is_closed_transport(error):
                raise
            raise self._lost() from error

    async def disconnect(self, *args: Any, **kwargs: Any) -> None:
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
        if timeout is not None:  # nobody here asks for one of its own
            return await super().read_response(
                disable_decoding, timeout, disconnect_on_error=disconnect_on_error, push_request=push_request
            )
        parser: Any = self._parser
        try:
            response = await self._patiently(
                parser.read_response(disable_decoding=disable_decoding, push_request=push_request)
            )
        except BaseException as error:
            if disconnect_on_error:
                await self.disconnect(nowait=True)
            self._raise_translated(error)
            raise
        if isinstance(response, ResponseError):
            raise response
        return response

    def _raise_translated(self, error: BaseException) -> None:
        """Raise what redis-py would for an error of the event loop; return if it is none of these."""
        if isinstance(error, TimeoutError):  # ours, or the system's: ETIMEDOUT
            raise RedisTimeoutError(f"{self._host_error()} did not answer in time") from error
        if isinstance(error, OSError):
            raise RedisConnectionError(f"the connection to {self._host_error()} failed: {error}") from error
        if is_closed_transport(error):
            raise self._lost() from error

    def _lost(self) -> RedisConnectionError:
        return RedisConnectionError(f"the connection to {self._host_error()} was closed while it was used")

    async def can_read(self) -> bool:
        """Look whether a connection that was idle can be used; an error or True makes the pool open another."""
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
        if writer.transport.get_write_buffer_size():
            await self._patiently(writer.drain(), _last_change(writer.transport.get_write_buffer_size))
        else:
            await writer.drain()

    async def _patiently(self, work: Awaitable[T], heard_at: Callable[[], float] | None = None) -> T:
        """Await ``work``; raise ``TimeoutError`` once nothing has arrived for the socket's timeout."""
        if self.socket_timeout is None:
            return await work
        loop = asyncio.get_running_loop()
        parser, began = cast("ListeningParser", self._parser), loop.time()
        async with asyncio.timeout(None) as limit:
            silence = Silence(
                self.socket_timeout,
                heard_at or (lambda: max(began, parser.heard_at)),
                lambda: limit.reschedule(loop.time()),
            )
            silence.start()
            try:
                return await work
            finally:
                silence.stop()


def _last_change(size: Callable[[], int]) -> Callable[[], float]:
    """Return a function that tells when ``size`` was last seen to change, on the loop's clock."""
    loop = asyncio.get_running_loop()
    seen, changed_at = size(), loop.time()

    def heard_at() -> float:
        nonlocal seen, changed_at
        if (now := size()) != seen:
            seen, changed_at = now, loop.time()
        return changed_at

    return heard_at


class PackingConnection(_Packing, Connection):
    """Over TCP."""


class PackingSSLConnection(_Packing, SSLConnection):
    """Over TLS."""


class PackingUnixConnection(_Packing, UnixDomainSocketConnection):
    """Over a unix socket."""


#: redis-py's connection -> the same, writing with hiredis.
PACKING: dict[type[AbstractConnection], type[AbstractConnection]] = {
    Connection: PackingConnection,
    SSLConnection: PackingSSLConnection,
    UnixDomainSocketConnection: PackingUnixConnection,
}


async def exchange(
    redis: Redis, packed: Sequence[bytes], *, to_raise: bool = False, sent: asyncio.Future[None] | None = None
) -> list[Any]:
    """Send packed commands in one round trip; the answer or the error of each, in order.

    They are sent again as ``redis`` does, so they may run twice.

    Args:
        redis: a client of hiredis connections.
        packed: what ``pack`` made of each.
        to_raise: the first error that any of them had is raised; sent again if it is one that ``redis`` repeats.
        sent: done when they have been sent, which is long before their answers when the server is busy.

    Raises:
        redis.exceptions.RedisError: of the round trip itself; any of the commands may have run.
    """
    pool = redis.connection_pool
    connection = cast("AbstractConnection", await pool.get_connection())

    async def once() -> list[Any]:
        await connection.send_packed_command(b"".join(packed))
        if sent is not None and not sent.done():
            sent.set_result(None)
        answers = await _answers(connection, len(packed))
        if to_raise and (error := next((one for one in answers if isinstance(one, ResponseError)), None)):
            raise error
        return answers

    try:
        return await connection.retry.call_with_retry(once, lambda error: connection.disconnect(error=error))
    finally:
        await pool.release(connection)


async def _answers(connection: AbstractConnection, count: int) -> list[Any]:
    answers: list[Any] = []
    try:
        while len(answers) < count:
            answer = _at_hand(connection)
            if answer is NOT_ENOUGH_DATA:
                answer = await _read(connection)
            if not isinstance(answer, hiredis.PushNotification):
                answers.append(answer)
    except BaseException:
        await connection.disconnect(nowait=True)  # nobody knows any more whose the answers are that are still to come
        raise
    return answers


def _at_hand(connection: AbstractConnection) -> Any:
    """The next answer of those that have come, or ``NOT_ENOUGH_DATA``."""
    # redis-py has no public way to it; the version is pinned below 9 and tests append through it.
    answer = cast("Any", connection)._parser._reader.gets()  # noqa: SLF001
    if isinstance(answer, RedisConnectionError):  # the server does not serve yet, or not any more
        raise answer
    return answer


async def _read(connection: AbstractConnection) -> Any:
    try:
        return await connection.read_response()
    except ResponseError as error:
        return error
