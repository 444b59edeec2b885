"""Connections that write commands with hiredis, as redis-py's asyncio ones already read answers with it.

redis-py's own packing is Python, an argument at a time; a batch of 256 reports has 2,560 arguments, and packing them
was a third of a distributor's work. Its pipeline reads each answer in three coroutines and under a timeout of its own,
which was a quarter of a client's: ``exchange`` does that once for all answers that have come.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from typing import Any, cast

import hiredis
from redis._parsers.hiredis import NOT_ENOUGH_DATA
from redis.asyncio import Redis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

#: Packs a command: a tuple of str, bytes, int or float.
pack: Callable[[tuple[Any, ...]], bytes] = hiredis.pack_command


def _pack(command: Iterable[Any]) -> bytes:
    name, *args = command
    # redis-py names some commands with a space ("SCRIPT LOAD"); the server wants them as two arguments.
    return pack((*name.split(), *args))


class _Packing(AbstractConnection):
    def pack_command(self, *args: Any) -> list[bytes]:
        return [_pack(args)]

    def pack_commands(self, commands: Iterable[Iterable[Any]]) -> list[bytes]:
        return [b"".join(map(_pack, commands))]


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
