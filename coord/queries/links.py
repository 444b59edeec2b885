"""Links between agents: those of one agent, and those of all."""

from __future__ import annotations

from collections.abc import Sequence

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.links import Link, Links, LinkState
from coord.queries.agents import list_agent_ids
from coord.queries.reads import chunks

#: Agents read in one round trip.
STEP = 200


async def get_links(redis: Redis, keys: Keys, agent_id: str) -> Links:
    """Return the links of an agent; empty if it has none."""
    return (await _read(redis, keys, [agent_id]))[0]


async def list_links(redis: Redis, keys: Keys) -> list[Links]:
    """Return the links of all agents that have a link or a place in the hierarchy, sorted by agent."""
    found: list[Links] = []
    for agents in chunks(await list_agent_ids(redis, keys), STEP):
        found += [one for one in await _read(redis, keys, agents) if one.links or one.master or one.subordinates]
    return found


async def _read(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> list[Links]:
    pipe = redis.pipeline(transaction=False)
    for agent_id in agent_ids:
        pipe.hgetall(keys.links(agent_id))
        pipe.hget(keys.of("masters"), agent_id)
        pipe.smembers(keys.subordinates(agent_id))
    answers = await pipe.execute()
    return [
        Links(
            agent_id=agent_id,
            links=tuple(parse_link(peer, links[peer]) for peer in sorted(links)),
            master=master.decode() if master is not None else None,
            subordinates=tuple(sorted(one.decode() for one in subordinates)),
        )
        for agent_id, links, master, subordinates in zip(
            agent_ids, answers[::3], answers[1::3], answers[2::3], strict=True
        )
    ]


def parse_link(peer_id: bytes, raw: bytes) -> Link:
    """Return a link as an agent's hash has it."""
    state, since, by = raw.decode().split()
    return Link(peer_id.decode(), LinkState(state), int(since), by)
