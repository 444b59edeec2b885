"""Connections that write commands with hiredis, as redis-py's asyncio ones already read answers with it.

redis-py's own packing is Python, an argument at a time; a batch of 256 reports has 2,560 arguments, and packing them
was a third of a distributor's work.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import hiredis
from redis.asyncio.connection import AbstractConnection, Connection, SSLConnection, UnixDomainSocketConnection


def _pack(command: Iterable[Any]) -> bytes:
    name, *args = command
    # redis-py names some commands with a space ("SCRIPT LOAD"); the server wants them as two arguments.
    packed: bytes = hiredis.pack_command((*name.split(), *args))
    return packed


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
