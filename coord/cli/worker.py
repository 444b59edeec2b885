"""``coord worker KIND``: run one worker."""

from __future__ import annotations

import os
import sys
from enum import StrEnum
from typing import Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.session import settings_of


class WorkerKind(StrEnum):
    """A kind of worker."""

    REGISTRY = "registry"
    DISTRIBUTOR = "distributor"
    ROUTER = "router"


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
