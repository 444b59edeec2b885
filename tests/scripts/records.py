"""What became of the facts of a test: records, queues, answers and logs as they lie in Redis."""

from __future__ import annotations

from typing import Any

from redis.asyncio import Redis

from coord import queries
from coord.codec import unpack_record
from coord.keys import Keys
from coord.models.agents import AgentRecord
from coord.models.tasks import TaskRecord


class Records:
    """Looks into one namespace; changes nothing."""

    def __init__(self, redis: Redis, keys: Keys) -> None:
        self.redis: Any = redis  # its stubs tell of every shape that any protocol might answer
        self.keys = keys

    async def task(self, task_id: str = "t1") -> TaskRecord:
        """A task's record, which must exist."""
        record = await queries.get_task(self.redis, self.keys, task_id)
        assert record is not None, f"no task {task_id}"
        return record

    async def state(self, task_id: str = "t1") -> str:
        """A task's state."""
        return str((await self.task(task_id)).state)

    async def agent(self, agent_id: str = "a1") -> AgentRecord:
        """An agent's record, which must exist."""
        record = await queries.get_agent(self.redis, self.keys, agent_id)
        assert record is not None, f"no agent {agent_id}"
        return record

    async def fields(self, task_id: str, *names: str) -> list[str | None]:
        """Fields of a task's record as they lie there, or parts of its assignment."""
        raw = {
            key.decode(): value.decode() for key, value in (await self.redis.hgetall(self.keys.task(task_id))).items()
        }
        record = unpack_record(raw)
        return [record.get(name) for name in names]

    async def load(self, agent_id: str = "a1") -> int:
        """Tasks in flight on an agent."""
        return int(await self.redis.scard(self.keys.inflight(agent_id)))

    async def counter(self, name: str) -> int:
        """One counter."""
        return int(await self.redis.hget(self.keys.of("counters"), name) or 0)

    async def stream(self, name: str) -> list[dict[str, str]]:
        """The entries of a stream, oldest first."""
        entries = await self.redis.xrange(self.keys.of(name))
        return [{key.decode(): value.decode() for key, value in fields.items()} for _, fields in entries]

    async def logged(self, log: str = "tasks") -> list[str]:
        """The types of the events in a log, oldest first."""
        return [event["type"] for event in await self.stream(f"log:{log}")]

    async def answers(self, caller: str = "c1") -> list[tuple[str, str]]:
        """What a caller was told: ``ok``, an error's code, or the task and its state."""
        told = []
        for one in await self.stream(f"replies:{caller}"):
            if one["type"] == "fact.answered":
                told += [(fact, "ok" if one["ok"] == "1" else one["code"]) for fact in one["fact"].split()]
            else:
                told.append((one["task_id"], one["type"]))
        return told

    async def last_answer(self, caller: str = "c1") -> str:
        """The last thing that a caller was told."""
        return (await self.answers(caller))[-1][1]

    async def orders(self, agent_id: str = "a1") -> list[tuple[str, str]]:
        """What an agent was told to stop: task and lease."""
        entries = await self.stream(f"inbox:{agent_id}:critical")
        return [(one["task_id"], one["lease"]) for one in entries if one.get("order") == "stop_task"]

    async def dump(self, *besides: str) -> dict[str, Any]:
        """Everything in the cell but the keys in ``besides``, to compare before and after; no replies, no sizes."""
        found: dict[str, Any] = {}
        async for raw in self.redis.scan_iter(match=f"{self.keys.prefix}*", count=1000):
            name = raw.decode().removeprefix(self.keys.prefix)
            if name.startswith(("replies:", "size:", *besides)):
                continue
            found[name] = await _content(self.redis, raw)
        return found


async def _content(redis: Any, key: bytes) -> Any:
    kind = (await redis.type(key)).decode()
    if kind == "hash":
        return await redis.hgetall(key)
    if kind == "set":
        return await redis.smembers(key)
    if kind == "zset":
        return sorted((pair[0], pair[1]) for pair in await redis.zrange(key, 0, -1, withscores=True))
    if kind == "stream":
        return await redis.xrange(key)
    if kind == "list":
        return await redis.lrange(key, 0, -1)
    return await redis.get(key)
