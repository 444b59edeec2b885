"""``coord audit``: what operators have changed, and who asked for it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import hint, hint_next_page, moment, write_items, write_json_line, write_line, write_table
from coord.cli.session import ask
from coord.errors import ConfigError
from coord.models.audit import AuditEntry

if TYPE_CHECKING:
    from coord import Client

#: Entries read in one step.
STEP = 1_000


def audit(
    *,
    action: Annotated[
        str | None, typer.Option(metavar="PATTERN", help="Only these actions, such as tasks.* or agents.drain.")
    ] = None,
    by: Annotated[str | None, typer.Option(metavar="PATTERN", help="Only what these asked for, such as ann@*.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="Maximum number of entries.")] = 50,
    cursor: Annotated[str | None, typer.Option(help="Continue from this cursor.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Print changes as they are made.")] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show what operators have changed, and who asked for it: the latest first.

    Each change is recorded by the worker that makes it, whatever it was asked with: this command line, HTTP, or a
    program. An operation on many tasks has an entry for every 200 tasks.

    Examples:
        coord audit
        coord audit --action 'tasks.*' --by 'ann@*'
        coord audit --follow --json
    """
    matches = _filter(action, by)
    if follow and cursor is not None:
        raise ConfigError("--cursor does not go with --follow, which begins now")

    async def tail(client: Client) -> None:
        async with aclosing(client.admin.follow_audit()) as entries:
            async for entry in entries:
                if matches(entry):
                    _write_entry(entry, json=json)

    if follow:
        ask(tail, redis_url=redis_url, namespace=namespace)
        return
    entries, next_ = ask(lambda client: _read(client, matches, limit, cursor), redis_url=redis_url, namespace=namespace)
    if json:
        write_items(entries, next=next_)
        return
    if not entries:
        is_whole = action is None and by is None and cursor is None
        hint("no operator action has been recorded" if is_whole else "no recorded operator action matches the options")
        return
    write_table(
        ("time", "by", "action", "outcome", "what"),
        [(moment(entry.at), entry.by, entry.action, entry.outcome, _what(entry)) for entry in entries],
    )
    if next_ is not None:
        filters = {"--action": action, "--by": by, "--limit": limit, "--namespace": namespace}
        hint_next_page("coord audit", filters, next_)


def _filter(action: str | None, by: str | None) -> Callable[[AuditEntry], bool]:
    return lambda entry: fnmatchcase(entry.action, action or "*") and fnmatchcase(entry.by, by or "*")


async def _read(
    client: Client, matches: Callable[[AuditEntry], bool], limit: int, cursor: str | None
) -> tuple[list[AuditEntry], str | None]:
    """Return the latest entries that match, and the cursor that continues."""
    found: list[AuditEntry] = []
    while True:
        page = await client.admin.audit(limit=STEP, cursor=cursor)
        for entry in page.entries:
            if matches(entry):
                found.append(entry)
            if len(found) == limit:
                is_last = page.next is None and entry is page.entries[-1]
                return found, None if is_last else entry.id
        cursor = page.next
        if cursor is None:
            return found, None


def _what(entry: AuditEntry) -> str:
    """Return what was changed, in words."""
    if entry.query is None:
        return f"{entry.target} ({entry.reason})" if entry.reason else entry.target
    text = f"{entry.done or 0:,} of {entry.count or 0:,} tasks"
    text += f" of `{entry.query}`" if entry.query else ""
    text += f" ({entry.stopping:,} asked to stop)" if entry.stopping else ""
    text += f" to {entry.target}" if entry.target else ""
    skipped = ", ".join(f"{count:,} {code}" for code, count in sorted((entry.skipped or {}).items()))
    return text + (f"; not changed: {skipped}" if skipped else "")


def _write_entry(entry: AuditEntry, *, json: bool) -> None:
    if json:
        write_json_line(entry)
    else:
        write_line(f"{moment(entry.at)}  {entry.by}  {entry.action}  {entry.outcome}  {_what(entry)}".rstrip())
