"""``coord doctor``: find what is wrong with a cell, and say what to do about it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Annotated

import typer
from msgspec import Struct

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import write_json, write_line, write_table
from coord.cli.session import ask, settings_of
from coord.config import unknown_variables
from coord.models.findings import BY_WEIGHT, Finding, Level, worst

if TYPE_CHECKING:
    from coord import Client

#: Level -> its style on a terminal.
LEVELS: dict[str, str] = {Level.OK: "green", Level.WARNING: "yellow", Level.ERROR: "red"}


class Diagnosis(Struct, frozen=True, kw_only=True):
    """The answer of ``coord doctor --json``."""

    namespace: str
    level: Level  #: the most serious of all findings
    findings: list[Finding]  #: the most serious first
    timestamp: int  #: ms since 1970 on the server's clock


def doctor(
    *,
    quick: Annotated[
        bool, typer.Option("--quick", help="Leave out the comparison of counters with all records (coord fsck).")
    ] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Check a cell and this machine, and say what to do about each problem. Read-only; safe at any time.

    It checks the server (version, eviction, durability, memory, replicas, connections), the settings of the workers,
    clocks, permissions, missing and stuck processes, entries that wait, agents that are silent, deaf or ejected, tasks
    that no agent may get, dead letters, the ledger, and orphaned processes of this machine.

    Exit code 0: all is well; 1: there is a warning or an error, also with warnings alone; 2: the cell cannot be read.

    Examples:
        coord doctor
        coord doctor --quick --cell production
        coord doctor --json | jq '.findings[] | select(.level == "error")'
    """
    unknown = unknown_variables(os.environ)
    known = {name: value for name, value in os.environ.items() if name not in unknown}
    settings = settings_of(redis_url=redis_url, namespace=namespace, environ=known)

    async def work(client: Client) -> Diagnosis:
        from coord.doctor import diagnose, read_machine, read_snapshot

        cell = client.connection
        snapshot = await read_snapshot(cell.redis, cell.keys, cell.settings, checks_ledger=not quick)
        found = diagnose(snapshot, read_machine(snapshot.processes, unknown))
        return Diagnosis(
            namespace=cell.settings.namespace,
            level=worst(found),
            findings=sorted(found, key=lambda finding: BY_WEIGHT.index(finding.level)),
            timestamp=snapshot.now,
        )

    diagnosis = ask(work, settings=settings)
    if json:
        write_json(diagnosis)
    else:
        _show(diagnosis)
    if diagnosis.level is not Level.OK:
        raise typer.Exit(ExitCode.NO)


def _show(diagnosis: Diagnosis) -> None:
    rows: list[tuple[str, str, str]] = []
    for finding in diagnosis.findings:
        rows.append((finding.level, finding.code, finding.message))
        if finding.advice:
            rows.append(("", "", f"→ {finding.advice}"))
    write_table(("level", "check", "finding"), rows, styles={"level": LEVELS})
    counts = {level: sum(one.level is level for one in diagnosis.findings) for level in (Level.ERROR, Level.WARNING)}
    problems = [f"{number} {level}{'' if number == 1 else 's'}" for level, number in counts.items() if number]
    write_line(f"{diagnosis.namespace}: {', '.join(problems) or 'all is well'}")
