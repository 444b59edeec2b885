"""``coord fsck``: check the consistency of a cell."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import write_json, write_line
from coord.cli.session import ask, empty_sentence
from coord.errors import ServerUnfit

if TYPE_CHECKING:
    from coord import Client
    from coord.fsck import FsckReport


def fsck(*, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None) -> None:
    """Check that counters, records, queues, inboxes and indexes of a cell are consistent. Read-only; safe at any time.

    Exit code 0: consistent; 1: there are findings; 2: the check could not run, or the namespace is empty.

    Examples:
        coord fsck
        coord fsck --json | jq .findings
    """
    cell, report = ask(_examine, redis_url=redis_url, namespace=namespace, warns_of_empty=False)
    if json:
        write_json(report)
    else:
        for finding in report.findings:
            write_line(f"{finding.code:<22}  {finding.key}: {finding.message}")
        write_line(_summary(report, cell))
    if report.findings:
        raise typer.Exit(ExitCode.NO)


async def _examine(client: Client) -> tuple[str, FsckReport]:
    from coord.fsck import examine

    cell = client.connection  # fsck reads keys that no method of the client reads
    report = await examine(cell.redis, cell.keys, settings=cell.settings)
    if not report.tasks and not report.findings and await client.is_empty():
        raise ServerUnfit(f"nothing to check: {empty_sentence(cell.settings.namespace)}")
    return cell.settings.namespace, report


def _summary(report: FsckReport, namespace: str) -> str:
    count = len(report.findings)
    summary = f"{namespace}: {report.tasks} tasks, {count or 'no'} finding{'' if count == 1 else 's'}"
    if report.dropped:
        summary += f"; result and payload of {report.dropped} were dropped to free memory (see coord ps)"
    return summary if report.compared else f"{summary}; totals and records not compared: the cell is too busy"
