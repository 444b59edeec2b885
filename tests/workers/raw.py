"""What callers do, in raw facts: append them, read answers, and be an agent without the SDK."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import msgspec
from redis.asyncio import Redis
from redis.exceptions import RedisError

from coord import queries
from coord.keys import CONSUMES, Keys
from coord.models.agents import AgentType
from coord.models.facts import AgentRegistered, TaskCompleted, TaskFailed, TaskReleased, TasksCompleted, TaskStarted
from coord.models.ids import new_id
from coord.models.tasks import Lane, Priority, Requirements, TaskRecord, TaskState, TaskSubmitted
from coord.streams import Append, append
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from workers.distributor import Distributor
from workers.service import end_tasks

Fields = dict[str, str]
Wire = Mapping[Any, Any]  #: the fields of an entry, in whatever form


class Assignment(NamedTuple):
    """One task as it lies in an inbox."""

    lane: str
    entry: str
    task_id: str
    lease: str
    attempt: int
    incarnation: str
    body: Any


class Entry(str):
    """The id of an appended entry, which is unique in its stream only."""

    __slots__ = ("stream",)
    stream: str

    def __new__(cls, entry: str, stream: str) -> Self:
        """Keep the stream beside the id."""
        made = super().__new__(cls, entry)
        made.stream = stream
        return made


class Told(NamedTuple):
    """A submitted task: its id and its entry's."""

    task_id: str
    entry: str


class Caller:
    """Someone who submits tasks and reads answers."""

    def __init__(self, redis: Redis, keys: Keys, caller: str = "caller-1") -> None:
        self.redis = redis
        self.keys = keys
        self.id = caller

    async def tell(self, stream: str, fact: msgspec.Struct) -> str:
        """Append a fact; its entry id."""
        return Entry((await append(self.redis, self.keys, [Append(stream, fact, self.id)]))[0], stream)

    async def submit(
        self, count: int = 1, priority: Priority = Priority.NORMAL, *, task_type: str = "echo", **options: Any
    ) -> list[Told]:
        """Submit ``count`` tasks that any agent may do, in one round trip."""
        facts = [TaskSubmitted(task_id=new_id(), task_type=task_type, **options) for _ in range(count)]
        entries = await append(self.redis, self.keys, [Append(f"in:tasks:{priority}", one, self.id) for one in facts])
        stream = f"in:tasks:{priority}"
        return [Told(fact.task_id, Entry(entry, stream)) for fact, entry in zip(facts, entries, strict=True)]

    async def raw(self, stream: str, fields: Wire) -> str:
        """Append an entry as it is; its id."""
        return (await self.raws([(stream, fields)]))[0]

    async def raws(self, told: Sequence[tuple[str, Wire]]) -> list[str]:
        """Append entries as they are, all at once, so that they are read as one batch; their ids."""
        pipe = self.redis.pipeline(transaction=True)
        for stream, fields in told:
            pipe.execute_command("XADD", self.keys.of(stream), "*", *(part for pair in fields.items() for part in pair))
        return [Entry(raw.decode(), stream) for raw, (stream, _) in zip(await pipe.execute(), told, strict=True)]

    async def replies(self) -> list[Fields]:
        """Everything that this caller was told."""
        return [_text(fields) for _, fields in await entries(self.redis, self.keys.replies(self.id))]

    async def answer(self, entry: str, stream: str | None = None) -> Fields:
        """The answer to a fact, waited for; facts on two streams may have the same entry id.

        ``stream``: of an id that none of the methods above returned; needed if the caller appended to several streams.
        """
        stream = entry.stream if isinstance(entry, Entry) else stream

        def is_it(reply: Fields) -> bool:
            return entry in reply.get("fact", "").split() and stream in {None, reply["stream"]}

        async def answered() -> Fields | None:
            return next((one for one in await self.replies() if is_it(one)), None)

        found = await wait_until(answered, f"{entry} is answered")
        assert found is not None
        return found

    async def outcome(self, task_id: str) -> Fields:
        """What the caller was told of the end of a task, waited for."""

        async def ended() -> Fields | None:
            return next((one for one in await self.replies() if one.get("task_id") == task_id), None)

        found = await wait_until(ended, f"the caller hears of {task_id}")
        assert found is not None
        return found


