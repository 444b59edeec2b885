"""``coord gateway``: the HTTP gateway, until Ctrl-C."""

from __future__ import annotations

from typing import Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.options import settings_of
from coord.config import Settings


def gateway(
    *,
    host: Annotated[
        str | None, typer.Option(help="Address to bind: this machine's own.", show_default="127.0.0.1")
    ] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65_535, help="Port; 0: any.", show_default="9001")] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    watch_stdin: Annotated[
        bool, typer.Option("--watch-stdin", help="End when standard input closes: with the process that started it.")
    ] = False,
) -> None:
    """Answer HTTP requests for callers that do not speak Redis, until Ctrl-C.

    It may be started before Redis, and answers 503 until that is there.

    There is no authentication yet: it binds this machine's own addresses unless COORD_GATEWAY_ALLOW_OPEN=true.

    The log is readable on a terminal, else JSON lines.

    Exit code 0: it was asked to end; 2: it could not be started as asked.

    Examples:
        coord gateway
        coord gateway --port 8080 --redis-url redis://10.0.0.5:6379/0
    """
    import uvloop  # with the rest below: nobody should wait for them who asks for the version

    settings = settings_of(gateway_host=host, gateway_port=port, redis_url=redis_url, namespace=namespace)
    if uvloop.run(_run(settings, watch_stdin=watch_stdin)):
        raise typer.Exit(130)


async def _run(settings: Settings, *, watch_stdin: bool) -> bool:
    """Serve; whether it was ended urgently."""
    from coord import logs
    from coord.cli.signals import stop_on_signals, stop_when_stdin_closes
    from coord.gateway.server import serve
    from coord.up.shutdown import Stop

    logs.configure(settings, service="coord-gateway")
    stop = Stop()
    if watch_stdin:
        stop_when_stdin_closes(stop)
    with stop_on_signals(stop):
        await serve(settings, stop.asked, stop.urgent)
    return stop.urgent.is_set()
