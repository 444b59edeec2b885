"""The gateway of ``coord up``: its URL, whether its port is free, and whether it is ready."""

from __future__ import annotations

import asyncio
import errno
import http.client
import socket

import psutil

from coord.config import Settings

#: Timeout in seconds of the readiness check; the gateway needs milliseconds.
READY_TIMEOUT_S = 2.0


def url_of(settings: Settings) -> str:
    """Return the URL of the gateway; '' if it takes a free port, which only the gateway knows."""
    host = f"[{settings.gateway_host}]" if ":" in settings.gateway_host else settings.gateway_host
    return f"http://{host}:{settings.gateway_port}" if settings.gateway_port else ""


def is_taken(settings: Settings) -> bool:
    """Return True if another program listens on the port; the gateway itself reports any other obstacle."""
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


async def is_ready(settings: Settings, pid: int | None) -> bool:
    """Return True if the gateway with this process id is ready.

    A gateway of another ``coord up`` on the port responds too. So this first checks that the process listens there.
    """
    return await asyncio.to_thread(_is_ready, settings, pid)


def _is_ready(settings: Settings, pid: int | None) -> bool:
    try:
        connections = [] if pid is None else psutil.Process(pid).net_connections("tcp")
    except psutil.Error:
        return False
    ports = {connection.laddr.port for connection in connections if connection.status == psutil.CONN_LISTEN}
    if settings.gateway_port:
        ports &= {settings.gateway_port}
    return any(_responds(settings.gateway_host, port) for port in ports)


def _responds(host: str, port: int) -> bool:
    connection = http.client.HTTPConnection(host, port, timeout=READY_TIMEOUT_S)
    try:
        connection.request("GET", "/health/ready")
        return connection.getresponse().status == http.HTTPStatus.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
