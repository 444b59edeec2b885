"""``coord worker KIND``: one more worker, here."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.options import settings_of


class Kind(StrEnum):
    """A kind of worker."""

    REGISTRY = "registry"
    DISTRIBUTOR = "distributor"
    ROUTER = "router"


def worker(
    *,
    kind: Annotated[Kind, typer.Argument(help="What it does.", show_default=False)],
    name: Annotated[
        str | None,
        typer.Option(help="Its name among its kind; it takes up what that name had read.", show_default="host-pid-…"),
    ] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
    watch_stdin: Annotated[
        bool, typer.Option("--watch-stdin", help="End when standard input closes: with the process that started it.")
    ] = False,
) -> None:
    """Run one worker until Ctrl-C or SIGTERM; it finishes what it has read, then ends.

    Any number of each kind may run, here or on other machines. The log is readable on a terminal, else JSON lines.
    Exit code 0: it was asked to end; 2: it could not be started as asked.

    Examples:
        coord worker distributor
        coord worker router --name router-9 --redis-url redis://10.0.0.5:6379/0
    """
    from coord.up.programs import child_environ, worker_command

    environ = child_environ(settings_of(redis_url=redis_url, namespace=namespace))
    sys.stdout.flush()
    # In place of this process: signals, exit code and memory are the worker's own.
    os.execve(sys.executable, worker_command(kind, name, watch_stdin=watch_stdin), environ)  # noqa: S606 (no shell)
