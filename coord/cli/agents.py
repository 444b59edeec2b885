"""``coord agents``: look at agents, and take them out of service."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import moment, write_fields, write_json, write_line, write_table
from coord.cli.session import ask
from coord.models.agents import AgentRecord, AgentStatus, AgentType

if TYPE_CHECKING:
    from coord import Client

AgentIds = Annotated[list[str], typer.Argument(metavar="AGENT...", help="One or more agents.", show_default=False)]


def list_agents(
    *,
    status: Annotated[AgentStatus | None, typer.Option(help="Only those with this status.", show_default=False)] = None,
    agent_type: Annotated[
        AgentType | None, typer.Option("--type", help="Only those of this type.", show_default=False)
    ] = None,
    capability: Annotated[
        list[str] | None, typer.Option(help="Only those that can do this; again for more.", show_default=False)
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List agents, those that left or fell silent too, while they are remembered.

    Examples:
        coord agents list
        coord agents list --status active --capability ocr
        coord agents list --json | jq -r '.[].agent_id'
    """
    found = [
        one
        for one in ask(lambda client: client.agents(), redis_url=redis_url, namespace=namespace)
        if (status is None or one.status is status)
        and (agent_type is None or one.agent_type == agent_type)
        and set(capability or ()) <= set(one.capabilities)
    ]
    if json:
        write_json(found)
    elif found:
        columns = ("agent", "type", "status", "health", "load", "capabilities", "last beat")
        write_table(columns, [_row(one) for one in found], right=("health", "load"), free="capabilities")
    else:
        write_line("no agents")


def show(
    agent_id: Annotated[str, typer.Argument(metavar="AGENT", help="The agent.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Show all that is recorded of an agent.

    Examples:
        coord agents show ocr-1
    """
    found = ask(lambda client: client.agent(agent_id), redis_url=redis_url, namespace=namespace)
    if json:
        write_json(found)
    else:
        write_fields(_fields(found))


def drain(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Let agents finish what they have and give them nothing new, until they are resumed.

    Examples:
        coord agents drain ocr-1 ocr-2
    """
    _each(agent_ids, lambda client, one: client.admin.drain(one), json=json, redis_url=redis_url, namespace=namespace)


def resume(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Give drained agents work again, as soon as they want it themselves.

    Examples:
        coord agents resume ocr-1
    """
    _each(agent_ids, lambda client, one: client.admin.resume(one), json=json, redis_url=redis_url, namespace=namespace)


def remove(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Deregister agents whose process is gone; what they have in flight goes to others.

    An agent that still runs comes back with its next heartbeat: end its process first.

    Examples:
        coord agents remove ocr-1
    """

    async def act(client: Client, agent_id: str) -> AgentStatus:
        await client.admin.remove(agent_id)
        return AgentStatus.INACTIVE

    _each(agent_ids, act, json=json, redis_url=redis_url, namespace=namespace)


agents = group("agents", "Look at agents, and take them out of service.")
register(agents, list_agents, "list")
for command in (show, drain, resume, remove):
    register(agents, command)


def _each(
    agent_ids: list[str],
    act: Callable[[Client, str], Awaitable[AgentStatus]],
    *,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
) -> None:
    """Do it to one after the other, and say what its status is then; the first that cannot be done ends it."""

    async def work(client: Client) -> list[dict[str, str]]:
        done: list[dict[str, str]] = []
        for agent_id in agent_ids:
            done.append({"agent_id": agent_id, "status": await act(client, agent_id)})
            if not json:
                write_line(f"{agent_id}: {done[-1]['status']}")
        return done

    done = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_json(done)


def _row(one: AgentRecord) -> tuple[Any, ...]:
    return (
        one.agent_id,
        one.agent_type,
        one.status.value,
        f"{one.health_score:.2f}",
        f"{one.load}/{one.capacity}",
        " ".join(one.capabilities),
        moment(one.last_heartbeat or None),
    )


def _fields(one: AgentRecord) -> dict[str, Any]:
    interval = one.heartbeat_interval
    return {
        "agent": one.agent_id,
        "type": one.agent_type,
        "status": f"{one.status.value} (deaf: it does not read its inbox)" if one.deaf else one.status.value,
        "health": f"{one.health_score:.2f}",
        "load": f"{one.load} of {one.capacity}",
        "weight": f"{one.weight:g}",
        "capabilities": " ".join(one.capabilities),
        "services": " ".join(one.services),
        "tags": " ".join(one.tags),
        "labels": one.labels or None,
        "location": one.location,
        "endpoints": one.endpoints or None,
        "metadata": one.metadata or None,
        "version": one.version,
        "heartbeat": "none declared" if interval is None else f"every {interval:g} s",
        "last beat": moment(one.last_heartbeat or None),
        "registered": moment(one.registration_time or None),
        "metrics": one.load_metrics or None,
        "incarnation": one.incarnation,
        "term": one.term,
        "rev": one.rev,
    }
