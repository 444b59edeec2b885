"""``coord agents``: show agents; drain, resume and remove them. Also checks ids of agents that a person typed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register, register_place
from coord.cli.output import (
    AGENT_STATUS,
    age,
    duration,
    hint,
    moment,
    write_fields,
    write_items,
    write_json,
    write_line,
    write_table,
)
from coord.cli.session import Acted, act_on_each, ask
from coord.errors import AgentNotFound, CoordError
from coord.models.agents import AgentRecord, AgentStatus, AgentType, Ejected
from coord.models.links import Links
from coord.suggestions import closest

if TYPE_CHECKING:
    from coord import Client

#: What ``show`` adds of ``Links`` to the record.
LINKS = ("master", "subordinates", "peers", "requests")

AgentIds = Annotated[list[str], typer.Argument(metavar="AGENT...", help="Ids of the agents.", show_default=False)]


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
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List agents, including those that left or became stale, while their records are kept.

    Examples:
        coord agents list
        coord agents list --status active --capability ocr
        coord agents list --json | jq -r '.items[].agent_id'
    """

    async def work(client: Client) -> tuple[list[AgentRecord], int]:
        return await client.agents(), await client.server_time()

    records, now = ask(work, redis_url=redis_url, namespace=namespace)
    found = [
        record
        for record in records
        if (status is None or record.status is status)
        and (agent_type is None or record.agent_type == agent_type)
        and set(capability or ()) <= set(record.capabilities)
    ]
    if json:
        write_items(found)
    elif found:
        columns = ("agent", "type", "status", "health", "load", "capabilities", "last heartbeat")
        write_table(
            columns,
            [_row(record, now) for record in found],
            right=("health", "load"),
            free="capabilities",
            styles={"status": AGENT_STATUS},
        )
    else:
        write_line("no agents")


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


def drain(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Drain agents: they finish their tasks and get no new ones until they are resumed.

    Examples:
        coord agents drain ocr-1 ocr-2
    """
    _each(
        agent_ids,
        lambda client, agent_id: client.admin.drain(agent_id),
        json=json,
        redis_url=redis_url,
        namespace=namespace,
    )


def resume(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Resume drained agents: they get tasks again, unless an agent itself reports another status.

    Examples:
        coord agents resume ocr-1
    """
    _each(
        agent_ids,
        lambda client, agent_id: client.admin.resume(agent_id),
        json=json,
        redis_url=redis_url,
        namespace=namespace,
    )


def remove(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Deregister agents with no process; their tasks go to other agents.

    An agent that still runs registers again with its next heartbeat: stop its process first.

    Examples:
        coord agents remove ocr-1
    """

    async def act(client: Client, agent_id: str) -> AgentStatus:
        await client.admin.remove(agent_id)
        return AgentStatus.INACTIVE

    _each(agent_ids, act, json=json, redis_url=redis_url, namespace=namespace)


agents = group("agents", "Show agents; ping, drain, resume and remove them.")
register(agents, list_agents, "list")
for command in (show, drain, resume, remove):
    register(agents, command)
register_place(agents, "coord.cli.ping:ping")


def _each(
    agent_ids: list[str],
    act: Callable[[Client, str], Awaitable[AgentStatus]],
    *,
    json: bool,
    redis_url: str | None,
    namespace: str | None,
) -> None:
    """Act on one agent after the other and print its new status."""

    async def one(client: Client, agent_id: str) -> Acted:
        status = await act(client, agent_id)
        return Acted({"agent_id": agent_id, "status": status}, f"{agent_id}: {status}")

    act_on_each(agent_ids, one, id_field="agent_id", json=json, redis_url=redis_url, namespace=namespace)


def _row(record: AgentRecord, now: int) -> tuple[Any, ...]:
    return (
        record.agent_id,
        record.agent_type,
        record.status.value,
        f"{record.health_score:.2f}{' (ejected)' if record.ejected else ''}",
        f"{record.load}/{record.capacity}",
        " ".join(record.capabilities),
        f"{age(record.last_heartbeat, now)} ago" if record.last_heartbeat else None,
    )


def _fields(record: AgentRecord, now: int) -> dict[str, Any]:
    interval = record.heartbeat_interval
    return {
        "agent": record.agent_id,
        "type": record.agent_type,
        "status": f"{record.status.value} (deaf: does not read its inbox)" if record.deaf else record.status.value,
        "health": f"{record.health_score:.2f}",
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
    """
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
