"""``coord agents watch``: the agents that are present, then each change."""

from __future__ import annotations

from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import hint, moment, write_json_line, write_line
from coord.cli.session import ask
from coord.models.agents import READY, RESYNC, SNAPSHOT, AgentChange
from coord.models.ids import entry_ms

if TYPE_CHECKING:
    from coord import Client


def watch(
    *,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="CURSOR", help="Continue after the change with this cursor, without a snapshot.", show_default=False
        ),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the agents that are present, then each change of an agent until Ctrl-C; reconnects automatically.

    No change is missed. If the log of agents was trimmed before it was read, a resync line comes and all agents again.
    With --json each line is a change: type, agent_id, agent (its record now), cursor (for --since).

    Examples:
        coord agents watch
        coord agents watch --json | jq -c 'select(.type == "agent.lost") | .agent_id'
    """

    async def follow(client: Client) -> None:
        async with aclosing(client.watch_agents(since=since, on_outage=hint)) as changes:
            async for change in changes:
                if json:
                    write_json_line(change)
                else:
                    _write(change)

    ask(follow, redis_url=redis_url, namespace=namespace)


def _write(change: AgentChange) -> None:
    if change.type == READY:
        hint("all agents are shown; changes follow")
    elif change.type == RESYNC:
        hint("the log of agents was trimmed or reset before it was read: all agents follow again")
    else:
        begin = "" if change.type == SNAPSHOT else f"{moment(entry_ms(change.cursor))}  "
        write_line(f"{begin}{change.type:<18}  {change.agent_id}{_state(change)}")


def _state(change: AgentChange) -> str:
    agent = change.agent
    if agent is None:
        return "  removed"
    deaf = " (deaf)" if agent.deaf else ""
    return f"  {agent.status.value}{deaf}  health {agent.health_score:.2f}  load {agent.load}/{agent.capacity}"
