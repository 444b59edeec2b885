"""``coord up``: run a cell on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import Namespace, cell_option
from coord.cli.exit_codes import ExitCode
from coord.cli.session import settings_of
from coord.errors import ConfigError
from coord.standard_streams import flush

if TYPE_CHECKING:
    from coord.up import runner

#: Maximum workers of one kind; more on one machine is a typing error, because a few saturate a Redis server.
MAX_WORKERS = 64


def up(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Data folder of the embedded Redis server.",
            show_default="coord/data in ~/.local/state",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(
            metavar="URL", help="Use this Redis server instead of an embedded one.", show_default="COORD_REDIS_URL"
        ),
    ] = None,
    registries: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_WORKERS, help="Number of registries.")] = 1,
    distributors: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_WORKERS, help="Number of distributors.")] = 1,
    routers: Annotated[int, typer.Option(metavar="N", min=0, max=MAX_WORKERS, help="Number of routers.")] = 1,
    push_workers: Annotated[
        int,
        typer.Option(
            metavar="N", min=0, max=MAX_WORKERS, help="Number of push workers, for agents with an HTTP endpoint."
        ),
    ] = 1,
    namespace: Namespace = None,
    gateway: Annotated[bool, typer.Option(help="Also run the HTTP gateway, on the loopback address.")] = True,
    port: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=0, max=65_535, help="Port of the gateway; 0: any free port.", show_default="9001"
        ),
    ] = None,
    agents: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="TOML file with agents to start; see examples/agents.toml.", show_default=False
        ),
    ] = None,
    repair_aof: Annotated[
        bool,
        typer.Option("--repair-aof", help="Cut a damaged end off the append-only file first, and keep a copy of it."),
    ] = False,
    watch_stdin: Annotated[
        bool,
        typer.Option(
            "--watch-stdin", help="Shut down when standard input closes, so with the process that started it."
        ),
    ] = False,
) -> None:
    """Start Redis (unless a server is given), workers and gateway, and keep them running until Ctrl-C.

    Clients and agents of this user connect automatically, through a file with the address of Redis. All output is one
    log: readable on a terminal, else JSON lines.

    Examples:
        coord up
        coord up --distributors 4 --data ~/coord-data
        coord up --agents examples/agents.toml --port 9001
        coord up --redis-url redis://127.0.0.1:6379/0 --namespace staging
    """
    from coord.up import runner  # imports the Redis client and more, so not at the top
    from coord.up.agents_file import read_agents

    if data is not None and redis_url is not None:
        raise ConfigError("--data is for the embedded server and --redis-url for an external one; give one of them")
    if data is not None and (cell := cell_option()) is not None:
        raise ConfigError(f"--data is for the embedded server and --cell {cell} for another one; give one of them")
    if port is not None and not gateway:
        raise ConfigError("--port is the port of the gateway, and --no-gateway runs none; give one of them")
    settings = settings_of(redis_url=redis_url, namespace=namespace, uses_default_cell=False, gateway_port=port)
    if repair_aof and data is None and settings.redis_url:
        raise ConfigError("--repair-aof is for the embedded server; give its folder with --data")
    workers = {"registry": registries, "distributor": distributors, "router": routers, "push": push_workers}
    plan = runner.CellPlan(
        settings=settings,
        data_dir=data,
        workers=workers,
        gateway=gateway,
        repair_aof=repair_aof,
        agents=tuple(read_agents(agents)) if agents is not None else (),
    )
    if code := asyncio.run(_run(plan, watch_stdin=watch_stdin)):
        raise typer.Exit(code)


async def _run(plan: runner.CellPlan, *, watch_stdin: bool) -> int:
    """Run the cell; return the exit code."""
    from coord.up.log import open_log
    from coord.up.runner import LocalCell
    from coord.up.shutdown import Shutdown, shutdown_on_signals, shutdown_when_stdin_closes

    shutdown = Shutdown()
    if watch_stdin:
        shutdown_when_stdin_closes(shutdown)
    log = open_log(plan.settings, shutdown.request_once)
    cell = LocalCell(plan, shutdown, log)
    with shutdown_on_signals(shutdown):
        await cell.run()
    log.message("up.ended", "stopped")
    flush()  # lines of the log that cannot be written are no error
    if shutdown.forced.is_set():
        return ExitCode.INTERRUPTED
    return ExitCode.NO if cell.gave_up else ExitCode.OK
