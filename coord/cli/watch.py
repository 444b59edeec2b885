"""``coord tasks watch``: follow tasks until all of them have ended."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.exit_codes import ExitCode
from coord.cli.output import TASK_STATE, duration, interruptible, shown, write_json_line, write_line
from coord.cli.parse import Duration
from coord.cli.session import ask
from coord.errors import ResultTimeout, TaskNotFound
from coord.models.tasks import TERMINAL, TaskRecord, TaskState
from coord.standard_streams import plain

if TYPE_CHECKING:
    from rich.table import Table

    from coord import Client

#: Seconds between two reads of the records.
POLL_S = 0.2
#: Records read in one round trip.
CHUNK = 100
#: Maximum rows of the live table; tasks that have not ended come first.
MAX_ROWS = 30
_ENDED = TERMINAL | {TaskState.REFUSED}


def watch(
    task_ids: Annotated[list[str], typer.Argument(metavar="ID...", help="Ids of the tasks.", show_default=False)],
    *,
    timeout: Annotated[
        float | None, typer.Option(click_type=Duration(), metavar="TIME", help="Maximum time to wait: 30s, 5m.")
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Follow tasks until all have ended: a live table on a terminal, otherwise a line for each change.

    With --json each line is the task's current record. Exit code 0: all completed; 1: at least one did not; 3: timed
    out, the tasks go on.

    Examples:
        coord tasks watch report-7
        coord tasks watch $(coord tasks submit ocr '{"page": 1}') --json | jq -c '[.state, .progress]'
    """
    wanted = list(dict.fromkeys(task_ids))

    async def follow(client: Client) -> list[TaskRecord]:
        display = _Live() if sys.stdout.isatty() and not json else _Lines(json=json)
        try:
            with interruptible(f"{_these(wanted)} on; `coord tasks cancel {wanted[0]}` cancels {_one_of(wanted)}"):
                return await _follow(client, wanted, display, timeout)
        finally:
            display.end()

    records = ask(follow, redis_url=redis_url, namespace=namespace)
    if any(record.state is not TaskState.COMPLETED for record in records):
        raise typer.Exit(ExitCode.NO)


async def _follow(
    client: Client, task_ids: list[str], display: _Lines | _Live, timeout: float | None
) -> list[TaskRecord]:
    open_ = list(task_ids)
    seen: dict[str, TaskRecord] = {}
    began = time.monotonic()
    while True:
        missing: list[str] = []
        for at in range(0, len(open_), CHUNK):
            chunk = open_[at : at + CHUNK]
            for task_id, record in zip(chunk, await client.tasks(chunk), strict=True):
                if record is None:
                    missing.append(task_id)
                elif record != seen.get(task_id):
                    seen[task_id] = record
                    display.changed(record)
        if missing:
            raise TaskNotFound(
                f"{_named(missing)} not found: unknown id, expired record, or not yet accepted by a distributor"
            )
        open_ = [task_id for task_id in open_ if seen[task_id].state not in _ENDED]
        display.refresh(list(seen.values()))
        if not open_:
            return list(seen.values())
        if timeout is not None and time.monotonic() - began >= timeout:
            raise ResultTimeout(f"{len(open_)} of {len(task_ids)} tasks did not end within {timeout:g} s; they go on")
        await asyncio.sleep(POLL_S)


def _these(task_ids: list[str]) -> str:
    return f"task {task_ids[0]} goes" if len(task_ids) == 1 else f"{len(task_ids)} tasks go"


def _one_of(task_ids: list[str]) -> str:
    return "it" if len(task_ids) == 1 else "the first of them"


def _named(task_ids: list[str]) -> str:
    first = f"Task '{task_ids[0]}'"
    return first if len(task_ids) == 1 else f"{first} and {len(task_ids) - 1} more"


class _Lines:
    """Writes a line for each change."""

    def __init__(self, *, json: bool) -> None:
        self._json = json
        self._last: dict[str, str] = {}

    def changed(self, record: TaskRecord) -> None:
        if self._json:
            write_json_line(record)
            return
        sentence = _sentence(record)
        if sentence != self._last.get(record.task_id):
            self._last[record.task_id] = sentence
            write_line(f"{record.task_id}  {sentence}")

    def refresh(self, records: list[TaskRecord]) -> None:
        """Do nothing: ``changed`` writes all."""

    def end(self) -> None:
        """Do nothing."""


class _Live:
    """Shows a table that is redrawn with each refresh."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(auto_refresh=False)
        self._live.start()

    def changed(self, record: TaskRecord) -> None:
        """Do nothing: ``refresh`` draws all."""

    def refresh(self, records: list[TaskRecord]) -> None:
        self._live.update(_table(records), refresh=True)

    def end(self) -> None:
        self._live.stop()


def _sentence(record: TaskRecord) -> str:
    """Format a record: ``running on ocr-1 at attempt 2: {"page":3}``."""
    parts: list[str] = [str(record.state)]
    if record.agent_id:
        parts.append(f"on {record.agent_id}")
    if record.attempt > 1:
        parts.append(f"at attempt {record.attempt}")
    if record.finished_at is not None:
        parts.append(f"after {duration(record.finished_at - record.submitted_at)}")
    detail = _detail(record)
    return " ".join(parts) + (f": {detail}" if detail else "")


def _detail(record: TaskRecord) -> str:
    if record.error is not None:
        return shown(f"{record.error.code}: {record.error.message}")
    value: Any = record.result if record.state is TaskState.COMPLETED else record.progress
    return shown(value)


def _table(records: list[TaskRecord]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("task", "state", "agent", "attempt"):
        table.add_column(column, no_wrap=True)
    table.add_column("progress, result or error", overflow="ellipsis", no_wrap=True)
    ordered = sorted(records, key=lambda record: record.state in _ENDED)
    for record in ordered[:MAX_ROWS]:
        state = Text(record.state, style=TASK_STATE.get(record.state, ""))
        agent, attempt = plain(record.agent_id or ""), str(record.attempt or "")
        cells = (plain(record.task_id), state, agent, attempt, _detail(record))
        table.add_row(*(Text(cell) if isinstance(cell, str) else cell for cell in cells))
    if len(ordered) > MAX_ROWS:
        table.add_row(Text(f"and {len(ordered) - MAX_ROWS} more", style="dim"))
    return table
