"""``coord agents``: find and show agents. Also checks ids of agents that a person typed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.agents_control import drain, maintenance, prune, remove, resume
from coord.cli.agents_watch import watch
from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register, register_place
from coord.cli.output import (
    AGENT_STATUS,
    age,
    duration,
    hint,
    hint_next_page,
    moment,
    write_fields,
    write_items,
    write_json,
    write_line,
    write_table,
)
from coord.cli.parse import pairs
from coord.cli.session import ask
from coord.cli.tokens import enrol, revoke, rotate, tokens
from coord.errors import AgentNotFound, CoordError, FactInvalid
from coord.models.agents import AgentRecord, AgentStatus, AgentType, Ejected, why_deaf
from coord.models.links import Links
from coord.models.messages import COORDINATOR
from coord.suggestions import closest

if TYPE_CHECKING:
    from coord import Client
    from coord.queries import AgentPage

#: What ``show`` adds of ``Links`` to the record.
LINKS = ("master", "subordinates", "peers", "requests")


def list_agents(
    *,
    status: Annotated[
        AgentStatus | None, typer.Option(help="Only agents with this status.", show_default=False)
    ] = None,
    agent_type: Annotated[
        AgentType | None, typer.Option("--type", help="Only agents of this type.", show_default=False)
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(help="Only agents with this capability; repeatable.", show_default=False)
    ] = None,
    service: Annotated[
        list[str] | None, typer.Option(help="Only agents with this service; repeatable.", show_default=False)
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option(help="Only agents with this tag; repeatable.", show_default=False)
    ] = None,
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME=VALUE", help="Only agents with this label; repeatable.", show_default=False),
    ] = None,
    min_health: Annotated[
        float | None, typer.Option(min=0, max=1, help="Only agents with at least this health.", show_default=False)
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Also agents that left.")] = False,
    limit: Annotated[int, typer.Option(min=1, max=100_000, help="Maximum number of agents.")] = 100,
    cursor: Annotated[str | None, typer.Option(help="Continue from this cursor.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List agents, the healthiest first; agents that left only with --all.

    An agent with several of these properties has to have all of them.

    Examples:
        coord agents list
        coord agents list --status active --capability ocr --min-health 0.5
        coord agents list --label zone=eu --json | jq -r '.items[].agent_id'
    """
    labels = pairs(label or (), "--label")

    async def work(client: Client) -> tuple[AgentPage, int]:
        page = await client.discover(
            agent_type=agent_type,
            status=status,
            capabilities=capability or (),
            services=service or (),
            tags=tag or (),
            labels=labels,
            min_health=min_health,
            departed=all_,
            limit=limit,
            cursor=cursor,
        )
        return page, await client.server_time()

    page, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(page.agents, next=page.next)
        return
    if page.agents:
        columns = ["agent", "type", "status", "health", "load", "capabilities", "tags", "last heartbeat"]
        rows = [list(_row(record, now)) for record in page.agents]
        if not any(record.tags for record in page.agents):
            place = columns.index("tags")
            for row in (columns, *rows):
                del row[place]
        write_table(
            columns,
            rows,
            right=("health", "load"),
            free="capabilities",
            spare=("type", "tags"),
            styles={"status": AGENT_STATUS},
        )
    else:
        write_line("no agents")
    if page.next is not None:
        options = {
            "--status": status,
            "--type": agent_type,
            "--capability": capability,
            "--service": service,
            "--tag": tag,
            "--label": label,
            "--min-health": min_health,
            "--limit": limit,
        }
        hint_next_page("coord agents list" + " --all" * all_, options, page.next)


