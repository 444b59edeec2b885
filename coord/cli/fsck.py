"""``coord fsck``: whether the books of a cell balance."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from coord.config import Settings, load
from coord.errors import ServerUnavailable

if TYPE_CHECKING:
    from coord.fsck import Report

#: Seconds to wait for the server: somebody looks because something is wrong, and wants to know that too.
REACH_S = 5.0


def fsck(
    *,
    json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    redis_url: Annotated[str | None, typer.Option(help="Where Redis is.", show_default="COORD_REDIS_URL")] = None,
    namespace: Annotated[str | None, typer.Option(help="First part of every key.", show_default="coord")] = None,
) -> None:
    """Check that a cell's counters, records, queues and inboxes agree. Changes nothing; the cell may be at work.

    Exit code 0: all is well; 1: something was found; 2: it could not be looked at.
    """
    settings = load(redis_url=redis_url, namespace=namespace)
    report = asyncio.run(_examine(settings))
    if json:
        print(msgspec.json.encode(report).decode())
    else:
        for one in report.findings:
            print(f"{one.code:<22}  {one.key}: {one.message}")
        print(_summary(report, settings.namespace))
    if report.findings:
        raise typer.Exit(1)


async def _examine(settings: Settings) -> Report:
    from redis.exceptions import RedisError

    from coord.connection import connect, find_redis_url, safe_url, wait_for_server
    from coord.fsck import examine
    from coord.keys import Keys

    url = find_redis_url(settings)
    async with connect(url, settings) as redis:
        await wait_for_server(redis, url, limit_s=REACH_S)
        try:
            return await examine(redis, Keys(settings.namespace), settings=settings)
        except (RedisError, OSError) as error:
            raise ServerUnavailable(f"Redis at {safe_url(url)} cannot be read: {error}") from error


def _summary(report: Report, namespace: str) -> str:
    found = len(report.findings)
    told = f"{namespace}: {report.tasks} tasks, {found or 'no'} finding{'' if found == 1 else 's'}"
    return told if report.compared else f"{told}; too busy to compare totals with records"
