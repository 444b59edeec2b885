"""``coord dead``: show, replay and purge dead letters: failed tasks, undelivered messages, invalid entries."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import age, hint, moment, write_fields, write_items, write_json, write_line, write_table
from coord.cli.parse import Duration
from coord.cli.session import Acted, act_on_each, ask
from coord.errors import EntryNotFound, FactInvalid, MessageNotFound, TaskNotDead
from coord.models.dead_letters import DeadEntry, DeadLetter
from coord.models.messages import MessageRecord, MessageStatus
from coord.models.tasks import TaskRecord, TaskState

if TYPE_CHECKING:
    from coord import Client

#: Default of --limit: a screen or two.
DEFAULT_LIMIT = 50
#: Maximum of --limit.
MAX_LIMIT = 10_000


class Kind(StrEnum):
    """A kind of dead letter."""

    TASK = "task"
    MESSAGE = "message"
    ENTRY = "entry"


KindArgument = Annotated[
    Kind, typer.Argument(help="A failed task, an undelivered message, an invalid entry.", show_default=False)
]
IdArgument = Annotated[
    str, typer.Argument(metavar="ID", help="Id of the dead letter, see `coord dead list`.", show_default=False)
]


def list_dead(
    *,
    kind: Annotated[Kind | None, typer.Option(help="Only dead letters of this kind.", show_default=False)] = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_LIMIT, help="Maximum number of each kind, newest first.")
    ] = DEFAULT_LIMIT,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List dead letters: failed tasks, undelivered messages, and entries that no worker could handle.

    Examples:
        coord dead list
        coord dead list --kind task --json | jq -r '.items[].id'
    """
    kinds = [kind] if kind is not None else list(Kind)
    letters, counted, now = ask(lambda client: _letters(client, kinds, limit), redis_url=redis_url, namespace=namespace)
    if json:
        write_items(letters)
        return
    if letters:
        columns = ("kind", "id", "age", "what", "code", "reason")
        rows = [
            (letter.kind, letter.id, age(letter.died_at, now), letter.what, letter.code, letter.reason)
            for letter in letters
        ]
        write_table(columns, rows, right=["age"])
    else:
        write_line("no dead letters")
    for each in kinds:
        if counted[each] > limit:
            hint(f"there are {counted[each]:,} of kind {each}; to show more than {limit}, use --limit")


def show(
    kind: KindArgument,
    dead_id: IdArgument,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the record of a dead letter.

    Examples:
        coord dead show task 0197…
        coord dead show entry 1769860800000-0 --json | jq .data
    """
    record = ask(lambda client: _read(client, kind, dead_id), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(record)
    else:
        write_fields(_fields(record))


def replay(
    kind: KindArgument,
    dead_ids: Annotated[
        list[str],
        typer.Argument(metavar="ID...", help="Ids of dead letters, see `coord dead list`.", show_default=False),
    ],
    *,
    ttl: Annotated[
        float | None,
        typer.Option(click_type=Duration(), metavar="TIME", help="New time to live of a message, such as 10m."),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Replay dead letters: a task with new attempts, a message as if sent now, an entry in its stream.

    Examples:
        coord dead replay task 0197…
        coord dead list --kind task --json | jq -r '.items[].id' | xargs coord dead replay task
    """
    if ttl is not None and kind is not Kind.MESSAGE:
        raise FactInvalid(f"--ttl is valid for messages only, not for kind {kind}")

    async def one(client: Client, dead_id: str) -> Acted:
        again = await client.admin.replay(kind.value, dead_id, ttl=ttl)
        line = f"{kind} {dead_id}: replayed" + (f" as {again}" if again != dead_id else "")
        return Acted({"kind": kind, "id": dead_id, "replayed_as": again}, line)

    act_on_each(dead_ids, one, id_field="id", json=json, redis_url=redis_url, namespace=namespace)


def purge(
    kind: KindArgument,
    dead_id: Annotated[
        str | None,
        typer.Argument(metavar="[ID]", help="Id of the dead letter; or give --older-than.", show_default=False),
    ] = None,
    *,
    older_than: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(),
            metavar="TIME",
            show_default=False,
            help="All that died at least this long ago: 12h, 7d, 0 for all.",
        ),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Delete dead letters of a kind. They cannot be restored.

    Examples:
        coord dead purge task 0197…
        coord dead purge entry --older-than 7d
        coord dead purge message --older-than 0
    """
    if (dead_id is None) == (older_than is None):
        raise FactInvalid("give either one ID or --older-than TIME (0 for all)")
    purged = ask(
        lambda client: client.admin.purge(kind.value, dead_id, older_than=older_than),
        redis_url=redis_url,
        namespace=namespace,
    )
    if json:
        write_json({"kind": kind, "purged": purged})
    else:
        write_line(f"{purged:,} {kind} letter{'' if purged == 1 else 's'} purged")


dead = group("dead", "Show, replay and purge dead letters: failed tasks, undelivered messages, invalid entries.")
register(dead, list_dead, "list")
for command in (show, replay, purge):
    register(dead, command)


async def _letters(client: Client, kinds: Sequence[Kind], limit: int) -> tuple[list[DeadLetter], dict[str, int], int]:
    found = [letter for kind in kinds for letter in await client.dead_letters(kind.value, limit=limit)]
    return found, await client.count_dead_letters(), await client.server_time()


async def _read(client: Client, kind: Kind, dead_id: str) -> TaskRecord | MessageRecord | DeadEntry:
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
        if message is None or message.status not in {MessageStatus.DEAD, MessageStatus.EXPIRED}:
            raise MessageNotFound(f"message '{dead_id}' is not a dead letter; see `coord dead list --kind message`")
        return message
    try:
        return await client.dead_entry(_entry_id(dead_id))
    except EntryNotFound as error:
        raise EntryNotFound(f"{error}; see `coord dead list --kind entry`") from None


def _entry_id(text: str) -> str:
    milliseconds, dash, number = text.partition("-")
    if not (milliseconds.isdecimal() and dash and number.isdecimal() and text.isascii() and len(text) <= 41):
        raise FactInvalid(f"ID must be the id of an entry, such as 1769860800000-0, got {text!r}")
    return text


def _fields(record: TaskRecord | MessageRecord | DeadEntry) -> dict[str, Any]:
    """Return each field under its own name, times in local time."""
    fields = msgspec.structs.asdict(record)
    for name, value in fields.items():
        if name.endswith("_at") or name in {"deadline", "cancel_requested_at"}:
            fields[name] = moment(value)
        elif isinstance(value, (tuple, dict)) and not value:
            fields[name] = None
    return {name.replace("_", " "): value for name, value in fields.items()}
