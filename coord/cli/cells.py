"""``coord cells``: the named cells of the configuration file, and which of them commands use."""

from __future__ import annotations

import os
from typing import Annotated, Any

import typer
from msgspec import Struct

from coord.cells import (
    LOCAL,
    CellsFile,
    CellTable,
    Choice,
    choose,
    named,
    names_server,
    read_cells,
    set_default,
    words_of,
)
from coord.cli.commands import AsJson, cell_option, complete_cell, group, register
from coord.cli.output import hint, write_fields, write_items, write_json, write_line, write_table
from coord.errors import ConfigError

#: Shown instead of the address of the cell ``local``.
OF_UP = "(a running coord up)"


class CellRow(Struct, frozen=True, kw_only=True):
    """A cell of the file, as shown: without its password."""

    name: str
    url: str | None  #: without its password; None for ``local``
    namespace: str | None
    user: str | None
    password: str | None  #: where it comes from: ``password_env REDIS_PASSWORD``
    tls: dict[str, str]
    is_used: bool
    chosen_by: str | None  #: ``--cell``, ``COORD_CELL`` or ``default``


def list_cells(*, json: AsJson = False) -> None:
    """List the cells of the configuration file; the one that commands use is marked with its reason.

    Examples:
        coord cells list
        coord cells list --json | jq -r '.items[] | select(.is_used) | .name'
    """
    file, choice = _read()
    rows = [_row(name, table, choice) for name, table in file.cells.items()]
    rows.append(_row(LOCAL, None, choice))
    if json:
        write_items(rows, path=str(file.path), server_of_environment=names_server(os.environ))
        return
    write_table(
        ("", "cell", "url", "namespace", "user", "password"),
        [
            (
                "*" if row.is_used else "",
                row.name,
                row.url or OF_UP,
                row.namespace or "",
                row.user or "",
                row.password or "",
            )
            for row in rows
        ],
        free="url",
    )
    write_line(_reason(file, choice))


def show(
    name: Annotated[
        str | None,
        typer.Argument(
            help="Name of the cell.", show_default="the one that commands use", autocompletion=complete_cell
        ),
    ] = None,
    *,
    json: AsJson = False,
) -> None:
    """Show one cell, and why commands use it. Passwords are not shown, only where they come from.

    Exit code 1: no cell is in use.

    Examples:
        coord cells show
        coord cells show local --json
    """
    file, choice = _read()
    if name is None and choice is None:
        write_line(_reason(file, None))
        raise typer.Exit(1)
    found = named(file, name) if name is not None else choice
    assert found is not None  # noqa: S101 -- without a name and a choice the command has ended
    row = _row(found.name, file.cells.get(found.name), choice)
    if json:
        write_json(row)
        return
    fields: dict[str, Any] = {"cell": row.name, "url": row.url or OF_UP, "namespace": row.namespace, "user": row.user}
    fields |= {"password": row.password, **row.tls, "file": str(file.path) if file.exists else None}
    fields["used"] = {"default": "yes, it is the default of the file"}.get(
        row.chosen_by or "", f"yes, by {row.chosen_by}"
    )
    write_fields(fields if row.is_used else fields | {"used": "no"})


def use(
    name: Annotated[
        str | None, typer.Argument(help="Name of the cell.", show_default=False, autocompletion=complete_cell)
    ] = None,
    *,
    none: Annotated[bool, typer.Option("--none", help="Remove the default: use a running coord up.")] = False,
) -> None:
    """Make a cell the default of commands and programs; the rest of the file stays as it is.

    COORD_REDIS_URL and COORD_CELL take precedence over the default; a hint says so if one of them is set.

    Examples:
        coord cells use staging
        coord cells use local
        coord cells use --none
    """
    if (name is None) != none:
        raise ConfigError("give the name of a cell, or --none to remove the default")
    file = read_cells()
    for warning in file.warnings:
        hint(f"warning: {warning}")
    set_default(file, name)
    write_line(f"the default is {name}" if name is not None else "there is no default any more")
    _, choice = _read()
    if names_server(os.environ) or (choice is not None and choice.source != "default"):
        hint(f"this has no effect here: {_reason(file, choice)}")


def _read() -> tuple[CellsFile, Choice | None]:
    file = read_cells()
    for warning in file.warnings:
        hint(f"warning: {warning}")
    return file, choose(file, cell_option(), os.environ, uses_default=True)


def _row(name: str, table: CellTable | None, choice: Choice | None) -> CellRow:
    from coord.connection import safe_url

    used = choice is not None and choice.name == name
    source = table.password_source if table is not None else None
    password = None
    if table is not None and source is not None:
        password = source if source == "password" else f"{source} {_place(table, source)}"
    elif table is not None and ":***@" in safe_url(table.url):
        password = "in the url"  # noqa: S105 -- where the password is
    return CellRow(
        name=name,
        url=None if table is None else safe_url(table.url),
        namespace=None if table is None else table.namespace,
        user=None if table is None else table.user,
        password=password,
        tls={key: value for key in ("tls_ca", "tls_cert", "tls_key") if (value := getattr(table, key, None))},
        is_used=used,
        chosen_by=choice.source if choice is not None and used else None,
    )


def _place(table: CellTable, source: str) -> str:
    """Return the file or variable as it is, and only the program of a command: its arguments may be secret."""
    value = getattr(table, source)
    return words_of(value)[0] if source == "password_command" else value


def _reason(file: CellsFile, choice: Choice | None) -> str:
    """Return which cell commands use, and why."""
    if choice is not None:
        by = {"default": f"it is the default of {file.path}"}.get(choice.source, f"{choice.source} names it")
        return f"commands use {choice.name}: {by}"
    if names_server(os.environ):
        return "commands use the server of COORD_REDIS_URL, not a cell"
    place = f"{file.path} names no default" if file.exists else f"there is no file {file.path}"
    return f"commands use a running `coord up`, or port 6379 of this machine: {place}"


cells = group("cells", "List and choose the named cells of the configuration file.")
register(cells, list_cells, "list")
register(cells, show)
register(cells, use)
