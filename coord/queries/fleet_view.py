"""What placement sees of the agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from redis.asyncio import Redis

from coord.keys import Keys
from coord.models.agents import FleetAgent
from coord.queries.agent_records import agent_ids
from coord.queries.fields import json_of

_FLEET_FIELDS = (
    "agent_type",
    "capabilities",
    "services",
    "tags",
    "labels",
    "capacity",
    "weight",
    "health_score",
    "rev",
    "metric:active_connections",
    "metric:pending_tasks",
)
#: An agent may report any number as its load from outside; above this, or below 0, none says more.
OUTSIDE_LOAD_MAX = 1_000_000


async def fleet(redis: Redis, keys: Keys, only: Iterable[str] | None = None) -> dict[str, FleetAgent]:
    """What placement sees of each agent that has a record, or of those in ``only``; read in one or two round trips."""
    wanted = list(only) if only is not None else await agent_ids(redis, keys)
    suspended = await suspended_agents(redis, keys)
    pipe = redis.pipeline(transaction=False)
    for agent_id in wanted:
        pipe.hmget(keys.agent(agent_id), _FLEET_FIELDS)
        pipe.sismember(keys.of("agents:active"), agent_id)
        pipe.scard(keys.inflight(agent_id))
    answers = await pipe.execute(raise_on_error=False)
    rows: dict[str, FleetAgent] = {}
    for agent_id, fields, active, load in zip(wanted, answers[::3], answers[1::3], answers[2::3], strict=True):
        wrong = next((one for one in (fields, active, load) if isinstance(one, Exception)), None)
        if wrong is not None:
            if "WRONGTYPE" not in str(wrong):
                raise wrong
            continue  # a key that is no agent's must not hide the others
        if fields[0] is not None:
            is_active = bool(active) and agent_id not in suspended
            rows[agent_id] = _fleet_agent(agent_id, fields, active=is_active, load=int(load))
    return rows


async def suspended_agents(redis: Redis, keys: Keys) -> set[str]:
    """Return the agents that dispatch gives nothing.

    Each returned a task unstarted, and the registry has handled no fact of the agent's since.
    """
    marks: dict[bytes, bytes] = await redis.execute_command("HGETALL", keys.of("suspended")) or {}
    pipe = redis.pipeline(transaction=False)
    for agent_id in marks:
        pipe.hmget(keys.agent(agent_id.decode()), "beat_id", "fact_id", "registered_id")
    answers = await pipe.execute() if marks else []
    return {
        agent_id.decode()
        for (agent_id, mark), facts in zip(marks.items(), answers, strict=True)
        if mark == b" ".join(fact or b"" for fact in facts)
    }


async def loads(redis: Redis, keys: Keys, agent_ids: Iterable[str]) -> dict[str, int]:
    """The true load of each of these agents."""
    wanted = list(agent_ids)
    pipe = redis.pipeline(transaction=False)
    for agent_id in wanted:
        pipe.scard(keys.inflight(agent_id))
    return dict(zip(wanted, await pipe.execute(), strict=True))


def _fleet_agent(agent_id: str, fields: Sequence[bytes | None], *, active: bool, load: int) -> FleetAgent:
    text = [None if value is None else value.decode() for value in fields]
    kind, capabilities, services, tags, labels, capacity, weight, health, rev, connections, pending = text
    return FleetAgent(
        agent_id=agent_id,
        agent_type=kind or "",
        capabilities=frozenset(json_of(capabilities) or ()),
        services=frozenset(json_of(services) or ()),
        tags=frozenset(json_of(tags) or ()),
        labels=json_of(labels) or {},
        capacity=int(capacity or 0),
        weight=float(weight or 1),
        health_score=float(health or 0),
        rev=int(rev or 0),
        active=active,
        load=load,
        outside_load=int(min(max(float(connections or 0) + float(pending or 0), 0), OUTSIDE_LOAD_MAX)),
    )
