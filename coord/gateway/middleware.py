"""Who is let in: no more requests at once than memory allows, and no web page from elsewhere.

There is no authentication yet, and every browser on this machine reaches its loopback. A page may not name this
gateway as its own (a name of its author's that leads to 127.0.0.1), nor post to it from another origin.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from falcon.asgi import Request, Response

from coord.config import Settings
from coord.gateway.errors import RequestError


class RequestGuard:
    """Looks at every request before its body is read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._at_work = 0

    async def process_request(self, req: Request, _resp: Response) -> None:
        """Refuse what may not come in."""
        self._at_work += 1
        if req.path.removeprefix("/v1").startswith("/health"):
            return  # it shows nothing, and a probe must be answered when all else is full
        if self._at_work > self._settings.gateway_requests:
            raise RequestError("overloaded", f"{self._settings.gateway_requests} requests are at work; try again")
        host = req.get_header("Host") or ""
        if not self._settings.gateway_allow_open and not _is_local_name(host):
            raise RequestError(
                "cross_origin", f"this gateway is not called {host[:200]!r}; use localhost or its address"
            )
        origin = req.get_header("Origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise RequestError("cross_origin", "requests from another origin's pages are not taken")

    async def process_response(self, _req: Request, _resp: Response, _resource: object, _ok: bool) -> None:
        """One less is at work; called for every request, refused ones too."""
        self._at_work -= 1


def _is_local_name(host: str) -> bool:
    """Whether a Host header is an address or ``localhost``: no name that a stranger's DNS may have led here."""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name in {"", "localhost"} or bool(ip_address(name))
    except ValueError:
        return False
