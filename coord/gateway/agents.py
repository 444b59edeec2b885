"""Handlers of agents: register one, record its heartbeat, change its status, deregister it, return it.

``drain``, ``maintain`` and ``resume`` are requests of operators, which override what the agent itself reports.
"""

from __future__ import annotations

from msgspec import Struct

from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import (
    AgentFound,
    AgentOperated,
    Deregistered,
    HeartbeatBody,
    HeartbeatReceived,
    RegisterAgent,
    Registered,
    StatusBody,
    StatusChanged,
    now,
)


async def register(call: Call[RegisterAgent, None]) -> Struct | Answer:
    """Register an agent; an id that is registered already is updated."""
    at, answered = await call.backend.register(call.body.fact(), call.wait_s, call.bearer_token)
    agent_id = call.body.agent_id
    return written(call, Registered(agent_id=agent_id, registered_at=at), answered=answered, path=f"/agents/{agent_id}")


async def get(call: Call[None, None]) -> AgentFound:
    """Return an agent's record."""
    return AgentFound.of(await call.backend.agent(call.params["agent_id"]))


async def heartbeat(call: Call[HeartbeatBody, None]) -> Struct | Answer:
    """Record a heartbeat."""
    agent_id, body = call.params["agent_id"], call.body
    at, answered = await call.backend.heartbeat(
        agent_id, body.status, body.load_metrics, call.wait_s, call.bearer_token
    )
    received = HeartbeatReceived(agent_id=agent_id, heartbeat_at=at)
    return written(call, received, answered=answered, path=f"/agents/{agent_id}")


async def change_status(call: Call[StatusBody, None]) -> Struct | Answer:
    """Change an agent's status, and merge the load metrics that it reports."""
    agent_id, body = call.params["agent_id"], call.body
    at, answered = await call.backend.change_status(
        agent_id, body.status, body.load_metrics, call.wait_s, call.bearer_token
    )
    changed = StatusChanged(agent_id=agent_id, new_status=body.status, updated_at=at)
    return written(call, changed, answered=answered, path=f"/agents/{agent_id}")


async def deregister(call: Call[None, None]) -> Struct | Answer:
    """Deregister an agent: its tasks go to others, and its record stays for a while."""
    agent_id = call.params["agent_id"]
    _, answered = await call.backend.deregister(agent_id, call.wait_s, call.bearer_token)
    return written(call, Deregistered(agent_id=agent_id), answered=answered, path=f"/agents/{agent_id}")


async def drain(call: Call[None, None]) -> Struct | Answer:
    """Let an agent finish its tasks and assign it nothing new, whatever it reports, until it is resumed."""
    return await _operate(call, "drain", "The agent drains")


async def maintain(call: Call[None, None]) -> Struct | Answer:
    """Put an agent into maintenance: as a drain, with a status of its own."""
    return await _operate(call, "maintain", "The agent is in maintenance")


async def resume(call: Call[None, None]) -> Struct | Answer:
    """End the draining or the maintenance of an agent: it has the status again that it reports."""
    return await _operate(call, "resume", "The agent is resumed")


async def _operate(call: Call[None, None], request: str, message: str) -> Struct | Answer:
    agent_id = call.params["agent_id"]
    status = await call.backend.operate(agent_id, request, call.wait_s)
    body = AgentOperated(message=message, agent_id=agent_id, new_status=status, timestamp=now())
    return written(call, body, answered=status is not None, path=f"/agents/{agent_id}")
