"""The records of agents."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.agents import AgentRecord, AgentStatus, Location
from coord.queries.fields import decoded, int_of, json_of


async def agent(redis: Redis, keys: Keys, agent_id: str) -> AgentRecord | None:
    """An agent's record, or None."""
    return (await agents(redis, keys, [agent_id]))[0]


async def agents(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> list[AgentRecord | None]:
    """The records of many agents in one round trip, in order."""
    pipe = redis.pipeline(transaction=False)
    for agent_id in agent_ids:
        pipe.hgetall(keys.agent(agent_id))
        pipe.scard(keys.inflight(agent_id))
    answers = await pipe.execute()
    return [_agent_record(raw, load) if raw else None for raw, load in zip(answers[::2], answers[1::2], strict=True)]


async def agent_ids(redis: Redis, keys: Keys) -> list[str]:
    """Every agent that has a record, sorted."""
    members: set[bytes] = await redis.execute_command("SMEMBERS", keys.of("agents:all"))
    return sorted(one.decode() for one in members)


def _agent_record(raw_fields: Mapping[bytes, bytes], load: int) -> AgentRecord:
    raw = decoded(raw_fields)
    location = json_of(raw.get("location"))
    interval = int_of(raw.get("heartbeat_interval"))
    return AgentRecord(
        agent_id=raw["agent_id"],
        agent_type=raw.get("agent_type", ""),
        status=AgentStatus(raw["status"]),
        capabilities=tuple(json_of(raw.get("capabilities")) or ()),
        services=tuple(json_of(raw.get("services")) or ()),
        endpoints=json_of(raw.get("endpoints")) or {},
        metadata=json_of(raw.get("metadata")) or {},
        tags=tuple(json_of(raw.get("tags")) or ()),
        labels=json_of(raw.get("labels")) or {},
        location=msgspec.convert(location, Location) if location else None,
        version=raw.get("version", ""),
        capacity=int(raw.get("capacity", 0)),
        weight=float(raw.get("weight", 1)),
        heartbeat_interval=interval / 1000 if interval is not None else None,
        incarnation=raw.get("incarnation", ""),
        deaf=raw.get("deaf") == "1",
        drained_from=raw.get("drained_from", ""),
        term=int(raw.get("term", 0)),
        rev=int(raw.get("rev", 0)),
        registration_time=int(raw.get("registration_time", 0)),
        last_heartbeat=int(raw.get("last_heartbeat", 0)),
        load_metrics={name[7:]: float(value) for name, value in raw.items() if name.startswith("metric:")},
        health_score=float(raw.get("health_score", 0)),
        leases=int_of(raw.get("leases")),
        load=int(load),
    )
