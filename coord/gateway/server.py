"""Runs the gateway until shutdown: active requests get a limited time to finish."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import uvicorn

from coord import logs
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.errors import ConfigError, CoordError
from coord.gateway.app import make_app
from coord.gateway.backend import Backend

log = logs.get_logger()

#: Seconds that active requests get at shutdown: longer than any wait of the gateway itself.
SHUTDOWN_S = 10
#: Seconds that a connection may idle between two requests: longer than in clients, so that the client closes first.
IDLE_S = 75
#: Maximum number of connections that wait to be accepted.
BACKLOG = 2_048


async def serve(settings: Settings, requested: asyncio.Event, forced: asyncio.Event) -> None:
    """Serve until shutdown.

    Args:
        settings: host, port and limits.
        requested: set for a graceful shutdown.
        forced: set for a shutdown that does not wait for active requests.

    Raises:
        ConfigError: the address must not or cannot be bound, or Redis refuses the credentials.
    """
    listener = bind(settings)
    backend = Backend(settings)
    server = _Server(_config(backend, settings))
    failures: list[CoordError] = []

    def failed(error: CoordError) -> None:
        failures.append(error)
        server.should_exit = True

    backend.open(failed)
    watching = [
        asyncio.create_task(_set_when(requested, server, "should_exit")),
        asyncio.create_task(_set_when(forced, server, "force_exit")),
    ]
    log.info("gateway.started", url=_url(listener))
    try:
        await server.serve(sockets=[listener])
    finally:
        await cancel_and_wait(*watching)
        await backend.close()
    log.info("gateway.stopped")
    if failures:
        raise failures[0]


def bind(settings: Settings) -> socket.socket:
    """Return the listening socket.

    Raises:
        ConfigError: the address must not or cannot be bound; names the setting.
    """
    host, port = settings.gateway_host, settings.gateway_port
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"COORD_GATEWAY_HOST={host}: unknown address: {error}") from None
    family, kind, protocol, _, address = min(found)  # IPv4 first: localhost has both
    if not settings.gateway_security and not ip_address(str(address[0]).partition("%")[0]).is_loopback:
        raise ConfigError(
            f"COORD_GATEWAY_HOST={host}: other machines can reach this address, and without COORD_GATEWAY_SECURITY=on "
            "every caller may do everything. Set it, and make the first key with `coord keys create --role admin`; "
            "or bind 127.0.0.1"
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


def _config(backend: Backend, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        make_app(backend, settings),
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
        timeout_graceful_shutdown=SHUTDOWN_S,
    )


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to the command."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def _set_when(event: asyncio.Event, server: _Server, attribute: str) -> None:
    await event.wait()
    setattr(server, attribute, True)


def _url(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
