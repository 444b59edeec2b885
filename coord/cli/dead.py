"""``coord dead``: dead letters, which are what coord gave up on: why, and set going again or forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.durations import seconds_of
from coord.cli.output import hint, moment, write_fields, write_json, write_line, write_table
from coord.cli.session import ask
from coord.errors import EntryNotFound, FactInvalid, MessageNotFound, TaskNotDead
from coord.models.dead_letters import DeadEntry, DeadLetter
from coord.models.messages import MessageRecord, MessageStatus
from coord.models.tasks import TaskRecord, TaskState

if TYPE_CHECKING:
    from coord import Client

#: Of each kind, unless --limit says otherwise: a screen or two.
LISTED = 50
#: Of each kind at most.
LISTED_MOST = 10_000


class Kind(StrEnum):
    """A kind of dead letter."""

    TASK = "task"
    MESSAGE = "message"
    ENTRY = "entry"


AKind = Annotated[Kind, typer.Argument(help="A failed task, a message, a buried entry.", show_default=False)]
AnId = Annotated[str, typer.Argument(metavar="ID", help="As `coord dead list` shows it.", show_default=False)]


def list_dead(
    *,
    kind: Annotated[Kind | None, typer.Option(help="Only this kind.", show_default=False)] = None,
    limit: Annotated[int, typer.Option(min=1, max=LISTED_MOST, help="So many of each kind, newest first.")] = LISTED,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List dead letters: tasks that failed, messages that reached nobody, entries that no worker could handle.

    Examples:
        coord dead list
        coord dead list --kind task --json | jq -r '.[].id'
    """
    kinds = [kind] if kind is not None else list(Kind)
    letters, counted = ask(lambda client: _letters(client, kinds, limit), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(letters)
        return
    if letters:
        columns = ("kind", "id", "died", "what", "code", "why")
        rows = [(one.kind, one.id, moment(one.died_at), one.what, one.code, one.reason) for one in letters]
        write_table(columns, rows)
    else:
        write_line("no dead letters")
    for one in kinds:
        if counted[one] > limit:
            hint(f"{counted[one]:,} of kind {one}; --limit shows more than {limit}")


def show(
    kind: AKind, dead_id: AnId, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Show all that is known of a dead letter.

    Examples:
        coord dead show task 0197…
        coord dead show entry 1769860800000-0 --json | jq .data
    """
    found = ask(lambda client: _one(client, kind, dead_id), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
    else:
        write_fields(_fields(found))


def replay(
    kind: AKind,
    dead_ids: Annotated[
        list[str], typer.Argument(metavar="ID...", help="As `coord dead list` shows them.", show_default=False)
    ],
    *,
    ttl: Annotated[
        str | None, typer.Option(help="Of a message: how long it may live from now on, such as 10m.")
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Set dead letters going again: a task with fresh attempts, a message as if sent now, an entry in its stream.

    Examples:
        coord dead replay task 0197…
        coord dead list --kind task --json | jq -r '.[].id' | xargs coord dead replay task
    """
    if ttl is not None and kind is not Kind.MESSAGE:
        raise FactInvalid(f"--ttl is for messages; a {kind} keeps what it was given")
    seconds = None if ttl is None else seconds_of(ttl, "--ttl")

    async def work(client: Client) -> list[dict[str, str]]:
        done: list[dict[str, str]] = []
        for dead_id in dead_ids:
            again = await client.admin.replay(kind.value, dead_id, ttl=seconds)
            done.append({"kind": kind, "id": dead_id, "replayed_as": again})
            if not json:
                write_line(f"{kind} {dead_id}: replayed" + (f" as {again}" if again != dead_id else ""))
        return done

    done = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(done)


def purge(
    kind: AKind,
    dead_id: Annotated[
        str | None, typer.Argument(metavar="[ID]", help="One of them; without it, --older-than.", show_default=False)
    ] = None,
    *,
    older_than: Annotated[
        str | None,
        typer.Option(metavar="TIME", help="All that died so long ago: 12h, 7d, 0 for all.", show_default=False),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Forget dead letters of a kind. They cannot be brought back.

    Examples:
        coord dead purge task 0197…
        coord dead purge entry --older-than 7d
        coord dead purge message --older-than 0
    """
    if (dead_id is None) == (older_than is None):
        raise FactInvalid("name either one ID or --older-than TIME (0 for all)")
    seconds = None if older_than is None else seconds_of(older_than, "--older-than")
    purged = ask(
        lambda client: client.admin.purge(kind.value, dead_id, older_than=seconds),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json({"kind": kind, "purged": purged})
    else:
        write_line(f"{purged:,} {kind} letter{'' if purged == 1 else 's'} purged")


dead = group("dead", "Dead letters: what coord gave up on.")
register(dead, list_dead, "list")
for command in (show, replay, purge):
    register(dead, command)


async def _letters(client: Client, kinds: Sequence[Kind], limit: int) -> tuple[list[DeadLetter], dict[str, int]]:
    found = [letter for kind in kinds for letter in await client.dead_letters(kind.value, limit=limit)]
    return found, await client.count_dead_letters()


async def _one(client: Client, kind: Kind, dead_id: str) -> TaskRecord | MessageRecord | DeadEntry:
    if kind is Kind.TASK:
        task = await client.task(dead_id)
        if task.state is not TaskState.FAILED:
            raise TaskNotDead(f"task '{dead_id}' is {task.state}; `coord tasks show {dead_id}` shows it")
        return task
    if kind is Kind.MESSAGE:
        try:
            message = await client.message(dead_id)
        except MessageNotFound:
            message = None
        if message is None or message.status is not MessageStatus.DEAD:
            raise MessageNotFound(f"message '{dead_id}' is no dead letter; `coord dead list` shows which are")
        return message
    try:
        return await client.dead_entry(_entry_id(dead_id))
    except EntryNotFound as error:
        raise EntryNotFound(f"{error}; `coord dead list --kind entry` shows which are") from None


def _entry_id(text: str) -> str:
    milliseconds, dash, number = text.partition("-")
    if not (milliseconds.isdecimal() and dash and number.isdecimal() and text.isascii() and len(text) <= 41):
        raise FactInvalid(f"ID: {text!r} is not the id of an entry, such as 1769860800000-0")
    return text


def _fields(found: TaskRecord | MessageRecord | DeadEntry) -> dict[str, Any]:
    """Each field under its own name, moments in local time."""
    fields = msgspec.structs.asdict(found)
    for name, value in fields.items():
        if name.endswith("_at") or name in {"deadline", "cancel_requested_at"}:
            fields[name] = moment(value)
        elif isinstance(value, (tuple, dict)) and not value:
            fields[name] = None
    return {name.replace("_", " "): value for name, value in fields.items()}
