"""``coord fsck``: whether the books of a cell balance."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import write_json, write_line
from coord.cli.session import ask

if TYPE_CHECKING:
    from coord import Client
    from coord.fsck import FsckReport


def fsck(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Check that a cell's counters, records, queues and inboxes agree. Changes nothing; the cell may be at work.

    Exit code 0: all is well; 1: something was found; 2: it could not be looked at.

    Examples:
        coord fsck
        coord fsck --json | jq .findings
    """
    cell, report = ask(_examine, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(report)
    else:
        for one in report.findings:
            write_line(f"{one.code:<22}  {one.key}: {one.message}")
        write_line(_summary(report, cell))
    if report.findings:
        raise typer.Exit(ExitCode.NO)


async def _examine(client: Client) -> tuple[str, FsckReport]:
    from coord.fsck import examine

    cell = client.connection  # fsck reads keys that no method of the client reads
    return cell.settings.namespace, await examine(cell.redis, cell.keys, settings=cell.settings)


def _summary(report: FsckReport, namespace: str) -> str:
    found = len(report.findings)
    told = f"{namespace}: {report.tasks} tasks, {found or 'no'} finding{'' if found == 1 else 's'}"
    if report.dropped:
        told += f"; {report.dropped} gave up result and payload to free memory (coord ps)"
    return told if report.compared else f"{told}; too busy to compare totals with records"
