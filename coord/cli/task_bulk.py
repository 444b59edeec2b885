"""Operations of ``coord tasks`` on all tasks that match a query: count, confirm, change, show progress."""

from __future__ import annotations

import sys
from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.exit_codes import ExitCode
from coord.cli.output import ProgressBar, hint, write_json, write_line
from coord.cli.query import complete_term, query_of
from coord.cli.session import ask
from coord.errors import ConfigError
from coord.models.operations import BulkAction, BulkResult
from coord.models.query import Query
from coord.models.tasks import TERMINAL, Priority, TaskState

if TYPE_CHECKING:
    from coord import Client
    from coord.client.bulk import BulkOperation

QueryOption = Annotated[
    str | None,
    typer.Option(
        "--query",
        "-q",
        metavar="QUERY",
        help="All tasks that match, such as 'type:ocr age:>1h', in place of ids.",
        show_default=False,
        autocompletion=complete_term,
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --query: only count the tasks.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="With --query: do not ask for a confirmation.")]
Operation = Annotated[
    str | None,
    typer.Option(metavar="ID", help="With --query: continue an operation that was interrupted.", show_default=False),
]
TaskIdsOrQuery = Annotated[
    list[str] | None, typer.Argument(metavar="[ID]...", help="Ids of the tasks.", show_default=False)
]

#: action -> what was done to a task, apart from those that a cancel has asked to stop.
_DONE: dict[BulkAction, str] = {"cancel": "cancelled", "retry": "queued again", "prioritize": "moved"}


def check_selection(command: str, task_ids: Sequence[str] | None, query: str | None, **of_query: object) -> None:
    """Check that a command has either ids or a query, and options of a query only with one.

    Raises:
        ConfigError: it has not; names the options.
    """
    if (query is None) == (not task_ids):
        raise ConfigError(f"{command} needs either ids of tasks or --query QUERY, such as --query type:ocr")
    if query is not None and not query.strip():
        raise ConfigError("--query is empty; write --query 'id:*' if you mean all tasks")
    unused = [f"--{name.replace('_', '-')}" for name, value in of_query.items() if value]
    if query is None and unused:
        raise ConfigError(f"{', '.join(unused)} need{'s' * (len(unused) == 1)} --query")


def change_tasks(
    action: BulkAction,
    query: str | Query,
    *,
    priority: Priority | None = None,
    reason: str = "",
    dry_run: bool,
    yes: bool,
    operation: str | None,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
    task_ids: Sequence[str] = (),
) -> None:
    """Change all tasks that match; print the numbers.

    ``task_ids``: the tasks that were named; one that does not match is a failure, unless it has the priority already.

    Raises:
        QueryInvalid: the query does not fit.
        ConfigError: nobody can confirm it, and ``yes`` is False.
        typer.Exit: it was not confirmed, or a part of it waits for a distributor.
    """
    wanted = query_of([query]) if isinstance(query, str) else query
    named = set(task_ids)

    async def work(client: Client) -> tuple[BulkResult, int] | None:
        from coord.client.bulk import BulkOperation

        bulk = BulkOperation(client.connection, action, wanted, priority=priority, reason=reason, operation=operation)
        if dry_run or not yes:
            counted = await bulk.count()
            if dry_run or not counted.matched:
                return counted, 0
            if not _is_confirmed(action, counted):
                return None
        unchanged = await _count_unchanged(client, named, priority) if named and priority else 0
        return await _run(bulk), unchanged

    found = ask(work, redis_url=redis_url, namespace=namespace)
    if found is None:
        hint("nothing was changed")
        raise typer.Exit(ExitCode.NO)
    _report(*found, named=len(named), json=json)


def _report(result: BulkResult, unchanged: int, *, named: int, json: bool) -> None:
    """Print the numbers; exit with a failure if a part waits, or if a task that was named did not change."""
    if json:
        write_json(result)
    elif result.matched or not unchanged:
        write_line(_sentence(result))
    if unchanged:
        hint(f"{_tasks(unchanged)} {'has' if unchanged == 1 else 'have'} that priority already")
    if result.unanswered:
        raise typer.Exit(ExitCode.OPEN)
    left = named - result.done - unchanged
    if left > 0:
        hint(f"{_tasks(left)} did not change; `coord tasks show ID` says in which state each is")
        raise typer.Exit(ExitCode.NO)


async def _run(bulk: BulkOperation) -> BulkResult:
    # The id is printed before the first change: a program that is killed cannot print it afterwards.
    hint(f"operation {await bulk.begin()}; if it is interrupted, the same command with --operation continues it")
    with ProgressBar() as progress:
        progress.start("tasks", None)
        return await bulk.run(timeout=10.0, on_progress=lambda result: progress.update(result.matched))


async def _count_unchanged(client: Client, task_ids: Collection[str], priority: Priority) -> int:
    """Return how many of these tasks have not ended and have this priority already."""
    query = Query().with_term("id", sorted(task_ids)).with_term("priority", [priority])
    states = [state for state in TaskState if state not in {*TERMINAL, TaskState.REFUSED}]
    return len((await client.list_tasks(query, states=states, limit=len(task_ids))).tasks)


def _is_confirmed(action: BulkAction, counted: BulkResult) -> bool:
    change = f"{action} {_matching(counted)}"
    if not sys.stdin.isatty():
        raise ConfigError(
            f"cannot ask whether to {change}: standard input is not a terminal; "
            "--yes confirms it, --dry-run only counts"
        )
    return typer.confirm(f"{change}?", err=True)


def _matching(counted: BulkResult) -> str:
    verb = "matches" if counted.matched == 1 else "match"
    return f"{_tasks(counted.matched)} that {verb} `{counted.query}`"


def _sentence(result: BulkResult) -> str:
    if not result.operation:
        verb = "matches" if result.matched == 1 else "match"
        return f"{_tasks(result.matched)} {verb} `{result.query}`"
    text = f"{_tasks(result.done - result.stopping)} of {result.matched:,} {_DONE[result.action]}"
    if result.stopping:
        text += f", {result.stopping:,} asked to stop"
    skipped = ", ".join(f"{count:,} {code}" for code, count in sorted(result.skipped.items()))
    if skipped:
        text += f"; not changed: {skipped}"
    if result.unanswered:
        text += f"; {result.unanswered:,} wait for a distributor (see coord ps)"
    return text


def _tasks(number: int) -> str:
    return f"{number:,} task{'' if number == 1 else 's'}"
