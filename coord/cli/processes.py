"""``coord worker KIND`` and ``coord gateway``: run one process of a cell until Ctrl-C."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from enum import StrEnum
from typing import Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.session import settings_of
from coord.config import Settings


class WorkerKind(StrEnum):
    """A kind of worker."""

    REGISTRY = "registry"
    DISTRIBUTOR = "distributor"
    ROUTER = "router"
    PUSH = "push"


def worker(
    *,
    kind: Annotated[WorkerKind, typer.Argument(help="Kind of worker.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option(
            help="Name, unique among its kind; a worker takes over the entries that are pending under its name.",
            show_default="host-pid-…",
        ),
    ] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    watch_stdin: Annotated[
        bool,
        typer.Option(
            "--watch-stdin", help="Shut down when standard input closes, so with the process that started it."
        ),
    ] = False,
) -> None:
    """Run one worker until Ctrl-C or SIGTERM; it finishes the entries that it has read.

    Any number of workers of each kind may run, on any number of machines. The log is readable on a terminal, else JSON
    lines. Exit code 0: graceful shutdown; 2: it could not start.

    Examples:
        coord worker distributor
        coord worker router --name router-9 --redis-url redis://10.0.0.5:6379/0
    """
    from coord.up.programs import child_environ, worker_command

    environ = child_environ(settings_of(redis_url=redis_url, namespace=namespace))
    sys.stdout.flush()
    # The worker replaces this process: it gets the signals, and its exit code and memory are its own.
    os.execve(sys.executable, worker_command(kind, name, watch_stdin=watch_stdin), environ)  # noqa: S606 (no shell)


def gateway(
    *,
    host: Annotated[str | None, typer.Option(help="Address to bind.", show_default="127.0.0.1")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65_535, help="Port to bind; 0: any free port.", show_default="9001")
    ] = None,
    workers: Annotated[
        int, typer.Option(min=1, max=256, help="Number of processes that share the port; a crashed one restarts.")
    ] = 1,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    watch_stdin: Annotated[
        bool,
        typer.Option(
            "--watch-stdin", help="Shut down when standard input closes, so with the process that started it."
        ),
    ] = False,
    listener: Annotated[int | None, typer.Option(hidden=True)] = None,
) -> None:
    """Run the HTTP gateway, for callers without Redis, until Ctrl-C or SIGTERM.

    It may start before Redis, and responds with 503 until Redis is available. One process uses one core.

    With COORD_GATEWAY_SECURITY=on every request needs a key (`coord keys create`). Without it the gateway binds
    loopback addresses only.

    The log is readable on a terminal, else JSON lines.

    Exit code 0: graceful shutdown; 2: it could not start.

    Examples:
        coord gateway
        coord gateway --port 8080 --redis-url redis://10.0.0.5:6379/0
        coord gateway --workers 4
    """
    import uvloop  # slow, like the imports below, so not at the top

    settings = settings_of(gateway_host=host, gateway_port=port, redis_url=redis_url, namespace=namespace)
    # The process that only starts others uses asyncio's loop: uvloop's starts no process groups.
    run = uvloop.run if workers == 1 else asyncio.run
    if code := run(_run(settings, workers, listener, watch_stdin=watch_stdin)):
        raise typer.Exit(code)


async def _run(settings: Settings, workers: int, listener: int | None, *, watch_stdin: bool) -> int:
    """Serve; return the exit code.

    Args:
        settings: of the gateway.
        workers: number of processes.
        listener: descriptor of a socket that listens already, in one of several processes.
        watch_stdin: shut down when standard input closes.
    """
    from coord.gateway.server import serve
    from coord.log_setup import configure
    from coord.up.gateways import UNUSABLE, run_gateways
    from coord.up.shutdown import Shutdown, shutdown_on_signals, shutdown_when_stdin_closes

    configure(settings, service="coord-gateway")
    shutdown = Shutdown()
    if watch_stdin:
        shutdown_when_stdin_closes(shutdown)
    with shutdown_on_signals(shutdown):
        if workers > 1:
            if not await run_gateways(settings, workers, shutdown):
                return UNUSABLE
        else:
            shared = None if listener is None else socket.socket(fileno=listener)
            await serve(settings, shutdown.requested, shutdown.forced, shared)
    return 130 if shutdown.forced.is_set() else 0
