"""Limits of the rate of requests, kept in Redis so that they hold across gateways.

The counts are of fixed windows; the count of the window before is weighted with the share of it that is less than a
window ago (as nginx's and Cloudflare's sliding counters are). A gateway takes several requests at once and passes them
without Redis: one at first, then as many as it has passed in this window, up to a sixteenth of the limit. So a caller
that sends little is counted exactly, one that sends much costs a round trip for many requests, and at most a sixteenth
of the limit is wasted for each gateway. A refusal is remembered until the caller may send again.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable

from coord.gateway.credential_store import CredentialStore

WINDOW_MS = 60_000
#: Largest share of a limit that a gateway takes at once.
PARTS = 16
#: Callers that are remembered.
CALLERS = 10_000


class Lease:
    """Requests of one caller that this gateway may pass in a window."""

    __slots__ = ("left", "lock", "passed", "refused_until", "window")

    def __init__(self, window: int) -> None:
        self.window = window
        self.left = 0
        self.passed = 0
        self.refused_until = 0.0
        self.lock = asyncio.Lock()


class RateLimits:
    """Counts requests.

    Args:
        store: where the counts are.
        now: returns ms since 1970 on the server's clock.
    """

    def __init__(self, store: CredentialStore, now: Callable[[], Awaitable[float]]) -> None:
        self._store = store
        self._now = now
        self._leases: dict[str, Lease] = {}

    async def take(self, caller: str, limit: int) -> float:
        """Count one request of a caller.

        Args:
            caller: whose requests are counted together.
            limit: of requests in a minute.

        Returns: 0 if the request may pass, else the seconds until one may.
        """
        now = await self._now()
        lease = self._lease(caller, int(now // WINDOW_MS))
        if lease.left == 0:
            if now < lease.refused_until:
                return (lease.refused_until - now) / 1000
            async with lease.lock:
                if lease.left == 0 and now >= lease.refused_until:
                    await self._extend(caller, lease, limit, now)
            if lease.left == 0:
                return max(0.001, (lease.refused_until - now) / 1000)
        lease.left -= 1
        lease.passed += 1
        return 0.0

    async def refused_for(self, caller: str) -> float:
        """Return the seconds for which this gateway already knows that a caller is refused; 0: it does not."""
        lease = self._leases.get(caller)
        if lease is None or not lease.refused_until:
            return 0.0
        return max(0.0, (lease.refused_until - await self._now()) / 1000)

    async def _extend(self, caller: str, lease: Lease, limit: int, now: float) -> None:
        wanted = max(1, min(lease.passed, limit // PARTS))
        used, before = await self._store.count(caller, lease.window, wanted)
        share = 1 - now % WINDOW_MS / WINDOW_MS
        room = limit - math.ceil(before * share) - (used - wanted)
        lease.left = max(0, min(wanted, room))
        if lease.left < wanted:
            await self._store.count(caller, lease.window, lease.left - wanted)
        if lease.left == 0:
            lease.refused_until = now + _wait_ms(limit, used - wanted, before, now)

    def _lease(self, caller: str, window: int) -> Lease:
        lease = self._leases.get(caller)
        if lease is None or lease.window != window:
            earlier, lease = lease, Lease(window)
            if earlier is not None:
                lease.refused_until = earlier.refused_until
                del self._leases[caller]  # the newest are last
            self._leases[caller] = lease
            if len(self._leases) > CALLERS:
                del self._leases[next(iter(self._leases))]
        return lease


def _wait_ms(limit: int, used: int, before: int, now: float) -> float:
    """Return the ms until there is room for one request, if none comes meanwhile."""
    left = WINDOW_MS - now % WINDOW_MS
    if used < limit and before > 0:  # as soon as little enough of the window before counts
        return max(1.0, left - (limit - used - 1) / before * WINDOW_MS)
    return left + max(0.0, 1 - (limit - 1) / max(1, used)) * WINDOW_MS
