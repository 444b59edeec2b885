"""A client, and the test in the place of all workers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from coord import Client
from coord.client import watcher
from coord.config import Settings
from coord.embedded import EmbeddedServer
from coord.keys import Keys


class PlayedWorkers:
    """One namespace, its client, and the test in the place of all workers."""

    def __init__(self, redis: Redis, client: Client) -> None:
        self.redis = redis
        self.client = client
        self.keys = Keys(client.settings.namespace)

    async def reply(self, **fields: str | bytes) -> None:
        """Append to the client's replies."""
        values: dict[Any, Any] = dict(fields)
        await self.redis.xadd(self.keys.replies(self.client.caller), values)

    async def answer(self, entry: str, code: str = "", *, stream: str = "in:tasks:normal") -> None:
        """Answer a fact."""
        values = {"stream": stream, "fact": entry, "ok": "0" if code else "1", "code": code, "message": f"why {code}"}
        await self.reply(type="fact.answered", **values)

    async def record(
        self, task_id: str, state: str, *, submitted_at: int = 9_999_999_999_999, **fields: str | bytes
    ) -> None:
        """Write a task's record."""
        values: dict[Any, Any] = {"state": state, "submission": f"normal  0 {submitted_at} 0 p1 d1", **fields}
        await self.redis.hset(self.keys.task(task_id), mapping=values)

    async def consume(self, entry: str, stream: str = "in:tasks:normal") -> None:
        """Take a submission out of its stream."""
        await self.redis.xdel(self.keys.of(stream), entry)


@asynccontextmanager
async def workers_of_a_client(
    server: EmbeddedServer, redis: Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[PlayedWorkers]:
    """A client that looks at records often."""
    monkeypatch.setattr(watcher, "RECORD_INTERVAL_S", 0.05)
    monkeypatch.setattr(watcher, "ROUND_S", 0.01)
    async with Client(server.url, settings=settings) as client:
        yield PlayedWorkers(redis, client)
