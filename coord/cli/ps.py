"""``coord ps``: the workers of a cell, the memory of its server, and warnings with the next step."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import duration, hint, write_json, write_json_line, write_line, write_table
from coord.cli.session import ask
from coord.models.cell import (
    PLACE_UP_TO,
    REFUSE_ABOVE,
    RELIEVE_ABOVE,
    MemoryUse,
    StreamBacklog,
    WorkersReport,
)
from coord.units import size

if TYPE_CHECKING:
    from coord import Client
    from coord.queries import WorkersSnapshot

#: Seconds between two reads of a backlog, which show whether it grows.
TREND_S = 0.5
#: Seconds between two refreshes of --watch.
WATCH_S = 2.0
#: Milliseconds after which a waiting entry causes a warning; a batch takes milliseconds.
LATE_MS = 5_000

COLUMNS = ("kind", "name", "host", "pid", "version", "age", "handled", "per s", "lag", "progress")
#: Columns that a narrow terminal omits; --json has them, and the name identifies a worker on one machine.
SPARE = ("host", "version", "pid", "age")
NUMBERS = ("pid", "age", "handled", "per s", "lag", "progress")

#: Maximum number of kinds of data that are named in a line about memory.
NAMED_KINDS = 4
#: Kind of data that holds the most memory -> what to do.
MEMORY_ADVICE = {
    "dead letters": "retry or purge them (coord dead list)",
    "waiting tasks": "add agents, or submit less",
    "running tasks": "they free memory when they end",
    "ended tasks": "keep fewer (COORD_TERMINAL_ENTRIES, COORD_TERMINAL_TTL_S)",
    "replies": "keep fewer bytes of them (COORD_REPLIES_BYTES), or for less long (COORD_REPLIES_TTL_S)",
    "inboxes": "see which agents do not read (coord agents list)",
    "messages": "send them with a shorter time to live",
    "facts in streams": "start the workers that read them (coord worker)",
    "server and other data": "see what else uses this server: other cells, or clients with large buffers",
}


def ps(
    *,
    watch: Annotated[
        bool,
        typer.Option("--watch", "-w", help="Refresh every two seconds until Ctrl-C; with --json one line each time."),
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the workers and gateways of a cell (entries or requests, rate, lag), and what uses the memory of the server.

    There is a warning if a kind has no worker, a worker makes no progress, entries wait too long, or the memory of the
    server is so full that submissions are refused or no task is placed.
    Exit code 0: no warnings; 1: there are warnings.

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


async def _picture(client: Client) -> WorkersReport:
    refusal = await client.write_refusal()
    found = await client.workers()
    before: WorkersSnapshot | None = None
    if any(is_late(backlog, found.now) for backlog in found.backlogs):
        await asyncio.sleep(TREND_S)
        before, found = found, await client.workers()
    waiting = [backlog for backlog in found.backlogs if backlog.length]
    use = await client.memory_use()
    refused = [f"Redis refuses writes, so nothing is submitted, placed or reported: {refusal}"] if refusal else []
    warnings = [*refused, *worker_warnings(found, before), *memory_warnings(use)]
    return WorkersReport(found.workers, waiting, warnings, found.now, use)


def _show(picture: WorkersReport) -> None:
    rows = [
        (
            worker.kind,
            worker.name,
            worker.host,
            str(worker.pid),
            worker.version,
            duration(picture.now - worker.started_at),
            f"{worker.handled:,}",
            f"{worker.per_s:,.1f}",
            duration(worker.lag_ms),
            f"{duration(max(0, picture.now - worker.progress_at))} ago",
        )
        for worker in picture.workers
    ]
    if rows:
        write_table(COLUMNS, rows, right=NUMBERS, spare=SPARE)
    else:
        write_line("no workers are running")
    for backlog in picture.backlogs:
        waited = duration(waited_ms(backlog, picture.now))
        write_line(f"{backlog.stream}: {backlog.length:,} waiting, the oldest for {waited}")
    for line in memory_lines(picture.memory) if picture.memory else ():
        write_line(line)
    for warning in picture.warnings:
        hint(f"warning: {warning}")


def worker_warnings(found: WorkersSnapshot, before: WorkersSnapshot | None = None) -> list[str]:
    """Return a sentence with the next step for each problem with workers and streams.

    Args:
        found: workers and backlogs.
        before: the same half a second earlier, to see whether a backlog grows.
    """
    from coord.doctor.checks import missing_tokens, missing_workers, stuck_workers  # imports the Redis client

    problems = [
        *missing_workers(found.workers, found.pushed, dict.fromkeys(backlog.kind for backlog in found.backlogs)),
        *stuck_workers(found.workers, found.now),
        *missing_tokens(found.workers),
    ]
    warnings = [problem.sentence for problem in problems]
    lengths = {backlog.stream: backlog.length for backlog in before.backlogs} if before else {}
    for backlog in found.backlogs:
        if is_late(backlog, found.now):
            waited = duration(waited_ms(backlog, found.now))
            grown = backlog.length - lengths.get(backlog.stream, backlog.length)
            trend = "and it grows" if grown > 0 else "and it shrinks" if grown < 0 else "and it does not shrink"
            entries = "1 entry waits" if backlog.length == 1 else f"{backlog.length:,} entries wait"
            warnings.append(f"{backlog.stream}: {entries}, the oldest for {waited}, {trend}")
    return warnings


def is_late(backlog: StreamBacklog, now: int) -> bool:
    """Return True if an entry has waited too long."""
    return waited_ms(backlog, now) > LATE_MS


def waited_ms(backlog: StreamBacklog, now: int) -> int:
    """Return for how many milliseconds the oldest entry of a stream has waited at ``now`` (milliseconds since 1970)."""
    return 0 if backlog.oldest_at is None else now - backlog.oldest_at


def memory_lines(use: MemoryUse) -> list[str]:
    """Return lines about the memory of the server: how full it is, what holds it, and what was dropped to free some."""
    limit = f" of {size(use.maximum)} ({use.memory.share:.0%})" if use.maximum else ", no maxmemory"
    lines = [f"memory: {size(use.used)}{limit}: {_holders(use)}" if use.parts else f"memory: {size(use.used)}{limit}"]
    if use.results_dropped:
        tasks = "1 ended task" if use.results_dropped == 1 else f"{use.results_dropped:,} ended tasks"
        dropped = size(use.results_dropped_bytes)
        lines.append(f"result and payload of {tasks} were dropped to free memory: {dropped} so far")
    if use.dead_letters_dropped:
        lines.append(f"dead letters of messages removed to free memory: {use.dead_letters_dropped:,} so far")
    if use.note:
        lines.append(f"memory: {use.note}")
    return lines


def memory_warnings(use: MemoryUse) -> list[str]:
    """Return a sentence about what the lack of memory stops, with the next step; empty if there is enough memory."""
    memory = use.memory
    if not memory.is_nearly_full:
        return []
    effect = f"submissions are refused (above {REFUSE_ABOVE:.0%})"
    if memory.is_too_full_to_place:
        effect = f"no task is placed (above {PLACE_UP_TO:.0%}) and {effect}"
    largest = use.parts[0].kind if use.parts else ""
    is_log = largest.startswith("log:")
    step = "keep fewer bytes of each log (COORD_LOG_BYTES)" if is_log else MEMORY_ADVICE.get(largest)
    steps = f"{step}, or raise maxmemory" if step else "raise maxmemory"
    holders = f"; used by {_holders(use)}" if use.parts else ""
    fullness = f"the server's memory is {memory.share:.0%} full ({size(use.used)} of {size(use.maximum)})"
    relief = f"Above {RELIEVE_ABOVE:.0%}, results of ended tasks are dropped"
    return [f"{fullness}, so {effect}{holders}. {relief}. Next: {steps}"]


def _holders(use: MemoryUse) -> str:
    named = [
        f"{part.kind} {'about ' if part.is_estimate else ''}{size(part.bytes)}" for part in use.parts[:NAMED_KINDS]
    ]
    rest = sum(part.bytes for part in use.parts[NAMED_KINDS:])
    return ", ".join([*named, f"the rest {size(rest)}"] if rest else named)
