"""The query of a command: terms such as ``state:failed``, typed as one argument or as several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import typer

from coord.models.query import Kind, Query
from coord.models.task_query import TASKS


def complete_term(incomplete: str) -> list[tuple[str, str]]:
    """Return what the last term that is typed can become: fields, or the values of its field, each with its help."""
    sign = "-" if incomplete.startswith("-") else ""
    name, colon, typed = incomplete.removeprefix("-").partition(":")
    if not colon:
        return [(f"{sign}{field.name}:", field.help) for field in TASKS.fields.values() if field.name.startswith(name)]
    field = TASKS.fields.get(name)
    if field is None:
        return []
    if field.kind is not Kind.CHOICE:
        return [] if typed else [(f"{sign}{field.example}", field.help)]
    before, comma, last = typed.rpartition(",")
    return [(f"{sign}{name}:{before}{comma}{value}", "") for value in field.values if value.startswith(last)]


QueryWords = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[QUERY]...",
        help="Only tasks that match, such as 'type:ocr state:failed age:>1h'.",
        show_default=False,
        autocompletion=complete_term,
    ),
]


def query_of(
    words: Sequence[str] | None,
    *,
    states: Sequence[str] = (),
    task_type: str | None = None,
    agent: str | None = None,
) -> Query:
    """Return the query of a command.

    Args:
        words: as typed; several are joined with spaces.
        states: of options, as are the following.
        task_type: only of this type.
        agent: only of this agent.

    Raises:
        QueryInvalid: it does not fit; names the position.
    """
    query = TASKS.parse(" ".join(words or ()))
    query = query.with_term("state", [str(state) for state in states])
    query = query.with_term("type", () if task_type is None else (task_type,))
    return query.with_term("agent", () if agent is None else (agent,))


def words_of(query: Query) -> str | None:
    """Return a query as an argument to type; None for an empty one. One that begins with - would be an option."""
    text = str(query)
    return f" {text}" if text.startswith("-") else text or None
