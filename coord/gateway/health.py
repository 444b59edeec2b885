"""Handlers of health: ``/health``, ``/health/ready`` (only Redis, since facts wait for workers), ``/health/live``."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from coord import __version__
from coord.gateway.checks import Check
from coord.gateway.routes import Answer, Call
from coord.gateway.schemas import now

SERVICE = "agent-coordinator"


class Health(Struct, frozen=True, kw_only=True):
    """The response."""

    status: str  #: healthy, unhealthy
    service: str = SERVICE
    version: str = __version__
    timestamp: str
    checks: Mapping[str, Check]


async def all_checks(call: Call[None, None]) -> Answer:
    """Return 503 if Redis is unavailable or refuses writes, or a kind of worker is missing."""
    checks = await call.gateway.checks.run()
    return _answer(checks, is_healthy=all(check.status == "ok" for check in checks.values()))


async def ready(call: Call[None, None]) -> Answer:
    """Return 503 if Redis is unavailable or refuses writes: facts wait for their worker."""
    checks = await call.gateway.checks.run()
    return _answer(checks, is_healthy=checks["redis"].status == "ok")


async def live(_call: Call[None, None]) -> Answer:
    """Return 200 while this process responds."""
    return _answer({}, is_healthy=True)


def _answer(checks: Mapping[str, Check], *, is_healthy: bool) -> Answer:
    body = Health(status="healthy" if is_healthy else "unhealthy", timestamp=now(), checks=checks)
    return Answer(body, 200 if is_healthy else 503, {"Cache-Control": "no-store"})
