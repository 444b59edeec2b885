"""``coord agent``: any program as an agent."""

from __future__ import annotations

import os
import re
import secrets
import socket
from collections.abc import Sequence
from enum import StrEnum
from pathlib import PurePath
from typing import Annotated

import typer

from coord.cli import parse
from coord.cli.commands import Namespace, RedisUrl
from coord.cli.options import settings_of
from coord.errors import CoordError
from coord.models.agents import AgentType

_NO_ID = re.compile(r"[^A-Za-z0-9._@-]+")


class Output(StrEnum):
    """As ``coord.programs.Output``, which is slow to import."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def agent(
    command: Annotated[list[str], typer.Argument(metavar="-- PROGRAM [ARGUMENT…]", help="What is run for each task.")],
    *,
    capability: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="What the program can do; as often as needed.")
    ] = None,
    task_type: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Take tasks of this type alone; as often as needed.", show_default="any"),
    ] = None,
    id: Annotated[  # noqa: A002 -- the option's name
        str | None, typer.Option(metavar="ID", help="The agent's id.", show_default="from program, host and process")
    ] = None,
    type: Annotated[AgentType, typer.Option(help="The agent's type.")] = AgentType.WORKER,  # noqa: A002 -- same
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A tag; as often as needed.")] = None,
    label: Annotated[list[str] | None, typer.Option(metavar="NAME=VALUE", help="A label; as often as needed.")] = None,
    service: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A service; as often as needed.")] = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Tasks at a time.", show_default="COORD_CAPACITY, 8")
    ] = None,
    timeout: Annotated[
        float | None, typer.Option(min=0.001, metavar="S", help="Seconds for one task.", show_default="no limit")
    ] = None,
    keep_alive: Annotated[
        bool, typer.Option("--keep-alive", help="Keep one process for each task at a time; it speaks JSON lines.")
    ] = False,
    wait_ready: Annotated[
        bool,
        typer.Option(
            "--wait-ready", help='With --keep-alive: accept no task before the program prints {"ready": true}.'
        ),
    ] = False,
    load_timeout: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="S", help="With --keep-alive: seconds that the program has to load.", show_default="600"
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option(help="What standard output is; auto: JSON if it is, else text.")
    ] = Output.AUTO,
    grace: Annotated[
        float, typer.Option(min=0, max=4.5, metavar="S", help="Seconds between SIGTERM and SIGKILL.")
    ] = 3.0,
    drain_timeout: Annotated[
        float, typer.Option(min=0, metavar="S", help="Seconds that tasks have to finish when the agent is ended.")
    ] = 30.0,
    heartbeat_interval: Annotated[
        float | None,
        typer.Option(
            min=0.05, metavar="S", help="Seconds between beats.", show_default="COORD_HEARTBEAT_INTERVAL_S, 5"
        ),
    ] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Run a program for each task: its payload is JSON on standard input, its result what the program prints.

    {name} in an argument is that field of the payload. Exit code 75 gives the task back; 64, 65 and 66 are failures
    that no retry mends; any other but 0 is one that a retry may mend. SIGTERM ends the agent when its tasks are done.

    Examples:
    coord agent --capability count_words -- wc -w
    coord agent --capability ocr --capacity 2 --timeout 60 -- ./ocr.sh {lang}
    coord agent --capability embed --keep-alive -- python embed.py
    """
    from coord import programs

    settings = settings_of(redis_url=redis_url, namespace=namespace)
    options = programs.Options(
        task_types=tuple(task_type or ()),
        keep_alive=keep_alive,
        timeout_s=timeout,
        wait_ready=wait_ready,
        load_timeout_s=load_timeout,
        grace_s=grace,
        output=programs.Output(output),
    )
    made = programs.program_agent(
        id or default_id(command),
        command,
        settings,
        options,
        agent_type=type.value,
        capabilities=capability or (),
        services=service or (),
        tags=tag or (),
        labels=parse.pairs(label or (), "--label"),
        capacity=capacity,
        heartbeat_interval=heartbeat_interval,
        drain_timeout=drain_timeout,
    )
    try:
        made.run()
    except SystemExit as error:
        if isinstance(error.__cause__, CoordError):
            raise error.__cause__ from None
        raise


def default_id(command: Sequence[str]) -> str:
    """An id that no other process has: the program's name, the host's, the process id, and four random digits.

    The process id alone would not do: in containers it is the same everywhere, and hosts' names may be.
    """
    program, host = (_NO_ID.sub("-", name)[:48] for name in (PurePath(command[0]).name, socket.gethostname()))
    return f"{program}-{host}-{os.getpid()}-{secrets.token_hex(2)}"