@dataclass
class RawAgent:
    """An agent as a shell script might be one: XREAD, XDEL, XADD."""

    redis: Redis
    keys: Keys
    agent_id: str = "a1"
    capacity: int = 2
    incarnation: str = ""
    options: dict[str, Any] = field(default_factory=dict)
    done: list[Assignment] = field(default_factory=list)
    held: list[Assignment] = field(default_factory=list)  #: claimed, and not reported: a connection may be lost between

    async def register(self) -> str:
        """Say what it is; the entry's id. Without an interval nobody waits for its beats."""
        fact = AgentRegistered(
            agent_id=self.agent_id,
            agent_type=AgentType.WORKER,
            capacity=self.capacity,
            incarnation=self.incarnation,
            **self.options,
        )
        return (await append(self.redis, self.keys, [Append("in:registry", fact, self.agent_id)]))[0]

    async def inbox(self) -> list[Assignment]:
        """What lies in its lanes, most pressing first."""
        found: list[Assignment] = []
        for lane in Lane:
            for entry, fields in await entries(self.redis, self.keys.inbox(self.agent_id, lane)):
                text = _text(fields)
                if text["message_type"] == "task_assignment":
                    body = msgspec.json.decode(text["data"])
                    attempt = int(text["attempt"])
                    found.append(
                        Assignment(
                            lane, entry.decode(), text["task_id"], text["lease"], attempt, text["incarnation"], body
                        )
                    )
        return found

    async def told(self) -> list[Fields]:
        """What it was told besides assignments."""
        found = [
            _text(fields)
            for lane in Lane
            for _, fields in await entries(self.redis, self.keys.inbox(self.agent_id, lane))
        ]
        return [one for one in found if one["message_type"] != "task_assignment"]

    async def await_inbox(self, count: int = 1) -> list[Assignment]:
        """Its inbox, once it holds ``count`` assignments."""

        async def enough() -> list[Assignment] | None:
            found = await self.inbox()
            return found if len(found) >= count else None

        found = await wait_until(enough, f"{self.agent_id} has {count} assignments")
        return found or []

    async def claim(self, one: Assignment) -> bool:
        """Delete the entry; whether it was there, so that the task is this agent's."""
        return bool(await self.redis.xdel(self.keys.inbox(self.agent_id, one.lane), one.entry))

    async def start(self, one: Assignment) -> None:
        """Report a start."""
        await self.report(TaskStarted(task_id=one.task_id, lease=one.lease))

    async def complete(self, *finished: Assignment, result: Any = None) -> None:
        """Report results."""
        raw = msgspec.Raw(msgspec.json.encode(result))
        await self.report(*(TaskCompleted(task_id=one.task_id, lease=one.lease, result=raw) for one in finished))

    async def complete_together(self, *finished: Assignment) -> str:
        """Report results in one entry; its id."""
        told = tuple(TaskCompleted(task_id=one.task_id, lease=one.lease) for one in finished)
        (entry,) = await append(self.redis, self.keys, [Append("in:reports", TasksCompleted(told), self.agent_id)])
        return entry

    async def fail(self, one: Assignment, *, retryable: bool = True, message: str = "no") -> None:
        """Report a failure."""
        await self.report(TaskFailed(task_id=one.task_id, lease=one.lease, message=message, retryable=retryable))

    async def release(self, one: Assignment) -> None:
        """Give a task back."""
        await self.report(TaskReleased(task_id=one.task_id, lease=one.lease, reason="full"))

    async def report(self, *facts: msgspec.Struct) -> None:
        """Append reports in one round trip."""
        if facts:
            await append(self.redis, self.keys, [Append("in:reports", fact, self.agent_id) for fact in facts])

    async def work_once(self) -> None:
        """Claim and complete all that lies there."""
        for one in await self.inbox():
            try:
                is_claimed = await self.claim(one)
            except (RedisError, OSError):
                self.held.append(one)  # perhaps it was claimed: a report is refused if it was not its own
                raise
            if is_claimed:
                self.held.append(one)
        await self.complete(*self.held, result={"by": self.agent_id})
        self.done += self.held
        self.held = []

    async def work(self, until: asyncio.Event) -> None:
        """Claim and complete until the event; a server that is away is waited for."""
        while not until.is_set():
            with contextlib.suppress(RedisError, OSError):
                await self.work_once()
            await asyncio.sleep(0.003)


