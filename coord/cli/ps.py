"""``coord ps``: which workers are there, how full the server is, and what is wrong."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli import memory
from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import duration, hint, write_json, write_json_line, write_line, write_table
from coord.cli.session import ask
from coord.cli.worker_warnings import is_late, waited_ms, warnings
from coord.models.workers import Picture

if TYPE_CHECKING:
    from coord import Client
    from coord.queries import Presence

#: Between two looks at a backlog, to see which way it goes.
LOOK_S = 0.5
#: Between two pictures of --watch.
WATCH_S = 2.0

COLUMNS = ("kind", "name", "host", "pid", "version", "age", "handled", "per s", "lag", "progress")
#: What a narrow terminal does without: --json has it, and who looks at one machine knows its name.
SPARE = ("host", "version", "pid", "age")
NUMBERS = ("pid", "age", "handled", "per s", "lag", "progress")


def ps(
    *,
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="Again every two seconds, until Ctrl-C; with --json one line each.")
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the workers of a cell (what they have handled, how fast, how late) and what holds the server's memory.

    A warning tells of a kind without a worker, of one that stands still, of a stream in which entries wait, and of
    memory that is so full that submissions are refused or nothing is placed.
    Exit code 0: all is well; 1: there is a warning.

    Examples:
        coord ps
        coord ps --watch
        coord ps --json | jq '.workers[] | {name, per_s, lag_ms}'
    """
    if watch:
        ask(lambda client: _watch(client, json=json), redis_url=redis_url, namespace=namespace)
    picture = ask(_picture, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(picture)
    else:
        _show(picture)
    if picture.warnings:
        raise typer.Exit(ExitCode.NO)


async def _watch(client: Client, *, json: bool) -> None:
    while True:
        picture = await _picture(client)
        if json:
            write_json_line(picture)
        else:
            if sys.stdout.isatty():
                sys.stdout.write("\x1b[H\x1b[2J")
            _show(picture)
        await asyncio.sleep(WATCH_S)


async def _picture(client: Client) -> Picture:
    from coord.queries import memory_use, presence, write_refusal

    refusal = await write_refusal(client.redis)
    found = await presence(client.redis, client.keys)
    before: Presence | None = None
    if any(is_late(one, found.now) for one in found.backlogs):
        await asyncio.sleep(LOOK_S)
        before, found = found, await presence(client.redis, client.keys)
    waiting = [one for one in found.backlogs if one.length]
    use = await memory_use(client.redis, client.keys)
    refused = [f"Redis refuses writes, so nothing is submitted, placed or reported: {refusal}"] if refusal else []
    told = [*refused, *warnings(found, before), *memory.warnings(use)]
    return Picture(found.workers, waiting, told, found.now, use)


def _show(picture: Picture) -> None:
    rows = [
        (
            one.kind,
            one.name,
            one.host,
            str(one.pid),
            one.version,
            duration(picture.now - one.started_at),
            f"{one.handled:,}",
            f"{one.per_s:,.1f}",
            duration(one.lag_ms),
            f"{duration(max(0, picture.now - one.progress_at))} ago",
        )
        for one in picture.workers
    ]
    if rows:
        write_table(COLUMNS, rows, right=NUMBERS, spare=SPARE)
    else:
        write_line("no worker is there")
    for one in picture.backlogs:
        write_line(f"{one.stream}: {one.length:,} waiting, the oldest for {duration(waited_ms(one, picture.now))}")
    for line in memory.lines(picture.memory) if picture.memory else ():
        write_line(line)
    for sentence in picture.warnings:
        hint(f"warning: {sentence}")
