"""The recipients of a broadcast, from the index sets of agents, in steps of bounded size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.messages import RecipientFilter
from coord.queries.reads import chunks, decode_text

#: Members read, or compared with other sets, in one round trip: less than a millisecond of the server's time.
STEP = 1_000


async def find_recipients(redis: Redis, keys: Keys, wanted: RecipientFilter, sender_id: str) -> list[str]:
    """Return the ids of the agents that match a filter, sorted, without the sender.

    An agent that begins or ceases to match while the sets are read may be among them or not.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        wanted: properties of the agents.
        sender_id: of the broadcast.
    """
    found: set[str] = set()
    for status in dict.fromkeys(wanted.statuses):
        found |= await _intersect(redis, [keys.facet("status", status), *_facet_sets(keys, wanted)])
    return sorted(found - {sender_id})


def _facet_sets(keys: Keys, wanted: RecipientFilter) -> list[str]:
    """Return the index sets of which an agent must be a member, whatever its status."""
    values = [] if wanted.agent_type is None else [("type", wanted.agent_type.value)]
    values += [("capability", value) for value in wanted.capabilities]
    values += [("service", value) for value in wanted.services]
    values += [("tag", value) for value in wanted.tags]
    values += [("label", f"{name}={value}") for name, value in wanted.labels.items()]
    return [keys.facet(facet, value) for facet, value in dict.fromkeys(values)]


async def _intersect(redis: Redis, sets: list[str]) -> set[str]:
    """Return the members that all sets have: reads the smallest one, and looks its members up in the others."""
    pipe = redis.pipeline(transaction=False)
    for key in sets:
        pipe.scard(key)
    sizes = await pipe.execute()
    smallest, *others = [key for _, key in sorted(zip(sizes, sets, strict=True))]
    found: set[str] = set()
    cursor = 0
    while True:
        cursor, members = await redis.sscan(smallest, cursor, count=STEP)
        for some in chunks(members, STEP):
            found.update(await _members_of_all(redis, others, some))
        if cursor == 0:
            return found


async def _members_of_all(redis: Redis, sets: list[str], members: Sequence[Any]) -> list[str]:
    if not members:
        return []
    pipe = redis.pipeline(transaction=False)
    for key in sets:
        pipe.execute_command("SMISMEMBER", key, *members)
    answers = await pipe.execute() if sets else []
    return [decode_text(member) for member, *are_members in zip(members, *answers, strict=True) if all(are_members)]