def show(
    agent_id: Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show the record of an agent.

    `ejected` lists the types of task that it gets none of for a while, because it fails them far more often than the
    others.

    Examples:
        coord agents show ocr-1
    """

    async def work(client: Client) -> tuple[AgentRecord, Links, int]:
        return await client.agent(agent_id), await client.links(agent_id), await client.server_time()

    record, links, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(msgspec.to_builtins(record) | {name: getattr(links, name) for name in LINKS})
    else:
        write_fields(_fields(record, now) | {name: _words(getattr(links, name)) for name in LINKS})


agents = group("agents", "Find, show, ping and watch agents; drain, maintain, resume, remove and prune them; tokens.")
register(agents, list_agents, "list")
for command in (show, watch, drain, maintenance, resume, remove, prune, enrol, rotate, revoke, tokens):
    register(agents, command)
register_place(agents, "coord.cli.ping:ping")


def _row(record: AgentRecord, now: int) -> tuple[Any, ...]:
    return (
        record.agent_id,
        record.agent_type,
        f"{record.status.value} (deaf)" if record.deaf else record.status.value,
        f"{record.health_score:.2f}{' (ejected)' if record.ejected else ''}",
        f"{record.load}/{record.capacity}",
        " ".join(record.capabilities),
        " ".join(record.tags),
        f"{age(record.last_heartbeat, now)} ago" if record.last_heartbeat else None,
    )


def _fields(record: AgentRecord, now: int) -> dict[str, Any]:
    interval = record.heartbeat_interval
    return {
        "agent": record.agent_id,
        "type": record.agent_type,
        "status": _status(record),
        "health": _health(record),
        "ejected": "; ".join(_ejection(one, now) for one in record.ejected) or None,
        "load": f"{record.load} of {record.capacity}",
        "weight": f"{record.weight:g}",
        "capabilities": " ".join(record.capabilities),
        "services": " ".join(record.services),
        "tags": " ".join(record.tags),
        "labels": record.labels or None,
        "location": record.location,
        "endpoints": record.endpoints or None,
        "metadata": record.metadata or None,
        "version": record.version,
        "heartbeat": "none declared" if interval is None else f"every {interval:g} s",
        "last heartbeat": moment(record.last_heartbeat or None),
        "registered": moment(record.registration_time or None),
        "metrics": record.load_metrics or None,
        "incarnation": record.incarnation,
        "term": record.term,
        "rev": record.rev,
    }


def _status(record: AgentRecord) -> str:
    """Format a status and what an operator or the coordinator adds to it."""
    status = record.status.value
    if record.drained_from:
        status += f" (by an operator; it reports {record.drained_from})"
    if record.deaf:
        status += f" (deaf, {why_deaf(record)})"
    return status


def _health(record: AgentRecord) -> str:
    """Format a health with its parts: 0.60 = freshness 1.00 x regularity 0.90 - load 0.3."""
    parts = record.health
    if parts is None:
        return f"{record.health_score:.2f}"
    penalties = {
        "load": parts.load_penalty,
        f"status {record.status.value}": parts.status_penalty,
        "ejected": parts.ejected_penalty,
        "deaf": parts.deaf_penalty,
    }
    less = "".join(f" - {name} {value:g}" for name, value in penalties.items() if value)
    return f"{record.health_score:.2f} = freshness {parts.freshness:.2f} x regularity {parts.regularity:.2f}{less}"


def _words(value: str | tuple[str, ...] | None) -> str | None:
    return " ".join(value) if isinstance(value, tuple) else value


def _ejection(one: Ejected, now: int) -> str:
    """Format an ejection: 'summarize' for 24.0 s more, as 95% of its attempts failed, and 2% of the others'."""
    return (
        f"{one.task_type!r} for {duration(max(0, one.until - now))} more, "
        f"as {one.failure_rate:.0%} of its attempts failed, and {one.others_rate:.0%} of the others'"
    )


async def check_receiver(client: Client, agent_id: str) -> None:
    """Check that an agent has this id: a message to a mistyped one would become a dead letter.

    Raises:
        AgentNotFound: none has; suggests the nearest.
        FactInvalid: it is the coordinator.
    """
    if agent_id == COORDINATOR:
        raise FactInvalid(
            f"{COORDINATOR!r} is no agent: it answers only requests of type discovery; `coord agents list` finds agents"
        )
    if not await _is_known(client, agent_id):
        raise AgentNotFound(f"Agent '{agent_id}' not found{await _suggestion(client, agent_id)}")


async def warn_of_unknown(client: Client, agent_id: str) -> None:
    """Print a hint if no agent has this id: a task for it waits until it registers."""
    if not await _is_known(client, agent_id):
        near = await _suggestion(client, agent_id)
        hint(f"no agent '{agent_id}' is registered{near or ' yet'}; the task waits for it")


async def _is_known(client: Client, agent_id: str) -> bool:
    try:
        await client.agent(agent_id)
    except AgentNotFound:
        return False
    except CoordError:  # such as a Redis user who may send and not read
        return True
    return True


async def _suggestion(client: Client, agent_id: str) -> str:
    near = closest(agent_id, [record.agent_id for record in await client.agents()])
    return f", did you mean '{near}'?" if near else ""
