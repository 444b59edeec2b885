"""``coord trace spans``: exports the coordinator's part of traces."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import Namespace, RedisUrl
from coord.cli.events import start_of
from coord.cli.output import hint
from coord.cli.session import ask

if TYPE_CHECKING:
    from coord import Client


def spans(
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="START",
            help="Also tasks that ended since then: date and time, how long ago (5m, 2h), or the id of an entry.",
            show_default="now",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option(help="Continue until Ctrl-C.")] = True,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Export the coordinator's spans of traced tasks that end: admit, wait, dispatch and settle.

    Run one for a cell. OTEL_TRACES_EXPORTER (otlp, console) and the other variables of OpenTelemetry say where the
    spans go. Needs coord[otel].

    Examples:
        OTEL_TRACES_EXPORTER=otlp coord trace spans
        OTEL_TRACES_EXPORTER=console coord trace spans --since 5m --no-follow
    """
    begin = start_of(since)

    async def export(client: Client) -> int:
        from coord.client.coordination import CoordinationSpans
        from coord.spans import enable

        exporting = CoordinationSpans(client.connection, enable())
        try:
            await exporting.follow(since=begin, follow=follow)
        finally:
            hint(f"{exporting.tasks} tasks")
        return exporting.tasks

    ask(export, redis_url=redis_url, namespace=namespace)
