"""The gateway's place: its URL, whether another program has it, and whether our own gateway answers there."""

from __future__ import annotations

import asyncio
import errno
import socket

import psutil

from coord.config import Settings

#: How long the gateway may take to say that it is ready; it needs milliseconds.
ANSWER_S = 2.0


def url_of(settings: Settings) -> str:
    """Where the gateway answers; '' while only it will know: on a free port."""
    host = f"[{settings.gateway_host}]" if ":" in settings.gateway_host else settings.gateway_host
    return f"http://{host}:{settings.gateway_port}" if settings.gateway_port else ""


def is_taken(settings: Settings) -> bool:
    """Whether another program listens there; what else keeps the gateway from it, it says itself."""
    try:
        found = socket.getaddrinfo(settings.gateway_host, settings.gateway_port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = min(found)
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
            trial.listen()
    except (OSError, UnicodeError) as error:
        return isinstance(error, OSError) and error.errno == errno.EADDRINUSE
    return False


async def is_ours(settings: Settings, pid: int | None) -> bool:
    """Whether the gateway of this process id answers.

    Somebody else's gateway on the port answers too, so it is first asked whether ours listens at all.
    """
    try:
        opened = [] if pid is None else await asyncio.to_thread(psutil.Process(pid).net_connections, "tcp")
    except psutil.NoSuchProcess:
        return False
    except (psutil.Error, OSError, RuntimeError):  # a service manager may hide /proc/net
        return await _answers(settings.gateway_host, settings.gateway_port) if settings.gateway_port else True
    ports = {one.laddr.port for one in opened if one.status == psutil.CONN_LISTEN}
    if settings.gateway_port:
        ports &= {settings.gateway_port}
    for port in ports:
        if await _answers(settings.gateway_host, port):
            return True
    return False


async def _answers(host: str, port: int) -> bool:
    """Whether a gateway there is ready; raises ``OSError`` where nobody answers in time."""
    async with asyncio.timeout(ANSWER_S):
        reader, writer = await asyncio.open_connection(host, port)
        try:
            writer.write(b"GET /health/ready HTTP/1.0\r\nHost: localhost\r\n\r\n")
            return b" 200 " in await reader.readline()
        finally:
            writer.close()
