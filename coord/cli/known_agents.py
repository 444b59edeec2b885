"""Ids of agents that a person typed: a mistyped one is answered before anything is sent to it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from coord.cli.output import hint
from coord.errors import AgentNotFound, CoordError
from coord.suggestions import closest

if TYPE_CHECKING:
    from coord import Client


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
