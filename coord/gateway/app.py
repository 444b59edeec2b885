"""The table of paths. Each is answered without a prefix and under ``/v1``; what is not here is answered 404."""

from __future__ import annotations

from typing import Any

from falcon.asgi import App, Request, Response
from falcon.routing import BaseConverter

from coord.config import Settings
from coord.errors import IdInvalid
from coord.gateway import errors
from coord.gateway.agents import AgentResource, HeartbeatResource, RegisterResource
from coord.gateway.backend import Backend
from coord.gateway.exchange import PREFIX, RequestBody
from coord.gateway.health import Checks, HealthResource
from coord.gateway.middleware import RequestGuard
from coord.gateway.tasks import SubmitResource, TaskResource
from coord.models.ids import check_id


class IdConverter(BaseConverter):
    """A path segment that may be an id. Another one, such as a reserved word, is a path that is not there."""

    def convert(self, value: str) -> str | None:
        """The id, or None."""
        try:
            return check_id(value, "id")
        except IdInvalid:
            return None


def make_app(desk: Backend, settings: Settings) -> App[Request, Response]:
    """The app that answers with what ``desk`` says."""
    app = App()
    app.add_middleware(RequestGuard(settings))
    errors.install(app)
    app.router_options.converters["id"] = IdConverter
    app.req_options.strip_url_path_trailing_slash = True
    exchange = RequestBody(settings)
    health, task = HealthResource(Checks(desk)), TaskResource(desk)
    routes: list[tuple[str, Any, str | None]] = [
        ("/health", health, None),
        ("/health/live", health, "live"),
        ("/health/ready", health, "ready"),
        ("/agents/register", RegisterResource(desk, exchange), None),
        ("/agents/{agent_id:id}", AgentResource(desk), None),
        ("/agents/{agent_id:id}/heartbeat", HeartbeatResource(desk, exchange), None),
        ("/tasks/submit", SubmitResource(desk, exchange), None),
        ("/tasks/{task_id:id}", task, None),
        ("/tasks/{task_id:id}/status", task, None),
    ]
    for path, resource, suffix in routes:
        for prefix in ("", PREFIX):
            app.add_route(prefix + path, resource, suffix=suffix)
    return app
