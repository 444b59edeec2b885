"""Plays the coordinator to an agent: answers its registration, and writes inbox entries as the scripts would."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from coord import codec
from coord.background import cancel_and_wait
from coord.codec import decode_fact, encode
from coord.config import MIB, Settings
from coord.keys import Keys
from coord.models.facts import AgentRegistered, Fact, TasksCompleted
from tests.waiting import wait_until

F = TypeVar("F", bound=Struct)


class PlayedCoordinator:
    """One namespace without workers. Facts that are appended stay in their streams."""

    def __init__(self, redis: Redis, settings: Settings) -> None:
        self.redis = redis
        self.settings = settings
        self.keys = Keys(settings.namespace)
        self.answers: dict[str, str] = {}  #: type of fact -> the error code that it is answered with
        self._count = 0
        self._cursor: bytes = b"0"

    async def assign(
        self,
        agent_id: str,
        task_type: str,
        payload: Any = None,
        *,
        lane: str = "normal",
        lease: str | None = None,
        task_id: str | None = None,
        incarnation: str = "",
        entry: str = "*",
    ) -> str:
        """Append an assignment as dispatch.lua does; its lease."""
        self._count += 1
        lease = lease or f"{self._count:016x}"
        task_id = task_id or f"task-{self._count}"
        body = encode({"task_id": task_id, "task_type": task_type, "payload": {} if payload is None else payload})
        fields: dict[Any, Any] = {"message_type": "task_assignment", "data": body, "task_id": task_id, "lease": lease}
        fields |= {"attempt": "1", "incarnation": incarnation}
        await self.redis.xadd(self.keys.inbox(agent_id, lane), fields, id=entry)
        return lease

    async def order_stop(self, agent_id: str, lease: str, reason: str = "cancelled") -> None:
        """Append the order to stop a task as the scripts do."""
        fields: dict[Any, Any] = {"message_type": "coordination", "data": "{}", "order": "stop_task"}
        fields |= {"task_id": "any", "lease": lease, "reason": reason}
        await self.redis.xadd(self.keys.inbox(agent_id, "critical"), fields)

    async def order_list(self, agent_id: str, ask: str) -> None:
        """Append the question which leases an agent holds as the scripts do."""
        fields: dict[Any, Any] = {"message_type": "coordination", "data": "{}", "order": "list_leases", "ask": ask}
        await self.redis.xadd(self.keys.inbox(agent_id, "critical"), fields)

    async def deliver(
        self,
        agent_id: str,
        message_id: str,
        *,
        expires_at: int,
        lane: str = "normal",
        sender_id: str = "sender",
        reply_to: str | None = None,
    ) -> None:
        """Append a message as deliver.lua does."""
        fields: dict[Any, Any] = {"message_type": "direct", "data": encode(message_id), "id": message_id}
        fields |= {"sender_id": sender_id, "receiver_id": agent_id, "priority": lane}
        fields |= {} if reply_to is None else {"reply_to": reply_to}
        fields |= {"timestamp": "1", "expires_at": str(expires_at)}
        await self.redis.xadd(self.keys.inbox(agent_id, lane), fields)

    async def entries(self, stream: str, after: bytes = b"0") -> list[tuple[bytes, dict[bytes, bytes]]]:
        """What lies in an ingress stream after an entry."""
        found: Any = await self.redis.xrange(self.keys.of(stream), f"({after.decode()}", "+")
        return list(found)

    async def facts(self, stream: str) -> list[Fact]:
        """The same, decoded as the workers would; of what one entry tells of several tasks, each."""
        decoded = [decode_fact(stream, fields, MIB) for _id, fields in await self.entries(stream)]
        return [one for fact in decoded for one in (fact.completed if isinstance(fact, TasksCompleted) else (fact,))]

    async def wait_for(self, stream: str, kind: type[F], count: int = 1) -> list[F]:
        """Wait until a stream holds so many facts of a kind; those."""

        async def found() -> list[F]:
            facts: list[F] = [fact for fact in await self.facts(stream) if isinstance(fact, kind)]
            return facts if len(facts) >= count else []

        return await wait_until(found, f"{stream} holds {count} {kind.__name__}")

    async def inbox(self, agent_id: str, lane: str = "normal") -> int:
        """Entries that lie in a lane."""
        return int(await self.redis.xlen(self.keys.inbox(agent_id, lane)))

    async def answer(self, agent_id: str, stream: str, entry: str, code: str = "") -> None:
        """Answer a fact."""
        fields: dict[Any, Any] = {"type": "fact.answered", "stream": stream, "fact": entry, "ok": "0" if code else "1"}
        if code:
            fields |= {"code": code, "message": f"because {code}"}
        await self.redis.xadd(self.keys.replies(agent_id), fields)

    async def answer_registry(self) -> None:
        """Answer every fact for the registry: ok, or as ``answers`` says."""
        while True:
            try:
                for entry, fields in await self.entries("in:registry", self._cursor):
                    self._cursor = entry
                    fact = decode_fact("in:registry", fields, MIB)
                    code = self.answers.get(fields[b"type"].decode(), "")
                    await self.answer(codec.caller_of(fields), "in:registry", entry.decode(), code)
                    assert not isinstance(fact, AgentRegistered) or fact.incarnation
            except RedisConnectionError:
                pass
            await asyncio.sleep(0.005)


@asynccontextmanager
async def played_coordinator(redis: Redis, settings: Settings) -> AsyncIterator[PlayedCoordinator]:
    """A namespace with a registry that answers."""
    coordinator = PlayedCoordinator(redis, settings)
    registry: asyncio.Task[None] = asyncio.create_task(coordinator.answer_registry())
    try:
        yield coordinator
    finally:
        await cancel_and_wait(registry)
