"""``coord up``: a cell on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import Namespace
from coord.cli.exit_codes import ExitCode
from coord.cli.options import settings_of
from coord.errors import ConfigError
from coord.standard_streams import settle

if TYPE_CHECKING:
    from coord.up import runner

#: More of one kind on one machine is a typing error: a few saturate a Redis.
MANY = 64


def up(
    *,
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Folder of the embedded Redis server.",
            show_default="coord/data in ~/.local/state",
        ),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(metavar="URL", help="Use this Redis instead of an embedded one.", show_default="COORD_REDIS_URL"),
    ] = None,
    registries: Annotated[int, typer.Option(metavar="N", min=0, max=MANY, help="How many registries.")] = 1,
    distributors: Annotated[int, typer.Option(metavar="N", min=0, max=MANY, help="How many distributors.")] = 1,
    routers: Annotated[int, typer.Option(metavar="N", min=0, max=MANY, help="How many routers.")] = 1,
    namespace: Namespace = None,
    gateway: Annotated[bool, typer.Option(help="Also answer HTTP, on the loopback.")] = True,
    port: Annotated[
        int | None,
        typer.Option(metavar="N", min=0, max=65_535, help="Port of the gateway; 0: any.", show_default="9001"),
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
        bool, typer.Option("--watch-stdin", help="End when standard input closes: with the process that started it.")
    ] = False,
) -> None:
    """Start Redis (unless one is given), the workers and the gateway, keep them running, and end them on Ctrl-C.

    Clients and agents of this user find it by themselves, through a file that says where Redis is. All that happens
    is one log: readable on a terminal, else JSON lines.

    Examples:
        coord up
        coord up --distributors 4 --data ~/coord-data
        coord up --agents examples/agents.toml --port 9001
        coord up --redis-url redis://127.0.0.1:6379/0 --namespace staging
    """
    from coord.up import (
        runner,  # a Redis client and more, which nobody should wait for who asks for the version
    )
    from coord.up.agents_file import read_agents

    if data is not None and redis_url is not None:
        raise ConfigError("--data is for the embedded server, --redis-url for one of your own; give one of them")
    if port is not None and not gateway:
        raise ConfigError("--port is the gateway's, and --no-gateway leaves it out; give one of them")
    settings = settings_of(redis_url=redis_url, namespace=namespace, gateway_port=port)
    if repair_aof and data is None and settings.redis_url:
        raise ConfigError("--repair-aof is for the embedded server; give its folder with --data")
    workers = {"registry": registries, "distributor": distributors, "router": routers}
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
    """Run the cell; the exit code."""
    from coord.cli.signals import stop_on_signals, stop_when_stdin_closes
    from coord.up.log import open_log
    from coord.up.runner import LocalCell
    from coord.up.shutdown import Stop

    stop = Stop()
    if watch_stdin:
        stop_when_stdin_closes(stop)
    log = open_log(plan.settings, stop.ask_once)
    cell = LocalCell(plan, stop, log)
    with stop_on_signals(stop):
        await cell.run()
    log.say("up.ended", "ended")
    settle()  # what the log could not write by now is no reason to end with an error
    if stop.urgent.is_set():
        return ExitCode.INTERRUPTED
    return ExitCode.NO if cell.gave_up else ExitCode.OK
