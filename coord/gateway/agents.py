"""Resources of agents: register one, send its heartbeat, get one."""

from __future__ import annotations

from falcon.asgi import Request, Response

from coord.gateway.backend import Backend
from coord.gateway.body import RequestReader, respond, respond_to_write
from coord.gateway.schemas import AgentFound, HeartbeatBody, HeartbeatReceived, RegisterAgent, Registered


class RegisterResource:
    """``/agents/register``."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # POST {"agent_id": "a1", "agent_type": "worker", "capabilities": ["ocr"], "tags": ["fast"]}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "registered_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response) -> None:
        """Register an agent; an id that is registered already is updated."""
        body = await self._reader.read(req, RegisterAgent)
        at, answered = await self._backend.register(body.fact(), self._reader.wait_s(req))
        registered = Registered(agent_id=body.agent_id, registered_at=at)
        respond_to_write(req, resp, registered, answered=answered, path=f"/agents/{body.agent_id}")


class AgentResource:
    """``/agents/{id}``."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend

    # 200 {"status": "success", "agent": {"agent_id": "a1", "status": "active", …}, "timestamp": …}
    async def on_get(self, _req: Request, resp: Response, agent_id: str) -> None:
        """Return an agent's record."""
        respond(resp, AgentFound.of(await self._backend.agent(agent_id)))


class HeartbeatResource:
    """``/agents/{id}/heartbeat``."""

    def __init__(self, backend: Backend, reader: RequestReader) -> None:
        self._backend = backend
        self._reader = reader

    # POST without a body, or {"status": "busy", "load_metrics": {"cpu": 0.4}}
    # 200 {"status": "success", "message": …, "agent_id": "a1", "heartbeat_at": "2026-01-01T00:00:00.000+00:00"}
    async def on_post(self, req: Request, resp: Response, agent_id: str) -> None:
        """Record a heartbeat."""
        body, wait_s = await self._reader.read(req, HeartbeatBody), self._reader.wait_s(req)
        at, answered = await self._backend.heartbeat(agent_id, body.status, body.load_metrics, wait_s)
        received = HeartbeatReceived(agent_id=agent_id, heartbeat_at=at)
        respond_to_write(req, resp, received, answered=answered, path=f"/agents/{agent_id}")
