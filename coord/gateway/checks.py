"""Checks that Redis accepts writes, and that each kind of worker runs; within a second in any case."""

from __future__ import annotations

import asyncio

from msgspec import Struct
from redis.exceptions import RedisError

from coord import logs
from coord.errors import CoordError
from coord.gateway.backend import Backend
from coord.keys import CONSUMES

log = logs.get_logger()

#: Timeout for Redis: probes give up after one or two seconds.
CHECK_S = 0.8


class Check(Struct, frozen=True, omit_defaults=True):
    """The result of one check."""

    status: str  #: ok, failed, unknown
    message: str = ""
    workers: int | None = None


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