@contextlib.asynccontextmanager
async def working(agents: Sequence[RawAgent]):  # type: ignore[no-untyped-def]  # noqa: ANN201
    """The agents work while the block runs."""
    until = asyncio.Event()
    tasks = [asyncio.create_task(agent.work(until)) for agent in agents]
    try:
        yield
    finally:
        until.set()
        await asyncio.gather(*tasks)


async def fleet(cell: RunningCell, count: int, *, capacity: int = 1, **options: Any) -> list[RawAgent]:
    """``count`` registered agents that the registry knows."""
    agents = [RawAgent(cell.redis, cell.keys, f"a{n}", capacity, options=options) for n in range(count)]
    for agent in agents:
        await agent.register()

    async def known() -> bool:
        return bool(await cell.redis.scard(cell.keys.of("agents:active")) >= count)

    await wait_until(known, f"{count} agents are active")
    return agents


async def state(cell: RunningCell, task_id: str) -> TaskRecord | None:
    """A task's record."""
    return await queries.get_task(cell.redis, cell.keys, task_id)


async def await_state(cell: RunningCell, task_id: str, wanted: TaskState, timeout: float = 30.0) -> TaskRecord:
    """A task's record, once the task is as wanted."""

    async def reached() -> TaskRecord | None:
        found = await state(cell, task_id)
        return found if found is not None and found.state is wanted else None

    found = await wait_until(reached, f"{task_id} is {wanted}", timeout)
    assert found is not None
    return found


async def await_count(cell: RunningCell, wanted: TaskState, count: int, timeout: float = 30.0) -> None:
    """Wait until so many tasks are in a state."""

    async def reached() -> bool:
        return queries.count_by_state(await queries.get_counters(cell.redis, cell.keys))[wanted] >= count

    await wait_until(reached, f"{count} tasks are {wanted}", timeout)


async def await_quiet(cell: RunningCell, timeout: float = 30.0) -> None:
    """Wait until every ingress stream is empty."""

    async def empty() -> bool:
        async for key in cell.redis.scan_iter(match=f"{cell.keys.prefix}in:*", count=1000):
            if await cell.redis.xlen(key):
                return False
        return True

    await wait_until(empty, "every ingress stream is empty", timeout)


async def buried(cell: RunningCell) -> list[Fields]:
    """What lies in ``dead:in``."""
    return [_text(fields) for _, fields in await entries(cell.redis, cell.keys.of("dead:in"))]


async def entries(redis: Redis, key: str) -> list[tuple[bytes, dict[bytes, bytes]]]:
    """All entries of a stream."""
    found: list[tuple[bytes, dict[bytes, bytes]]] = await redis.execute_command("XRANGE", key, "-", "+")
    return found


async def pending(cell: RunningCell, kind: str) -> dict[str, int]:
    """Entries read and not acknowledged, by consumer of a kind."""
    found: dict[str, int] = {}
    for stream in CONSUMES[kind]:
        for one in await cell.redis.xinfo_consumers(cell.keys.of(stream), kind):
            name = one["name"].decode()
            found[name] = found.get(name, 0) + int(one["pending"])
    return found


async def vanish(worker: RunningWorker) -> None:
    """End a worker as if killed, whatever swallows the cancel: what it had read stays pending."""
    await end_tasks(worker.task)
    await worker.vanish()


def distributor(worker: RunningWorker) -> Distributor:
    """The service of a distributor."""
    service = worker.loop.service
    assert isinstance(service, Distributor)
    return service


def for_agent(agent_id: str) -> Requirements:
    """Requirements that only this agent meets."""
    return Requirements(agent_id=agent_id)


def _text(fields: dict[bytes, bytes]) -> Fields:
    return {name.decode(): value.decode("utf-8", "replace") for name, value in fields.items()}
