"""Runs the gateway until shutdown: every request that it has accepted gets its response."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import resource
import socket
from collections.abc import Iterator
from ipaddress import ip_address

import uvicorn

from coord import logs
from coord.background import cancel_and_wait
from coord.config import Settings
from coord.errors import ConfigError, CoordError
from coord.gateway.app import GatewayApp, make_app
from coord.gateway.backend import Backend
from coord.gateway.draining import LINGER_S, WAIT_S, request_limit_s
from coord.gateway.gateway import Gateway
from coord.gateway.presence import Presence
from coord.gateway.protocol import Protocol, sweep
from coord.gateway.socket_protocol import SocketProtocol
from coord.gateway.traced import TracedApp

log = logs.get_logger()

#: Maximum number of connections that wait to be accepted.
BACKLOG = 2_048
#: Number of open files, and so of connections, that the process asks the system for.
FILES = 65_536


async def serve(
    settings: Settings, requested: asyncio.Event, forced: asyncio.Event, listener: socket.socket | None = None
) -> None:
    """Serve until shutdown.

    Args:
        settings: host, port and limits.
        requested: set for a graceful shutdown.
        forced: set for a shutdown that does not wait for active requests.
        listener: socket of several gateways that listens already; None: this one binds its own.

    Raises:
        ConfigError: the address must not or cannot be bound, or Redis refuses the credentials.
    """
    listener = listener or bind(settings)
    backend = Backend(settings)
    app = make_app(backend, settings)
    server = _Server(_config(app, settings), app.gateway)
    failures: list[CoordError] = []

    def failed(error: CoordError) -> None:
        failures.append(error)
        server.should_exit = True

    backend.open(failed)
    _allow_connections()
    logging.getLogger("uvicorn.error").addFilter(_Known("known"))
    watching = [
        asyncio.create_task(_set_when(requested, server, "should_exit")),
        asyncio.create_task(_set_when(forced, server, "force_exit")),
    ]
    url = url_of(listener)
    log.info("gateway.started", url=url, dashboard=f"{url}/ui")
    presence = Presence(backend, lambda: server.server_state.total_requests)
    presence.start()
    try:
        await server.serve(sockets=[listener])
    finally:
        await cancel_and_wait(*watching)
        await presence.end()
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


def _allow_connections() -> None:
    """Raise the limit of open files, which includes connections: many systems begin with 1,024."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _config(app: GatewayApp, settings: Settings) -> uvicorn.Config:
    return uvicorn.Config(
        TracedApp(app) if settings.tracing else app,
        http=Protocol,
        ws=SocketProtocol,
        ws_max_size=settings.max_entry_bytes,
        ws_ping_timeout=120,  # a pong is read after the frames before it, each of which may wait for a worker
        ws_per_message_deflate=False,  # it costs 50 KiB of memory a connection
        lifespan="off",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        backlog=BACKLOG,
    )


class _Known(logging.Filter):
    """Drops errors of uvicorn that the app knows of.

    They are the handshake of a WebSocket that gets an HTTP response, and a stream that ends too early: the app has
    logged why.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        message = str(record.msg)
        return "without completing handshake" not in message and "without completing response" not in message


class _Server(uvicorn.Server):
    """A uvicorn server that leaves the signals to the command, and drops no request when it shuts down."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway) -> None:
        super().__init__(config)
        self._gateway = gateway

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    async def on_tick(self, counter: int) -> bool:
        """Check the limits of time once a second."""
        if counter % 10 == 0:
            sweep(self.server_state.connections)
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accept no more connections, answer the requests that are there or on their way, close all connections.

        What waits for a worker is answered early: 202, an empty page, the end of a stream.
        """
        for _ in range(3):
            await asyncio.sleep(0)  # connections that wait are accepted; uvloop makes their protocols a turn later
        for listener in (*self.servers, *(sockets or ())):
            listener.close()
        await asyncio.sleep(0)
        for connection in list(self.server_state.connections):
            connection.shutdown()  # each response is the last one of its connection
        self._gateway.close()
        loop = asyncio.get_running_loop()
        began, waits_end_s = loop.time(), WAIT_S
        limit_s = request_limit_s(self._gateway.settings)
        while self._is_busy() and not self.force_exit:
            await asyncio.sleep(0.05)
            waited = loop.time() - began
            if waited > LINGER_S:
                sweep(self.server_state.connections, idle_s=LINGER_S)
            if waited > waits_end_s:
                self._gateway.backend.end_waits()
                waits_end_s += WAIT_S
            if waited > limit_s:
                log.error("gateway.requests_cancelled", requests=len(self.server_state.tasks))
                for task in self.server_state.tasks:
                    task.cancel()
                break

    def _is_busy(self) -> bool:
        return bool(self.server_state.connections or self.server_state.tasks)


async def _set_when(event: asyncio.Event, server: _Server, attribute: str) -> None:
    await event.wait()
    setattr(server, attribute, True)


def url_of(listener: socket.socket) -> str:
    """Return the URL of a listening socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
