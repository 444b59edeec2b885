"""``coord links``: show the links between agents and their hierarchy; change both without the consent of agents."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from coord.cli.agents import check_receiver
from coord.cli.commands import AsJson, Namespace, RedisUrl, group, register
from coord.cli.output import age, write_items, write_json, write_line, write_table
from coord.cli.session import ask
from coord.models.links import Links

if TYPE_CHECKING:
    from coord import Client

AgentId = Annotated[str, typer.Argument(metavar="AGENT", help="Id of the agent.", show_default=False)]
PeerId = Annotated[str, typer.Argument(metavar="PEER", help="Id of the other agent.", show_default=False)]


def list_links(
    *,
    agent: Annotated[str | None, typer.Option(metavar="ID", help="Only the links of this agent.")] = None,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """List links, requests for links, and masters.

    Messages of the protocol peer_to_peer need a link; of the protocol hierarchical, a master.

    Examples:
        coord links list
        coord links list --agent ocr-1 --json | jq '.items[].subordinates'
    """

    async def work(client: Client) -> tuple[list[Links], int]:
        found = [await client.links(agent)] if agent is not None else await client.list_links()
        return found, await client.server_time()

    found, now = ask(work, redis_url=redis_url, namespace=namespace)
    if json:
        write_items(found)
        return
    rows: list[tuple[str, str, str, str, str]] = []
    for one in found:
        rows += [(one.agent_id, link.peer_id, link.state, link.by, age(link.since, now)) for link in one.links]
        if one.master is not None:
            rows.append((one.agent_id, one.master, "master", "", ""))
        rows += [(one.agent_id, subordinate, "subordinate", "", "") for subordinate in one.subordinates]
    if rows:
        write_table(("agent", "other", "is", "by", "for"), rows, right=["for"])
    else:
        write_line("no links")


def add(
    agent_id: AgentId,
    peer_id: PeerId,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Link two agents, so that peer_to_peer messages pass between them.

    Examples:
        coord links add ocr-1 ocr-2
    """

    async def work(client: Client) -> Links:
        for one in (agent_id, peer_id):
            await check_receiver(client, one)
        await client.admin.link(agent_id, peer_id)
        return await client.links(agent_id)

    _write(ask(work, redis_url=redis_url, namespace=namespace), f"{agent_id} and {peer_id}: linked", json=json)


def remove(
    agent_id: AgentId,
    peer_id: PeerId,
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Remove the link between two agents, or a request for one.

    Examples:
        coord links remove ocr-1 ocr-2
    """

    async def work(client: Client) -> Links:
        await client.admin.unlink(agent_id, peer_id)
        return await client.links(agent_id)

    _write(ask(work, redis_url=redis_url, namespace=namespace), f"{agent_id} and {peer_id}: not linked", json=json)


def set_master(
    agent_id: AgentId,
    master_id: Annotated[str, typer.Argument(metavar="MASTER", help="Id of its master.", show_default=False)],
    *,
    json: AsJson = False,
    redis_url: RedisUrl = None,
    namespace: Namespace = None,
) -> None:
    """Set the master of an agent, in place of an earlier one.

    Examples:
        coord links set-master ocr-1 lead
    """

    async def work(client: Client) -> Links:
        for one in (agent_id, master_id):
            await check_receiver(client, one)
        await client.admin.set_master(agent_id, master_id)
        return await client.links(agent_id)

    _write(ask(work, redis_url=redis_url, namespace=namespace), f"{agent_id}: master {master_id}", json=json)


def clear_master(
    agent_id: AgentId, *, json: AsJson = False, redis_url: RedisUrl = None, namespace: Namespace = None
) -> None:
    """Take an agent away from its master.

    Examples:
        coord links clear-master ocr-1
    """

    async def work(client: Client) -> Links:
        await client.admin.set_master(agent_id, None)
        return await client.links(agent_id)

    _write(ask(work, redis_url=redis_url, namespace=namespace), f"{agent_id}: no master", json=json)


def _write(found: Links, text: str, *, json: bool) -> None:
    if json:
        write_json(found)
    else:
        write_line(text)


links = group("links", "Show links between agents and masters; add and remove them.")
register(links, list_links, "list")
for command in (add, remove, set_master, clear_master):
    register(links, command)
