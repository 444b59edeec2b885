"""Serves the gateway until it is asked to end: requests under way are finished, within a limit."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import uvicorn

from coord import logs
from coord.aio import cancel_and_wait
from coord.config import Settings
from coord.errors import ConfigError, CoordError
from coord.gateway.app import make_app
from coord.gateway.backend import Backend

log = logs.get_logger()

#: What requests under way may take when the gateway ends: longer than any wait that it does itself.
END_S = 10
#: How long a connection may idle between two requests: above what clients keep theirs for, so that they close first.
IDLE_S = 75
#: Connections that wait to be taken.
BACKLOG = 2_048


async def serve(settings: Settings, asked: asyncio.Event, urgent: asyncio.Event) -> None:
    """Serve until ``asked``; when ``urgent``, without waiting for what is under way.

    Raises:
        ConfigError: the address may not or cannot be bound, or Redis refuses the credentials.
    """
    listener = bind(settings)
    desk = Backend(settings)
    server = _Server(_config(desk, settings))
    failures: list[CoordError] = []

    def failed(error: CoordError) -> None:
        failures.append(error)
        server.should_exit = True

    desk.open(failed)
    watching = [
        asyncio.create_task(_ask(asked, server, "should_exit")),
        asyncio.create_task(_ask(urgent, server, "force_exit")),
    ]
    log.info("gateway.started", url=_url(listener))
    try:
        await server.serve(sockets=[listener])
    finally:
        await cancel_and_wait(*watching)
        await desk.close()
    log.info("gateway.stopped")
    if failures:
        raise failures[0]


def bind(settings: Settings) -> socket.socket:
    """The socket that listens; raises ``ConfigError`` naming the setting that does not fit."""
    host, port = settings.gateway_host, settings.gateway_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"COORD_GATEWAY_HOST={host}: no such address: {error}") from None
    family, kind, protocol, _, address = min(found)  # IPv4 first: localhost is both
    if not settings.gateway_allow_open and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"COORD_GATEWAY_HOST={host}: other machines reach this address, and the gateway has no authentication yet: "
            "whoever reaches it may do everything. Bind 127.0.0.1, or accept that with COORD_GATEWAY_ALLOW_OPEN=true"
        )
    listener = socket.socket(family, kind, protocol)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {host} port {port}: {error.strerror}; choose another with --port"
        ) from None
    listener.setblocking(False)
    return listener


def _config(desk: Backend, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(desk, settings),
        http="h11",
        ws="none",
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
        timeout_keep_alive=IDLE_S,
        timeout_graceful_shutdown=END_S,
    )


class _Server(uvicorn.Server):
    """uvicorn's, which leaves the signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _ask(event: asyncio.Event, server: _Server, wish: str) -> None:
    await event.wait()
    setattr(server, wish, True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
