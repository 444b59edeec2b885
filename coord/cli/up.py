"""``coord up``: a cell on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from coord import __version__
from coord.config import Settings, load
from coord.errors import ConfigError

if TYPE_CHECKING:
    from rich.console import Console

    from coord.cli import cell

#: More of one kind on one machine is a typing error: a few saturate a Redis.
MANY = 64


def up(
    *,
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of the embedded Redis server.", show_default="~/.local/state/coord/data"),
    ] = None,
    redis_url: Annotated[
        str | None,
        typer.Option(help="Use this Redis instead of an embedded one.", show_default="COORD_REDIS_URL"),
    ] = None,
    registries: Annotated[int, typer.Option(min=0, max=MANY, help="How many registries.")] = 1,
    distributors: Annotated[int, typer.Option(min=0, max=MANY, help="How many distributors.")] = 1,
    routers: Annotated[int, typer.Option(min=0, max=MANY, help="How many routers.")] = 1,
    namespace: Annotated[str | None, typer.Option(help="First part of every key.", show_default="coord")] = None,
    watch_stdin: Annotated[
        bool, typer.Option("--watch-stdin", help="End when standard input closes: with the process that started it.")
    ] = False,
) -> None:
    """Start Redis (unless one is given) and the workers, keep them running, and end them on Ctrl-C.

    Clients and agents of this user find it by themselves, through a file that says where Redis is.

    Examples:
        coord up
        coord up --distributors 4 --data ~/coord-data
        coord up --redis-url redis://127.0.0.1:6379/0 --namespace staging
    """
    from coord.cli import cell  # a Redis client and more, which nobody should wait for who asks for the version

    if data is not None and redis_url is not None:
        raise ConfigError("--data is for the embedded server, --redis-url for one of your own; give one of them")
    settings = load(redis_url=redis_url, namespace=namespace)
    workers = {"registry": registries, "distributor": distributors, "router": routers}
    plan = cell.Plan(settings=settings, data_dir=data, workers=workers)
    if asyncio.run(_run(plan, watch_stdin=watch_stdin)):
        raise typer.Exit(130)


async def _run(plan: cell.Plan, *, watch_stdin: bool) -> bool:
    """Run the cell; whether it was ended urgently."""
    from rich.console import Console

    from coord.cli.cell import Cell
    from coord.cli.signals import stop_on_signals, stop_when_stdin_closes
    from coord.cli.stop import Stop

    stop = Stop()
    if watch_stdin:
        stop_when_stdin_closes(stop)
    console = Console(highlight=False, soft_wrap=True)

    def say(sentence: str) -> None:
        console.print(f"[dim]{time.strftime('%H:%M:%S')}[/]  {_plain(sentence)}")

    with stop_on_signals(stop):
        await Cell(plan, stop, up=lambda found: _show(console, found), say=say).run()
    say("ended")
    return stop.urgent.is_set()


def _show(console: Console, found: cell.Up) -> None:
    report = found.report
    rows = [("redis", f"{found.url} ({report.product} {report.version}, {found.origin})")]
    if found.data_dir is not None:
        rows.append(("data", str(found.data_dir)))
    rows.append(("durability", report.durability))
    rows += [("warning", sentence) for sentence in report.warnings]
    if found.namespace != Settings().namespace:
        rows.append(("namespace", found.namespace))
    rows.append(("workers", ", ".join(found.workers) or "none here"))
    rows.append(("announced", str(found.endpoint)))
    console.print(f"[bold]coord {__version__}[/]")
    for name, value in rows:
        style = "yellow" if name == "warning" else "cyan"
        console.print(f"[{style}]{name:<11}[/]{_plain(value)}")


def _plain(text: str) -> str:
    """Text in which brackets are brackets, not rich's markup."""
    return text.replace("[", r"\[")
