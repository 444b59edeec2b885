"""Follows the table of waiting pools for a planner: reads its changes, in pieces; the whole table only if it has to.

What was read never overwrites a script's answer that came meanwhile: such a pool is read again in the next look. A look
that fails leaves the table stale, so the next one starts from the same revision.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice

from redis.asyncio import Redis

from coord import logs, queries
from coord.keys import Keys
from coord.models.tasks import Pool, is_named
from coord.queries.reads import chunks
from workers.planner import Planner

log = logs.get_logger()

#: Pools read in one round trip.
CHUNK = 1_000
#: Named queues read in one round trip: of each, up to some hundred tasks.
NAMED_CHUNK = 32
#: Checks in a row that find more pools in the table than known here, or fewer, until the whole table is read.
LOOKS_OFF = 5
#: Pools whose lengths and heads are refreshed in each check, of those that agents can serve.
REFRESHED = 1_000


class PoolTable:
    """Keeps the planner's table of waiting pools as the server has it."""

    def __init__(self, redis: Redis, keys: Keys, planner: Planner) -> None:
        self.redis = redis
        self.keys = keys
        self.planner = planner
        self._reading = asyncio.Lock()  # one reading at a time
        self._off: deque[int] = deque(maxlen=LOOKS_OFF)  # differences in the number of pools, of the last checks
        self._allowed_off = 0  # difference that a full read left: rows of the table without tasks
        self._has_reread = False

    async def look(self) -> None:
        """Bring the table up to date if it changed; one round trip if it did not."""
        async with self._reading:
            await self._look()

    async def check(self) -> None:
        """Do the same, refresh what others may have changed, and compare the number of pools."""
        async with self._reading:
            count = await self._look()
            await self._refresh(self.planner.sample(REFRESHED))
            self.planner.reread_blocked()
            await self._read_lengths()
            self._judge(count - len(self.planner.waiting))

    async def read_lengths(self) -> None:
        """Read the lengths of pools that an agent has become able to serve."""
        async with self._reading:
            await self._read_lengths()

    async def _look(self) -> int:
        """Read what has changed; return the number of pools in the table."""
        planner = self.planner
        since, forgotten = planner.pools_rev, planner.forgotten
        planner.is_stale = False  # answers from now on count for the next look
        planner.reported = set()
        unknown: set[str] = set()
        is_done = False
        try:
            changes = await queries.get_pool_changes(self.redis, self.keys, since)
            if planner.forgotten == forgotten:
                unknown, planner.unknown = planner.unknown, set()
                if changes.pools is None:
                    # Answers of scripts from here on continue from this revision.
                    planner.pools_rev = changes.rev
                    planner.reorder(planner.waiting)  # perhaps
                    await self._read_all()
                else:
                    planner.pools_rev = max(planner.pools_rev, changes.rev)
                    planner.reorder(changes.pools)
                    await self._read(unknown.union(changes.pools))
                is_done = planner.forgotten == forgotten
            return changes.count
        finally:
            planner.reported = None
            if not is_done:
                planner.is_stale = True
                if planner.forgotten == forgotten:
                    planner.pools_rev = since
                    planner.unknown |= unknown

    async def _read(self, pools: Iterable[str]) -> None:
        """Read whether these pools are in the table."""
        rest = iter(pools)
        while some := list(islice(rest, CHUNK)):
            rows = await queries.get_pool_rows(self.redis, self.keys, some)
            await self._take_over(rows)
            for pool in some:
                if pool not in rows and not self._is_newer(pool):
                    self.planner.remove(pool)

    async def _read_all(self) -> None:
        """Read the whole table; other work continues meanwhile."""
        unseen = set(self.planner.waiting)
        log.info("pools.read", known=len(unseen))
        async for rows in queries.scan_pools(self.redis, self.keys):
            unseen.difference_update(rows)
            await self._take_over(rows)
            await asyncio.sleep(0)
        await self._read(unseen)
        self._off.clear()

    async def _take_over(self, rows: Mapping[str, bytes]) -> None:
        """Take over rows of the table."""
        planner, forgotten = self.planner, self.planner.forgotten
        new = {pool: raw for pool, raw in rows.items() if pool not in planner.waiting}
        definitions: Mapping[str, Pool] = {}
        if new:
            definitions = await queries.get_pool_definitions(self.redis, self.keys, new, planner.definitions)
        if planner.forgotten != forgotten:
            return
        for pool in new:
            if self._is_newer(pool):
                continue
            if pool in definitions:
                planner.learn(pool, definitions[pool])
            else:
                planner.unknown.add(pool)  # the next look tries again
        await self._read_lengths()

    async def _read_lengths(self) -> None:
        while some := list(islice(self.planner.unread, CHUNK)):
            await self._refresh([pool for pool in some if not is_named(pool)])
            for few in chunks([pool for pool in some if is_named(pool)], NAMED_CHUNK):
                await self._read_named(few)

    async def _read_named(self, pools: Sequence[str]) -> None:
        """Read the first tasks of named queues. Those that have left meanwhile are GONE when they are planned."""
        planner, outer, forgotten = self.planner, self.planner.reported, self.planner.forgotten
        planner.reported = set()
        try:
            orders = {pool: planner.order_of(pool) for pool in pools}
            wanted = {pool: planner.wanted_of(pool) for pool in pools}
            found = await queries.get_named_tasks(self.redis, self.keys, wanted)
            if planner.forgotten == forgotten:
                for pool, (length, tasks) in found.items():
                    known = None if pool in planner.reported else length
                    planner.measure_named(pool, tasks, known, order=orders[pool])
        finally:
            if outer is not None:
                outer |= planner.reported
            planner.reported = outer

    async def _refresh(self, pools: list[str]) -> None:
        if not pools:
            return
        planner, outer, forgotten = self.planner, self.planner.reported, self.planner.forgotten
        planner.reported = set()
        try:
            lengths = await queries.get_pool_lengths(self.redis, self.keys, pools)
            if planner.forgotten == forgotten:
                for pool, (length, head) in lengths.items():
                    if pool not in planner.reported:
                        planner.measure(pool, length, head)
        finally:
            if outer is not None:
                outer |= planner.reported
            planner.reported = outer

    def _is_newer(self, pool: str) -> bool:
        """Return True if a script's answer may be newer than what was read of a pool; the next look reads it again."""
        if pool not in (self.planner.reported or ()):
            return False
        self.planner.unknown.add(pool)
        self.planner.is_stale = True
        return True

    def _judge(self, more: int) -> None:
        """Have the whole table read if the last checks all had too few pools, or all had too many."""
        self._off.append(more - self._allowed_off)
        if 0 in self._off:
            self._has_reread = False
        if len(self._off) < LOOKS_OFF or not (min(self._off) > 0 or max(self._off) < 0):
            return
        off = min(self._off, key=abs)
        self._off.clear()
        if self._has_reread:
            self._allowed_off += off
            return
        log.warning("pools.differ", by=off)
        self._has_reread = True
        self.planner.pools_rev = -1
        self.planner.is_stale = True
