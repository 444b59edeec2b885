"""The routes, and the checks of a request before its body is read.

Each path is served without a prefix and under ``/v1``; any other path gets a 404.

``RequestGuard`` limits concurrent requests, and refuses requests from foreign web pages. There is no authentication
yet, and every browser on this machine reaches its loopback address. So the gateway refuses a Host header that is a
foreign name (DNS rebinding: a name of the attacker that resolves to 127.0.0.1), and a request from another origin.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from falcon.asgi import App, Request, Response
from falcon.routing import BaseConverter

from coord.config import Settings
from coord.errors import IdInvalid
from coord.gateway import errors
from coord.gateway.backend import Backend
from coord.gateway.body import PREFIX, RequestReader
from coord.gateway.discovery import CapabilityResource, DiscoverResource, ServiceResource
from coord.gateway.errors import RequestError
from coord.gateway.health import Checks, HealthResource
from coord.gateway.resources import (
    AgentResource,
    ExplainResource,
    HeartbeatResource,
    PoolsResource,
    RegisterResource,
    SubmitResource,
    TaskResource,
)
from coord.gateway.rules import StrategyHistoryResource, StrategyResource
from coord.models.ids import check_id


class RequestGuard:
    """Checks every request before its body is read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._active = 0

    async def process_request(self, req: Request, _resp: Response) -> None:
        """Refuse a request over the limit or from a foreign web page."""
        self._active += 1
        if req.path.removeprefix(PREFIX).startswith("/health"):
            return  # health reveals nothing, and a probe needs a response even when the gateway is full
        if self._active > self._settings.gateway_requests:
            raise RequestError("overloaded", f"{self._settings.gateway_requests} requests are active; try again")
        host = req.get_header("Host") or ""
        if not self._settings.gateway_security and not _is_local_name(host):
            raise RequestError(
                "cross_origin",
                f"the Host header {host[:200]!r} is not a name of this gateway; use localhost or its IP address",
            )
        origin = req.get_header("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError("cross_origin", "requests from web pages of another origin are refused")

    async def process_response(self, _req: Request, _resp: Response, _resource: object, _ok: bool) -> None:
        """Count the request as done; falcon calls this for refused requests too."""
        self._active -= 1


def _is_local_name(host: str) -> bool:
    """Return True if a Host header is an address or ``localhost``, so no foreign DNS can have led the browser here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in {"", "localhost"} or bool(ip_address(name))
    except ValueError:
        return False


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
    app.req_options.keep_blank_qs_values = True  # an empty value is refused, not ignored
    reader = RequestReader(settings)
    health, task = HealthResource(Checks(backend)), TaskResource(backend)
    routes: list[tuple[str, Any, str | None]] = [
        ("/health", health, None),
        ("/health/live", health, "live"),
        ("/health/ready", health, "ready"),
        ("/agents/register", RegisterResource(backend, reader), None),
        ("/agents/discover", DiscoverResource(backend, reader), None),
        ("/agents/service/{service:path}", ServiceResource(backend), None),
        ("/agents/capability/{capability:path}", CapabilityResource(backend), None),
        ("/agents/{agent_id:id}", AgentResource(backend), None),
        ("/agents/{agent_id:id}/heartbeat", HeartbeatResource(backend, reader), None),
        ("/tasks/submit", SubmitResource(backend, reader), None),
        ("/tasks/{task_id:id}", task, None),
        ("/tasks/{task_id:id}/status", task, None),
        ("/tasks/{task_id:id}/explain", ExplainResource(backend), None),
        ("/pools", PoolsResource(backend), None),
        ("/load-balancer/strategy", StrategyResource(backend, reader), None),
        ("/load-balancer/strategy/history", StrategyHistoryResource(backend), None),
    ]
    for path, resource, suffix in routes:
        for prefix in ("", PREFIX):
            app.add_route(prefix + path, resource, suffix=suffix)
    return app
