"""``coord stats``: the cell in numbers: tasks, rates, latency."""

from __future__ import annotations

import asyncio
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import duration, moment, write_fields, write_json, write_json_line, write_line, write_table
from coord.cli.parse import Duration
from coord.cli.session import ask
from coord.models.statistics import CellStatistics, Latency
from coord.models.tasks import TERMINAL, TaskState

if TYPE_CHECKING:
    from coord import Client

_UNFINISHED = (TaskState.SCHEDULED, TaskState.QUEUED, TaskState.ASSIGNED, TaskState.RUNNING)


def stats(
    *,
    window: Annotated[
        float,
        typer.Option(click_type=Duration(0.1, 3_600.0), metavar="TIME", help="Time over which rates are measured."),
    ] = 1.0,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Print again after each window, until Ctrl-C.")] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the cell in numbers: tasks by state, rates, why tasks wait, and how long they take.

    Totals count since the cell was created. Rates are measured over a short window, and so is the latency in it; with
    --json, `latency` is since the cell was created and `recent` that of the window.

    Examples:
        coord stats
        coord stats --window 10s
        coord stats --watch --json | jq .rates.completed
    """

    async def work(client: Client) -> None:
        before = await client.stats()
        while True:
            await asyncio.sleep(window)
            found = await client.stats()
            if json:
                (write_json_line if watch else write_json)(_document(before, found))
            else:
                _write(before, found, redraw=watch)
            if not watch:
                return
            before = found

    ask(work, redis_url=redis_url, namespace=namespace)


def _document(before: CellStatistics, found: CellStatistics) -> dict[str, Any]:
    earlier = before.histograms()
    histograms = found.histograms()
    return {
        "at": found.now,
        "totals": found.current(),
        "submitted": found.submitted,
        "rates": found.rates_since(before),
        "waiting": {} if found.waiting is None else {name: n for name, n in found.waiting.reasons.items() if n},
        "queue_sizes": found.queue_sizes,
        "latency": {name: Latency.of(one) for name, one in histograms.items()},
        "recent": {name: Latency.of(one - earlier[name]) for name, one in histograms.items()},
        "agents": {"total": found.total_agents, "active": found.active_agents},
        "workers": found.workers,
        "strategy": found.strategy,
    }


def _write(before: CellStatistics, found: CellStatistics, *, redraw: bool) -> None:
    if redraw and sys.stdout.isatty():
        typer.clear()
    current, rates = found.current(), found.rates_since(before)
    write_fields(
        {
            "time": moment(found.now),
            "tasks": ", ".join(f"{current[state]:,} {state}" for state in _UNFINISHED),
            "ended": ", ".join(f"{current[state]:,} {state}" for state in TaskState if state in TERMINAL),
            "per second": ", ".join(f"{rate:,.1f} {name}" for name, rate in rates.items() if rate) or "nothing",
            "waiting": _waiting(found),
            "agents": f"{found.active_agents:,} of {found.total_agents:,} may get work",
            "workers": ", ".join(f"{number} {kind}" for kind, number in found.workers.items()),
            "strategy": found.strategy,
        }
    )
    write_line()
    earlier = before.histograms()
    rows = [
        (name, which, latency.count, *map(duration, (latency.p50_ms, latency.p95_ms, latency.p99_ms)))
        for name, one in found.histograms().items()
        for which, latency in (("window", Latency.of(one - earlier[name])), ("all", Latency.of(one)))
        if latency.count or which == "all"
    ]
    right = ("tasks", "p50", "p95", "p99")
    write_table(("latency", "time", *right), rows, right=right, free="latency")
    if redraw and not sys.stdout.isatty():
        write_line()


def _waiting(found: CellStatistics) -> str | None:
    if found.waiting is None:
        return None
    return ", ".join(f"{number:,} {reason}" for reason, number in found.waiting.reasons.items() if number) or "none"
