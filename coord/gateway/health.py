"""``/health``: whether Redis takes writes and each kind of worker is there; said within a second, whatever happens."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from falcon.asgi import Request, Response
from msgspec import Struct
from redis.exceptions import RedisError

from coord import __version__, logs
from coord.errors import ServerUnavailable
from coord.gateway.backend import Backend
from coord.gateway.body import give
from coord.gateway.times import now
from coord.keys import CONSUMES

log = logs.get_logger()

SERVICE = "agent-coordinator"
#: How long Redis may take: probes give up after one or two seconds.
LOOK_S = 0.8


class Check(Struct, frozen=True, omit_defaults=True):
    """One thing that was looked at."""

    status: str  #: ok, failed, unknown
    message: str = ""
    workers: int | None = None


class Health(Struct, frozen=True, kw_only=True):
    """The body."""

    status: str  #: healthy, unhealthy
    service: str = SERVICE
    version: str = __version__
    timestamp: str
    checks: Mapping[str, Check]


class Checks:
    """Looks at Redis and the workers: one look at a time, however many ask."""

    def __init__(self, desk: Backend) -> None:
        self._desk = desk
        self._look: asyncio.Task[dict[str, Check]] | None = None

    async def look(self) -> dict[str, Check]:
        """``redis`` and each kind of worker -> what was found."""
        if self._look is None or self._look.done():
            self._look = asyncio.create_task(self._begin())
        return await asyncio.shield(self._look)

    async def _begin(self) -> dict[str, Check]:
        try:
            async with asyncio.timeout(LOOK_S):
                refusal = await self._desk.write_refusal()
                present = await self._desk.workers()
        except TimeoutError:
            why = f"no answer within {LOOK_S:g} s"
        except (RedisError, OSError, ServerUnavailable) as error:
            why = str(error)
        except Exception:
            log.exception("background.failed", task="health.look")
            why = "the look has failed; the gateway's log says how"
        else:
            redis = Check("failed", f"it refuses writes: {refusal}") if refusal else Check("ok")
            return {"redis": redis} | {kind: _found(kind, count) for kind, count in present.items()}
        return {"redis": Check("failed", why)} | {kind: Check("unknown") for kind in CONSUMES}


def _found(kind: str, count: int) -> Check:
    return Check("ok", workers=count) if count else Check("failed", f"no {kind} is running", 0)


class HealthResource:
    """``/health``, and ``/health/ready``, for which Redis is enough: what is appended waits for its worker."""

    def __init__(self, checks: Checks) -> None:
        self._checks = checks

    # 200 {"status": "healthy", "service": "agent-coordinator", "version": …, "timestamp": …, "checks": {"redis": …}}
    async def on_get(self, _req: Request, resp: Response) -> None:
        """503 when Redis is away or refuses writes, or a kind of worker is missing."""
        checks = await self._checks.look()
        _give(resp, checks, is_well=all(one.status == "ok" for one in checks.values()))

    async def on_get_ready(self, _req: Request, resp: Response) -> None:
        """503 when Redis is away or refuses writes."""
        checks = await self._checks.look()
        _give(resp, checks, is_well=checks["redis"].status == "ok")

    async def on_get_live(self, _req: Request, resp: Response) -> None:
        """This process answers."""
        _give(resp, {}, is_well=True)


def _give(resp: Response, checks: Mapping[str, Check], *, is_well: bool) -> None:
    body = Health(status="healthy" if is_well else "unhealthy", timestamp=now(), checks=checks)
    give(resp, body, 200 if is_well else 503)
    resp.set_header("Cache-Control", "no-store")
