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
from coord.cli.parse import Duration
from coord.cli.session import settings_of
from coord.errors import CoordError
from coord.models.agents import AgentType

#: Seconds until an agent with a generated id is forgotten when it has left: no later process has this id.
FORGET_GENERATED_S = 3600.0

_INVALID_IN_ID = re.compile(r"[^A-Za-z0-9._@-]+")


class Input(StrEnum):
    """As ``coord.programs.Input``, which is slow to import."""

    JSON = "json"
    TEXT = "text"


class Output(StrEnum):
    """As ``coord.programs.Output``, which is slow to import."""

    AUTO = "auto"
    JSON = "json"
    TEXT = "text"


def agent(
    command: Annotated[
        list[str], typer.Argument(metavar="-- PROGRAM [ARGUMENT…]", help="Program to run for each task.")
    ],
    *,
    capability: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Capability of the agent; repeatable.")
    ] = None,
    task_type: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Accept only tasks of this type; repeatable.", show_default="any"),
    ] = None,
    id: Annotated[  # noqa: A002 -- the option's name
        str | None,
        typer.Option(
            metavar="ID", help="Id of the agent.", show_default="from capability or program, host and process"
        ),
    ] = None,
    type: Annotated[AgentType, typer.Option(help="Type of the agent.")] = AgentType.WORKER,  # noqa: A002 -- same
    tag: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Tag of the agent; repeatable.")] = None,
    label: Annotated[
        list[str] | None, typer.Option(metavar="NAME=VALUE", help="Label of the agent; repeatable.")
    ] = None,
    service: Annotated[list[str] | None, typer.Option(metavar="NAME", help="Service of the agent; repeatable.")] = None,
    capacity: Annotated[
        int | None, typer.Option(min=1, metavar="N", help="Maximum concurrent tasks.", show_default="COORD_CAPACITY, 8")
    ] = None,
    timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(0.001), metavar="TIME", help="Timeout of one task: 30s, 5m.", show_default="no limit"
        ),
    ] = None,
    keep_alive: Annotated[
        bool,
        typer.Option("--keep-alive", help="Keep one process per concurrent task, which reads and writes JSON lines."),
    ] = False,
    input: Annotated[  # noqa: A002 -- the option's name
        Input, typer.Option(help="Format of standard input; text: a payload that is text, unchanged.")
    ] = Input.JSON,
    wait_ready: Annotated[
        bool,
        typer.Option(
            "--wait-ready", help='With --keep-alive: accept no task before the program prints {"ready": true}.'
        ),
    ] = False,
    load_timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(0.001),
            metavar="TIME",
            help="With --keep-alive: time that the program has to load.",
            show_default="10m",
        ),
    ] = None,
    output: Annotated[
        Output, typer.Option(help="Format of standard output; auto: JSON if it is JSON, else text.")
    ] = Output.AUTO,
    grace: Annotated[
        float,
        typer.Option(
            click_type=Duration(0, 4.5), metavar="TIME", help="Time between SIGTERM and SIGKILL.", show_default="3s"
        ),
    ] = 3.0,
    drain_timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(),
            metavar="TIME",
            help="Time for running tasks to finish at shutdown.",
            show_default="as long as they take",
        ),
    ] = None,
    heartbeat_interval: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(0.05),
            metavar="TIME",
            help="Time between two heartbeats.",
            show_default="COORD_HEARTBEAT_INTERVAL_S, 5s",
        ),
    ] = None,
    token_file: Annotated[
        str | None,
        typer.Option(
            metavar="FILE",
            help="File with the token of the agent, from `coord agents enrol`.",
            show_default="COORD_AGENT_TOKEN_FILE",
        ),
    ] = None,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Run a program for each task: it gets the payload on standard input, and its output is the result.

    {name} in an argument is that field of the payload. Exit code 75 returns the task; 64, 65 and 66 are permanent
    failures; after any other code but 0 the task is retried. SIGTERM shuts the agent down gracefully.

    Examples:
    coord agent --capability count_words --input text -- wc -w
    coord agent --capability ocr --capacity 2 --timeout 60s -- ./ocr.sh {lang}
    coord agent --capability embed --keep-alive -- python embed.py
    """
    from coord import programs

    settings = settings_of(redis_url=redis_url, namespace=namespace, agent_token_file=token_file)
    options = programs.Options(
        task_types=tuple(task_type or ()),
        keep_alive=keep_alive,
        timeout_s=timeout,
        wait_ready=wait_ready,
        load_timeout_s=load_timeout,
        grace_s=grace,
        input=programs.Input(input),
        output=programs.Output(output),
    )
    created = programs.program_agent(
        id or default_id(command, capability or ()),
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
        forget_after=FORGET_GENERATED_S if id is None else None,
    )
    try:
        created.run()
    except SystemExit as error:
        if isinstance(error.__cause__, CoordError):
            raise error.__cause__ from None
        raise


def default_id(command: Sequence[str], capabilities: Sequence[str]) -> str:
    """Return an id that no other process has: names of capability and host, process id, and four random digits.

    The first capability says what the agent does; without one it is the program, which is often a shell. The process id
    alone is not enough: in containers it is often the same, and the names of hosts may be too.
    """
    what = capabilities[0] if capabilities else PurePath(command[0]).name
    name, host = (_INVALID_IN_ID.sub("-", text).strip("-")[:48] or "agent" for text in (what, socket.gethostname()))
    return f"{name}-{host}-{os.getpid()}-{secrets.token_hex(2)}"
