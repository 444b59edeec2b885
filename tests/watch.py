"""Looks at a fleet while it works: whether an agent has too much, or nothing while tasks wait."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from redis.asyncio import Redis

from coord.keys import Keys

#: What passes between two looks counts up to here: above, the machine stood still, and the workers with it.
STALL_S = 0.05


class Watch:
    """The highest load of an agent, and the longest time that one idled while tasks waited."""

    def __init__(self, redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> None:
        self.highest = 0
        self.longest_s = 0.0
        self._redis, self._keys, self._agent_ids = redis, keys, agent_ids
        self._idle_s: dict[int, float] = {}
        self._looked_at = asyncio.get_running_loop().time()

    async def look(self) -> None:
        """Once."""
        pipe = self._redis.pipeline(transaction=True)
        for agent_id in self._agent_ids:
            pipe.scard(self._keys.inflight(agent_id))
        pipe.hlen(self._keys.of("pools"))
        *found, waiting = await pipe.execute()
        self.highest = max(self.highest, *found)
        now = asyncio.get_running_loop().time()
        passed_s, self._looked_at = min(now - self._looked_at, STALL_S), now
        for number, load in enumerate(found):
            if load or not waiting:
                self._idle_s.pop(number, None)
            else:
                self._idle_s[number] = self._idle_s.get(number, -passed_s) + passed_s
                self.longest_s = max(self.longest_s, self._idle_s[number])

    async def look_on(self, until: asyncio.Event) -> None:
        """Again and again."""
        while not until.is_set():
            await self.look()
            await asyncio.sleep(0.002)


@asynccontextmanager
async def watched(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> AsyncIterator[Watch]:
    """Watch until the block ends."""
    watch, until = Watch(redis, keys, agent_ids), asyncio.Event()
    looking = asyncio.create_task(watch.look_on(until))
    try:
        yield watch
    finally:
        until.set()
        await looking
