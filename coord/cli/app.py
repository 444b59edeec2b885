"""The table of commands."""

from __future__ import annotations

import platform
from typing import Annotated

import typer

from coord import __version__
from coord.cli.agent import agent
from coord.cli.agents import agents
from coord.cli.commands import register, root
from coord.cli.dead import dead
from coord.cli.events import events
from coord.cli.fsck import fsck
from coord.cli.gateway import gateway
from coord.cli.messages import messages
from coord.cli.ps import ps
from coord.cli.queues import pools, queues
from coord.cli.settings import settings, strategy
from coord.cli.tasks import tasks
from coord.cli.up import up
from coord.cli.worker import worker


def version() -> None:
    """Show the version of coord and of its Python interpreter."""
    print(f"coord {__version__} (Python {platform.python_version()})")


def _show_version(is_given: bool) -> None:
    if is_given:
        version()
        raise typer.Exit


app = root()


@app.callback(help="Coordinates fleets of agents on Redis Streams: chooses the best agent for each task.")
def _options(
    *,
    _version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Options before the command."""


for command in (
    up,
    worker,
    gateway,
    ps,
    queues,
    pools,
    events,
    fsck,
    version,
):
    register(app, command)
register(app, agent, runs_another=True)
for commands in (
    tasks,
    agents,
    messages,
    strategy,
    settings,
    dead,
):
    app.add_typer(commands)
