"""Handlers of the service's own description: ``/``, the OpenAPI document, and the page that shows it.

The page is made of the gateway's own files, so it works without any other host.
"""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from msgspec import Struct

from coord import __version__
from coord.gateway.health import SERVICE
from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import now

DESCRIPTION = "Agents advertise capabilities and clients submit tasks; the coordinator distributes them"
#: The files change with the version of the gateway only.
_CACHED = {"Cache-Control": "max-age=300"}


class Root(Struct, frozen=True, kw_only=True):
    """GET /."""

    status: str = "success"
    service: str = SERVICE
    description: str = DESCRIPTION
    version: str = __version__
    endpoints: dict[str, list[str]]  #: path -> its methods
    timestamp: str


async def root(call: Call[None, None]) -> Root:
    """Return the service, its version and its endpoints."""
    return Root(endpoints=call.gateway.endpoints, timestamp=now())


async def openapi(call: Call[None, None]) -> Answer:
    """Return the OpenAPI 3.1 document of this gateway."""
    return Answer(call.gateway.document(), 200, _CACHED)


async def page(_call: Call[None, None]) -> Answer:
    """Return the page that shows the OpenAPI document and sends requests."""
    return Answer(_file("docs.html"), 200, _CACHED, "text/html; charset=utf-8")


async def script(_call: Call[None, None]) -> Answer:
    """Return the script of the page."""
    return Answer(_file("docs.js"), 200, _CACHED, "text/javascript; charset=utf-8")


async def style(_call: Call[None, None]) -> Answer:
    """Return the style of the page."""
    return Answer(_file("docs.css"), 200, _CACHED, "text/css; charset=utf-8")


@cache
def _file(name: str) -> bytes:
    return (files("coord.gateway") / "page" / name).read_bytes()
