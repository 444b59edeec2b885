"""The presence of this gateway, so that ``coord ps`` lists it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections.abc import Callable

from redis.exceptions import NoPermissionError, RedisError

from coord import __version__, logs
from coord.background import cancel_and_wait, keep
from coord.client.presence import end_presence, record_presence
from coord.clock import now_ms
from coord.errors import CoordError
from coord.gateway.backend import Backend
from coord.keys import GATEWAY

log = logs.get_logger()

#: Seconds that the last record may take.
LEAVING_S = 1.0


class Presence:
    """Records every few seconds that this process is alive.

    Args:
        backend: its client.
        requests: returns the number of requests that were answered.
    """

    def __init__(self, backend: Backend, requests: Callable[[], int]) -> None:
        self.name = f"gateway-{socket.gethostname()}-{os.getpid()}"
        self._backend = backend
        self._requests = requests
        self._started_at = now_ms()
        self._last = (asyncio.get_running_loop().time(), 0)
        self._is_forbidden = False
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin."""
        self._task = keep("gateway.presence", self._keep)

    async def end(self) -> None:
        """Record that the gateway leaves."""
        await cancel_and_wait(self._task)
        with contextlib.suppress(CoordError, RedisError, OSError):  # a TimeoutError is an OSError
            async with asyncio.timeout(LEAVING_S):
                await end_presence(self._backend.client.connection, GATEWAY, self.name)

    async def _keep(self) -> None:
        ttl_s = self._backend.settings.presence_ttl_s
        while True:
            try:
                connection = self._backend.client.connection
                await record_presence(connection, GATEWAY, self.name, self._fields(), ttl_s)
                wait_s = ttl_s / 3
            except NoPermissionError as error:
                if not self._is_forbidden:
                    log.warning("presence.forbidden", error=str(error), next="apply `coord acl gateway` again")
                self._is_forbidden, wait_s = True, ttl_s / 3
            except (CoordError, RedisError, OSError):
                wait_s = ttl_s / 15  # Redis is away: requests say so
            await asyncio.sleep(wait_s)

    def _fields(self) -> dict[str, str | int | float]:
        now, count = asyncio.get_running_loop().time(), self._requests()
        (last, before), self._last = self._last, (now, count)
        return {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "version": __version__,
            "started_at": self._started_at,
            "handled": count,
            "per_s": round((count - before) / (now - last), 1) if now > last else 0,
            "lag_ms": 0,
            "idle_ms": 0,
        }
