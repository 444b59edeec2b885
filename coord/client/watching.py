"""Watches agents: a snapshot, then each change, from the log of agents."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from redis.asyncio import Redis

from coord import queries
from coord.client.events import follow_events
from coord.errors import CursorInvalid
from coord.keys import Keys
from coord.models.agents import READY, RESYNC, SNAPSHOT, AgentChange, AgentStatus
from coord.models.events import RESET, TRIMMED

#: Agents of a snapshot read in one round trip.
STEP = 200
_CURSOR = re.compile(r"[0-9]{1,20}-[0-9]{1,20}")


async def watch_agents(
    redis: Redis,
    keys: Keys,
    *,
    since: str | None = None,
    block_ms: int = 500,
    on_outage: Callable[[str], None] = lambda _message: None,
) -> AsyncGenerator[AgentChange]:
    """Yield the agents that are present, then each change; as ``Client.watch_agents``."""
    if since is not None and not _CURSOR.fullmatch(since):
        raise CursorInvalid(
            f"cursor {since[:80]!r} does not come from a watch of agents; leave it out to start with a snapshot"
        )
    cursor = since
    while True:
        if cursor is None:
            # The position in the log is read before the agents: what changes meanwhile is seen twice, not never.
            cursor = (await queries.get_log_window(redis, keys.of("log:agents"))).last
            ids = await queries.list_agent_ids(redis, keys)
            for begin in range(0, len(ids), STEP):
                for record in await queries.get_agents(redis, keys, ids[begin : begin + STEP]):
                    if record is not None and record.status is not AgentStatus.INACTIVE:
                        yield AgentChange(SNAPSHOT, record.agent_id, record, "")
            yield AgentChange(READY, "", None, cursor)
        following = follow_events(redis, keys, since=cursor, block_ms=block_ms, on_outage=on_outage, logs=("agents",))
        async with aclosing(following) as events:
            async for event in events:
                if event.type in {TRIMMED, RESET}:
                    yield AgentChange(RESYNC, "", None, "")
                    cursor = None
                    break
                cursor, agent_id = event.id, event.fields.get("agent_id", "")
                yield AgentChange(event.type, agent_id, await queries.get_agent(redis, keys, agent_id), cursor)
