"""``/health``: checks that Redis accepts writes, and each kind of worker; responds within a second in any case."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from falcon.asgi import Request, Response
from msgspec import Struct
from redis.exceptions import RedisError

from coord import __version__, logs
from coord.errors import CoordError
from coord.gateway.backend import Backend
from coord.gateway.body import respond
from coord.gateway.schemas import now
from coord.keys import CONSUMES

log = logs.get_logger()

SERVICE = "agent-coordinator"
#: Timeout for Redis: probes give up after one or two seconds.
CHECK_S = 0.8


class Check(Struct, frozen=True, omit_defaults=True):
    """The result of one check."""

    status: str  #: ok, failed, unknown
    message: str = ""
    workers: int | None = None


class Health(Struct, frozen=True, kw_only=True):
    """The response."""

    status: str  #: healthy, unhealthy
    service: str = SERVICE
    version: str = __version__
    timestamp: str
    checks: Mapping[str, Check]


class Checks:
    """Checks Redis and the workers; concurrent requests share one check."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._running: asyncio.Task[dict[str, Check]] | None = None

    async def run(self) -> dict[str, Check]:
        """Return the check of ``redis`` and of each kind of worker."""
        if self._running is None or self._running.done():
            self._running = asyncio.create_task(self._check())
        return await asyncio.shield(self._running)

    async def _check(self) -> dict[str, Check]:
        try:
            async with asyncio.timeout(CHECK_S):
                refusal = await self._backend.write_refusal()
                present = await self._backend.workers()
        except TimeoutError:
            reason = f"no answer within {CHECK_S:g} s"
        except (RedisError, OSError, CoordError) as error:
            reason = str(error.__cause__ or error)  # the cause alone says nothing about where Redis is
        except Exception:
            log.exception("background.failed", task="health.check")
            reason = "the check failed; the log of the gateway has the details"
        else:
            redis = Check("failed", f"it refuses writes: {refusal}") if refusal else Check("ok")
            return {"redis": redis} | {kind: _worker_check(kind, count) for kind, count in present.items()}
        return {"redis": Check("failed", reason)} | {kind: Check("unknown") for kind in CONSUMES}


def _worker_check(kind: str, count: int) -> Check:
    return Check("ok", workers=count) if count else Check("failed", f"no {kind} is running", 0)


class HealthResource:
    """``/health``; ``/health/ready``, which needs only Redis, since facts wait for their worker; ``/health/live``."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    # 200 {"status": "healthy", "service": "agent-coordinator", "version": …, "timestamp": …, "checks": {"redis": …}}
    async def on_get(self, _req: Request, resp: Response) -> None:
        """Return 503 if Redis is unavailable or refuses writes, or a kind of worker is missing."""
        checks = await self._checks.run()
        _respond(resp, checks, is_healthy=all(check.status == "ok" for check in checks.values()))

    async def on_get_ready(self, _req: Request, resp: Response) -> None:
        """Return 503 if Redis is unavailable or refuses writes."""
        checks = await self._checks.run()
        _respond(resp, checks, is_healthy=checks["redis"].status == "ok")

    async def on_get_live(self, _req: Request, resp: Response) -> None:
        """Return 200 while this process responds."""
        _respond(resp, {}, is_healthy=True)


def _respond(resp: Response, checks: Mapping[str, Check], *, is_healthy: bool) -> None:
    body = Health(status="healthy" if is_healthy else "unhealthy", timestamp=now(), checks=checks)
    respond(resp, body, 200 if is_healthy else 503)
    resp.set_header("Cache-Control", "no-store")
