"""Admission of requests: a limit on concurrent requests, and no requests from foreign web pages.

There is no authentication yet, and every browser on this machine reaches its loopback address. So the gateway refuses
a Host header that is a foreign name (DNS rebinding: a name of the attacker that resolves to 127.0.0.1), and a request
from another origin.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from falcon.asgi import Request, Response

from coord.config import Settings
from coord.gateway.body import PREFIX
from coord.gateway.errors import RequestError


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
        if not self._settings.gateway_allow_open and not _is_local_name(host):
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
