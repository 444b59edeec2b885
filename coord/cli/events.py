"""``coord events``: what happens, as it happens."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
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

_ENTRY = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


def events(
    *,
    type_: Annotated[
        list[str] | None, typer.Option("--type", metavar="TYPE", help="Of this type; * stands for anything: 'task.*'.")
    ] = None,
    agent: Annotated[list[str] | None, typer.Option(metavar="ID", help="Of this agent.")] = None,
    task: Annotated[list[str] | None, typer.Option(metavar="ID", help="Of this task.")] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            help="Begin after this event id, at a moment, so long ago (5m, 2h), or with all there is (0).",
            show_default="now",
        ),
    ] = None,
    follow: Annotated[bool, typer.Option("--follow/--no-follow", help="Go on, or end with what has happened.")] = True,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Follow what happens to agents, tasks and messages, until Ctrl-C; goes on by itself after Redis was away.

    The logs are capped: where events were trimmed away before they were read, a log.trimmed stands in their place.

    Examples:
        coord events
        coord events --type 'task.failed' --type 'agent.lost'
        coord events --task report-7 --since 0 --no-follow
        coord events --since 1h --json | jq -r 'select(.log == "messages") | .fields.receiver_id'
    """
    wanted = _filter(type_ or (), agent or (), task or ())

    async def read(client: Client) -> None:
        from contextlib import aclosing

        from coord.client.events import events as feed

        place = _place(since)
        block_ms = client.settings.read_block_ms
        following = feed(client.redis, client.keys, since=place, follow=follow, say=hint, block_ms=block_ms)
        async with aclosing(following) as stream:
            async for event in stream:
                if wanted(event):
                    _write(event, json=json)

    ask(read, redis_url=redis_url, namespace=namespace)


def _place(said: str | None) -> str | None:
    if said is None or _ENTRY.fullmatch(said):
        return said
    if said == "0":
        return "0-0"
    ms = int(parse.moment(said, "--since", ahead=False).timestamp() * 1000)
    return f"{max(0, ms)}-0"  # entries have no ids before 1970


def _filter(types: Sequence[str], agents: Sequence[str], tasks: Sequence[str]) -> Callable[[Event], bool]:
    def wanted(event: Event) -> bool:
        if event.type in {TRIMMED, RESET}:
            return True
        if types and not any(fnmatchcase(event.type, one) for one in types):
            return False
        if tasks and event.fields.get("task_id") not in tasks:
            return False
        concerned = {event.fields.get(name) for name in ("agent_id", "sender_id", "receiver_id")}
        return not agents or not concerned.isdisjoint(agents)

    return wanted


def _write(event: Event, *, json: bool) -> None:
    if json:
        write_json_line(event)
        return
    told = "  ".join(f"{name}={_quoted(value)}" for name, value in event.fields.items() if value != "")
    write_line(f"{moment(event.at)}  {event.type:<20}  {told}".rstrip())


def _quoted(value: str) -> str:
    """Quoted where one could not see its end."""
    return msgspec.json.encode(value).decode() if not value or re.search(r'[\s"=]', value) else value
