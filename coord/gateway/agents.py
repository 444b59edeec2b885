"""What is posted and asked about agents."""

from __future__ import annotations

from falcon.asgi import Request, Response

from coord.gateway.backend import Backend
from coord.gateway.body import give
from coord.gateway.exchange import RequestBody
from coord.gateway.requests import HeartbeatBody, RegisterAgent
from coord.gateway.schemas import AgentFound, HeartbeatTaken, Registered


class RegisterResource:
    """``/agents/register``."""

    def __init__(self, desk: Backend, exchange: RequestBody) -> None:
        self._desk = desk
        self._exchange = exchange

    # POST {"agent_id": "a1", "agent_type": "worker", "capabilities": ["ocr"], "tags": ["fast"]}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "registered_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response) -> None:
        """Register an agent; again with the same id, it is updated."""
        asked = await self._exchange.read(req, RegisterAgent)
        at, answered = await self._desk.register(asked.fact(), self._exchange.wait_s(req))
        body = Registered(agent_id=asked.agent_id, registered_at=at)
        self._exchange.give_written(req, resp, body, answered=answered, path=f"/agents/{asked.agent_id}")


class AgentResource:
    """``/agents/{id}``."""

    def __init__(self, desk: Backend) -> None:
        self._desk = desk

    # 200 {"status": "success", "agent": {"agent_id": "a1", "status": "active", …}, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, agent_id: str) -> None:
        """An agent's record."""
        give(resp, AgentFound.of(await self._desk.agent(agent_id)))


class HeartbeatResource:
    """``/agents/{id}/heartbeat``."""

    def __init__(self, desk: Backend, exchange: RequestBody) -> None:
        self._desk = desk
        self._exchange = exchange

    # POST without a body, or {"status": "busy", "load_metrics": {"cpu": 0.4}}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "heartbeat_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response, agent_id: str) -> None:
        """A sign of life."""
        beat, wait_s = await self._exchange.read(req, HeartbeatBody), self._exchange.wait_s(req)
        at, answered = await self._desk.beat(agent_id, beat.status, beat.load_metrics, wait_s)
        body = HeartbeatTaken(agent_id=agent_id, heartbeat_at=at)
        self._exchange.give_written(req, resp, body, answered=answered, path=f"/agents/{agent_id}")
