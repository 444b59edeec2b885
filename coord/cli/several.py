"""Commands that take several ids: act on one after the other, and report each.

An id that is refused does not stop the others: its error is printed, and the exit code is that of the first one. With
one id, an error is raised as in any other command. If the cell is unavailable, the command stops.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import typer
from msgspec import Struct

from coord.cli.exit_codes import ExitCode, error_fields, sentence
from coord.cli.output import write_items, write_line
from coord.cli.session import ask
from coord.errors import CoordError, Unavailable

if TYPE_CHECKING:
    from coord import Client


class Acted(Struct, frozen=True):
    """The effect of a command on one id."""

    item: Any  #: for ``--json``
    line: str  #: for people
    code: ExitCode = ExitCode.OK


def act_on_each(
    ids: Sequence[str],
    act: Callable[[Client, str], Awaitable[Acted]],
    *,
    id_field: str,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
) -> None:
    """Act on each id once, in order; print a line for each, or with ``json`` one list of all.

    Args:
        ids: as typed; a repeated id counts once.
        act: acts on one id.
        id_field: name of the id in the JSON of an error: ``task_id``.
        json: print JSON.
        redis_url: the option of that name.
        namespace: the option of that name.

    Raises:
        CoordError: there is only one id, and it is refused; or the cell is unavailable.
        typer.Exit: an id was refused, or its outcome is open.
    """
    wanted = list(dict.fromkeys(ids))
    items: list[Any] = []
    codes: list[int] = []

    async def work(client: Client) -> None:
        for each in wanted:
            try:
                acted = await act(client, each)
            except CoordError as error:
                if len(wanted) == 1 or isinstance(error, Unavailable):
                    raise
                items.append({id_field: each, "error": error_fields(error)})
                codes.append(error.exit_code)
                if not json:
                    print(sentence(error), file=sys.stderr, flush=True)
            else:
                items.append(acted.item)
                codes.append(acted.code)
                if not json:
                    write_line(acted.line)

    try:
        ask(work, redis_url=redis_url, namespace=namespace)
    finally:
        if json and items:  # also after an error: what was done, was done
            write_items(items)
    failed = [code for code in codes if code]
    if failed:
        raise typer.Exit(failed[0])
