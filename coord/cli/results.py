"""``coord tasks results``: the outcomes of tasks, as a table or as a stream of JSON lines."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import duration, moment, write_json_line, write_line
from coord.cli.query import QueryWords, query_of
from coord.cli.session import ask
from coord.models.tasks import TaskRecord

if TYPE_CHECKING:
    from coord import Client

#: Characters of a result in a line for people.
SHOWN = 120


def results(
    query: QueryWords = None,
    *,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Continue with the tasks that end later.")] = False,
    limit: Annotated[int | None, typer.Option(min=1, help="Maximum number of outcomes.", show_default=False)] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Print the outcomes of ended tasks that match a query: a line for each, the first that ended first.

    With --json each line is the whole record: result or error, attempts, payload.

    Examples:
        coord tasks results 'type:ocr since:1h'
        coord tasks results 'type:ocr state:completed' --json | jq -c .result
        coord tasks results type:ocr since:1m --follow
    """
    wanted = query_of(query)

    async def work(client: Client) -> None:
        count = 0
        async with aclosing(client.results(wanted, follow=follow)) as records:
            async for record in records:
                if json:
                    write_json_line(record)
                else:
                    write_line(_line(record))
                count += 1
                if count == limit:
                    return

    ask(work, redis_url=redis_url, namespace=namespace)


def _line(record: TaskRecord) -> str:
    took = "" if record.finished_at is None else duration(record.finished_at - record.submitted_at)
    if record.error is not None:
        outcome = f"{record.error.code}: {record.error.message}"
    else:
        outcome = "dropped" if record.dropped else msgspec.json.encode(record.result).decode()
    shown = outcome if len(outcome) <= SHOWN else f"{outcome[:SHOWN]}…"
    return f"{moment(record.finished_at)}  {record.task_id}  {record.task_type}  {record.state}  {took}  {shown}"
