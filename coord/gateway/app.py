"""The routes. Each path is served without a prefix and under ``/v1``; any other path gets a 404."""

from __future__ import annotations

from typing import Any

from falcon.asgi import App, Request, Response
from falcon.routing import BaseConverter

from coord.config import Settings
from coord.errors import IdInvalid
from coord.gateway import errors
from coord.gateway.agents import AgentResource, HeartbeatResource, RegisterResource
from coord.gateway.backend import Backend
from coord.gateway.body import PREFIX, RequestReader
from coord.gateway.health import Checks, HealthResource
from coord.gateway.middleware import RequestGuard
from coord.gateway.tasks import ExplainResource, PoolsResource, SubmitResource, TaskResource
from coord.models.ids import check_id


class IdConverter(BaseConverter):
    """A path segment that is a valid id. With any other segment, such as a reserved word, the path does not exist."""

    def convert(self, value: str) -> str | None:
        """Return the id; None if it is invalid."""
        try:
            return check_id(value, "id")
        except IdInvalid:
            return None


def make_app(backend: Backend, settings: Settings) -> App[Request, Response]:
    """Return the ASGI app."""
    app = App()
    app.add_middleware(RequestGuard(settings))
    errors.install(app)
    app.router_options.converters["id"] = IdConverter
    app.req_options.strip_url_path_trailing_slash = True
    reader = RequestReader(settings)
    health, task = HealthResource(Checks(backend)), TaskResource(backend)
    routes: list[tuple[str, Any, str | None]] = [
        ("/health", health, None),
        ("/health/live", health, "live"),
        ("/health/ready", health, "ready"),
        ("/agents/register", RegisterResource(backend, reader), None),
        ("/agents/{agent_id:id}", AgentResource(backend), None),
        ("/agents/{agent_id:id}/heartbeat", HeartbeatResource(backend, reader), None),
        ("/tasks/submit", SubmitResource(backend, reader), None),
        ("/tasks/{task_id:id}", task, None),
        ("/tasks/{task_id:id}/status", task, None),
        ("/tasks/{task_id:id}/explain", ExplainResource(backend), None),
        ("/pools", PoolsResource(backend), None),
    ]
    for path, resource, suffix in routes:
        for prefix in ("", PREFIX):
            app.add_route(prefix + path, resource, suffix=suffix)
    return app
