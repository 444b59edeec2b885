"""``coord agents``: drain, maintain, resume, remove and prune agents."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.commands import AsJson, Namespace, RedisUrl
from coord.cli.output import hint, interruptible, write_json, write_line
from coord.cli.parse import Duration
from coord.cli.session import Acted, act_on_each, ask
from coord.errors import ConfigError, CoordError
from coord.models.agents import AgentStatus

if TYPE_CHECKING:
    from coord import Client

AgentIds = Annotated[list[str], typer.Argument(metavar="AGENT...", help="Ids of the agents.", show_default=False)]


def drain(
    agent_ids: AgentIds,
    *,
    wait: Annotated[bool, typer.Option(help="Wait until no task is left, and show how many are.")] = False,
    timeout: Annotated[
        float | None,
        typer.Option(
            click_type=Duration(),
            metavar="TIME",
            help="Maximum time to wait for one agent: 30s, 5m.",
            show_default=False,
        ),
    ] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Drain agents: they finish their tasks and get no new ones until they are resumed.

    With --wait, exit code 3: tasks are left after the timeout; the agents drain on.

    Examples:
        coord agents drain ocr-1 ocr-2
        coord agents drain ocr-1 --wait --timeout 10m
    """
    if timeout is not None and not wait:
        raise ConfigError("--timeout needs --wait")

    begun: dict[str, AgentStatus | CoordError] = {}

    async def act(client: Client, agent_id: str) -> AgentStatus:
        if not wait:
            return await client.admin.drain(agent_id)
        for each in dict.fromkeys(agent_ids) if not begun else ():  # all drain before the first is waited for
            try:
                begun[each] = await client.admin.drain(each)
            except CoordError as error:
                begun[each] = error
        status = begun[agent_id]
        if isinstance(status, CoordError):
            raise status
        with interruptible(f"{agent_id} drains on; `coord agents resume {agent_id}` ends that"):
            await client.admin.wait_drained(
                agent_id,
                timeout=timeout,
                on_progress=lambda left: hint(f"{agent_id}: {left} task{'s' * (left != 1)} left"),
            )
        return status

    _each(agent_ids, act, json=json, redis_url=redis_url, namespace=namespace)


def maintenance(
    agent_ids: AgentIds,
    *,
    end: Annotated[bool, typer.Option("--end", help="End the maintenance.")] = False,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Put agents into maintenance: they finish their tasks and get no new ones until it ends.

    It is a drain that lists show as maintenance. It replaces a drain, and --end ends both, as resume does.

    Examples:
        coord agents maintenance ocr-1
        coord agents maintenance ocr-1 --end
    """

    async def act(client: Client, agent_id: str) -> AgentStatus:
        return await (client.admin.resume(agent_id) if end else client.admin.maintain(agent_id))

    _each(agent_ids, act, json=json, redis_url=redis_url, namespace=namespace)


def resume(
    agent_ids: AgentIds, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Resume agents that are drained or in maintenance: they get tasks again, unless they report another status.

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


def prune(
    *,
    older_than: Annotated[
        float,
        typer.Option(
            click_type=Duration(),
            metavar="TIME",
            show_default=False,
            help="Left at least this long ago: 12h, 7d, 0 for all.",
        ),
    ],
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Remove the records and inboxes of agents that left, or have been silent, for long.

    Records of agents that left are removed by themselves after 30 days. An agent with tasks in flight stays.

    Examples:
        coord agents prune --older-than 7d
    """
    pruned = ask(lambda client: client.admin.prune_agents(older_than), redis_url=redis_url, namespace=namespace)
    if json:
        write_json({"pruned": pruned})
    else:
        write_line(f"{pruned:,} agent{'' if pruned == 1 else 's'} removed")


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
