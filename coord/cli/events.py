"""``coord events``: follow events as they happen."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import aclosing
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from coord.cli import parse
from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import hint, moment, write_json_line, write_line
from coord.cli.session import ask
from coord.models.events import RESET, TRIMMED, Event

if TYPE_CHECKING:
    from coord import Client

_EVENT_ID = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def events(
    *,
    type_: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only events of this type; * is a wildcard: 'task.*'. Repeatable."),
    ] = None,
    agent: Annotated[
        list[str] | None, typer.Option(metavar="ID", help="Only events of this agent; repeatable.")
    ] = None,
    task: Annotated[list[str] | None, typer.Option(metavar="ID", help="Only events of this task; repeatable.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="START",
            help="Start after this event id, at a date and time, this long ago (5m, 2h), or with the oldest event (0).",
            show_default="now",
        ),
    ] = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-follow", help="Wait for new events, or stop after the last one.")
    ] = True,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Follow the events of agents, tasks and messages until Ctrl-C; reconnects automatically.

    The logs have a maximum size: a log.trimmed event replaces events that were trimmed before they were read.

    Examples:
        coord events
        coord events --type 'task.failed' --type 'agent.lost'
        coord events --task report-7 --since 0 --no-follow
        coord events --since 1h --json | jq -r 'select(.log == "messages") | .fields.receiver_id'
    """
    matches = _filter(type_ or (), agent or (), task or ())

    async def read(client: Client) -> None:

        following = client.events(since=start_of(since), follow=follow, on_outage=hint)
        async with aclosing(following) as stream:
            async for event in stream:
                if matches(event):
                    _write(event, json=json)

    ask(read, redis_url=redis_url, namespace=namespace)


def start_of(text: str | None) -> str | None:
    """Return the id of the entry after which to begin, from the option --since."""
    if text is None or _EVENT_ID.fullmatch(text):
        return text
    if text == "0":
        return "0-0"
    ms = int(parse.moment(text, "--since", ahead=False).timestamp() * 1000)
    return f"{max(0, ms)}-0"  # entries have no ids before 1970


def _filter(types: Sequence[str], agents: Sequence[str], tasks: Sequence[str]) -> Callable[[Event], bool]:
    def matches(event: Event) -> bool:
        if event.type in {TRIMMED, RESET}:
            return True
        if types and not any(fnmatchcase(event.type, pattern) for pattern in types):
            return False
        if tasks and event.fields.get("task_id") not in tasks:
            return False
        agents_of_event = {event.fields.get(name) for name in ("agent_id", "sender_id", "receiver_id")}
        return not agents or not agents_of_event.isdisjoint(agents)

    return matches


def _write(event: Event, *, json: bool) -> None:
    if json:
        write_json_line(event)
        return
    fields = "  ".join(f"{name}={_quoted(value)}" for name, value in event.fields.items() if value != "")
    write_line(f"{moment(event.at)}  {event.type:<20}  {fields}".rstrip())


def _quoted(value: str) -> str:
    """Quote a value if its end is not visible otherwise."""
    return msgspec.json.encode(value).decode() if not value or re.search(r'[\s"=]', value) else value
