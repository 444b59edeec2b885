"""Which agents have a token. The tokens themselves are stored nowhere, only their digests."""

from __future__ import annotations

from hmac import compare_digest
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.agents import AgentStatus
from coord.queries.agents import list_agent_ids
from coord.queries.reads import chunks

#: Agents in one round trip.
STEP = 500


class TokenState(Struct, frozen=True):
    """Whether an agent has a token."""

    agent_id: str
    has_token: bool
    earlier_until: int | None = None  #: end of the grace of its earlier token, ms since 1970


async def find_agent_of_token(redis: Redis, keys: Keys, digest: str, now: int) -> str | None:
    """Return the agent that has the token with this digest, or had it until now; None if none has.

    Args:
        redis: the server.
        keys: of the cell.
        digest: SHA-256 of the token.
        now: ms since 1970, on the server's clock.
    """
    agent: Any = await redis.hget(keys.of("tokens"), digest)
    if agent is None:
        return None
    agent_id = agent.decode()
    row: Any = await redis.hmget(keys.token(agent_id), "current", "previous", "previous_until")
    current, previous, until = row
    is_valid = compare_digest(current or b"", digest.encode())
    is_previous = compare_digest(previous or b"", digest.encode()) and now < int(until or 0)
    return agent_id if is_valid or is_previous else None


async def list_tokens(redis: Redis, keys: Keys) -> list[TokenState]:
    """Return the state of each agent that is registered and has not left, sorted by id."""
    found: list[TokenState] = []
    for ids in chunks(await list_agent_ids(redis, keys), STEP):
        pipe = redis.pipeline(transaction=False)
        for agent_id in ids:
            pipe.hmget(keys.token(agent_id), "current", "previous_until")
            pipe.hget(keys.agent(agent_id), "status")
        answers = await pipe.execute()
        for agent_id, (current, until), status in zip(ids, answers[::2], answers[1::2], strict=True):
            if status not in {None, AgentStatus.INACTIVE.encode()}:
                found.append(TokenState(agent_id, current is not None, None if until is None else int(until)))
    return found
