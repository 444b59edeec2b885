"""The books of a cell, read by SCAN in bounded pipelines: everything that names a task, and how long each key lives.

A reading of a cell that moves is of many moments; only what is said to be read at one moment is.
"""

from __future__ import annotations

from collections.abc import Awaitable, Container, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar

from msgspec import Struct
from redis.exceptions import ExecAbortError, OutOfMemoryError, ResponseError

from coord.codec import unpack_record
from coord.config import Settings
from coord.keys import Keys
from coord.models.tasks import Priority, TaskState

T = TypeVar("T")
Record = dict[str, str]
HELD = ("assigned", "running")
WAITING = ("scheduled", "queued")
#: The index of ended tasks that each end is listed in.
GRAVEYARD: Mapping[str, str] = MappingProxyType(
    {
        "completed": "tasks:terminal",
        "cancelled": "tasks:terminal",
        "expired": "tasks:terminal",
        "failed": "tasks:dead",
        "refused": "tasks:refused",
    }
)
#: What is read of a task's record: a payload or a result of 1 MiB stays where it is.
FIELDS = (
    "state", "submission", "assignment", "run_at", "deadline", "cancel_by", "dropped",
)  # fmt: skip
#: Commands in one round trip: some milliseconds of the server's time.
CHUNK = 500
#: Entries of an inbox in one round trip; each may be 1 MiB.
INBOX_CHUNK = 50


class Finding(Struct, frozen=True, order=True):
    """One thing that is not as it should be."""

    code: str  #: what kind of damage, such as ``inflight.missing``
    key: str  #: where, without the namespace
    message: str


class Books(NamedTuple):
    """Everything that a cell knows of its tasks."""

    counters: dict[str, int]
    records: dict[str, Record]  #: by task id: ``FIELDS``, the parts of the assignment, of the body only ``body_bytes``
    queues: dict[str, dict[str, float]]  #: by pool
    inflight: dict[str, set[str]]  #: by agent
    inboxes: dict[str, dict[str, Record]]  #: by ``agent:lane``
    pools: set[str]
    alarms: dict[str, float]
    deadlines: dict[str, float]
    limits: dict[str, float]
    graves: dict[str, set[str]]  #: by index
    unclaimed: dict[str, float]  #: by agent
    dead_messages: Container[str] = frozenset()  #: whose records live as long as their place in the index
    ttls: Mapping[str, int] = MappingProxyType({})  #: key -> ms, -1 for none
    odd: Sequence[Finding] = ()  #: what could not be read
    still: bool = True  #: no counter moved while the records were read
    capped: Mapping[str, tuple[int, int]] = MappingProxyType({})  #: stream -> its bytes in memory, and its cap


async def read_books(redis: Any, keys: Keys, settings: Settings) -> Books:
    """Read all of it, in pieces; ``settings`` say how large each stream may be."""
    return await _Reader(redis, keys, settings).read()


class _Reader:
    def __init__(self, redis: Any, keys: Keys, settings: Settings) -> None:
        self.redis = redis
        self.keys = keys
        self.settings = settings
        self.odd: list[Finding] = []

    async def read(self) -> Books:
        prefix = self.keys.prefix
        before = await self._typed("counters", self.redis.hgetall(self.keys.of("counters")), {})
        scan = self.redis.scan_iter(match=f"{prefix}*", count=CHUNK)
        names = {raw.decode("utf-8", "replace")[len(prefix) :] async for raw in scan}
        records = await self._records(_rest(names, "task:"))
        queues = {pool: await self._zset(f"queue:{pool}") for pool in _rest(names, "queue:")}
        inflight = {agent: await self._members(f"inflight:{agent}") for agent in _rest(names, "inflight:")}
        inboxes = {inbox: await self._entries(f"inbox:{inbox}") for inbox in _rest(names, "inbox:")}
        graves = {index: set(await self._zset(index)) for index in sorted(set(GRAVEYARD.values()))}
        after = await self._typed("counters", self.redis.hgetall(self.keys.of("counters")), {})
        return Books(
            counters=self._counters(after),
            records=records,
            queues=queues,
            inflight={agent: tasks for agent, tasks in inflight.items() if tasks},
            inboxes=inboxes,
            pools=await self._pools(queues),
            alarms=await self._zset("alarms"),
            deadlines=await self._zset("deadlines"),
            limits=await self._zset("limits"),
            graves=graves,
            unclaimed=await self._zset("unclaimed"),
            dead_messages=await self._zset("messages:dead"),
            ttls=await self._ttls(sorted(names)),
            odd=self.odd,
            still=before == after,
            capped=await self._capped(sorted(names)),
        )

    async def _pool_keys(self, table: str, pools: Sequence[str], *, at_one_moment: bool) -> list[Any]:
        """Return for each pool whether it has a row in the table, and a queue."""
        pipe = self.redis.pipeline(transaction=at_one_moment)
        for pool in pools:
            pipe.hexists(table, pool)
            pipe.exists(self.keys.queue(pool))
        answers: list[Any] = await pipe.execute(raise_on_error=False)
        return answers

    def _counters(self, raw: Mapping[bytes, bytes]) -> dict[str, int]:
        found: dict[str, int] = {}
        for name, value in raw.items():
            try:
                found[name.decode()] = int(value)
            except ValueError:
                self._is_odd("counters.value", "counters", f"{name.decode()} is no whole number")
        return found

    async def _records(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for at in range(0, len(ids), CHUNK):
            chunk = ids[at : at + CHUNK]
            pipe = self.redis.pipeline(transaction=False)
            for task in chunk:
                pipe.hmget(self.keys.task(task), FIELDS)
                pipe.hstrlen(self.keys.task(task), "body")
            answers = await pipe.execute(raise_on_error=False)
            for task, values, size in zip(chunk, answers[::2], answers[1::2], strict=True):
                if isinstance(values, Exception):
                    self._wrong_type(f"task:{task}", values)
                    continue
                pairs = zip(FIELDS, values, strict=True)
                one = {name: value.decode("utf-8", "replace") for name, value in pairs if value is not None}
                if not one:
                    continue  # it ended while the names were read
                one = self._unpacked(task, one)
                if one.get("state") not in set(TaskState) or one.get("priority") not in set(Priority):
                    self._is_odd("task.unknown", f"task:{task}", "it has no known state and priority")
                    continue
                found[task] = one | {"body_bytes": str(size)}
        return found

    def _unpacked(self, task: str, one: Record) -> Record:
        try:
            return unpack_record(one)
        except ValueError:
            self._is_odd("assignment.value", f"task:{task}", "its submission or assignment cannot be read")
        try:
            return unpack_record({name: value for name, value in one.items() if name != "assignment"})
        except ValueError:
            return one

    async def _pools(self, queues: dict[str, dict[str, float]]) -> set[str]:
        """The table of pools; a queue and its row are looked at in one moment, as they come and go together."""
        table = self.keys.of("pools")
        rows = await self._typed("pools", self.redis.hkeys(table), [])
        named = sorted({raw.decode() for raw in rows} | set(queues))
        found: set[str] = set()
        for at in range(0, len(named), CHUNK):
            chunk = named[at : at + CHUNK]
            try:
                answers = await self._pool_keys(table, chunk, at_one_moment=True)
            except (OutOfMemoryError, ExecAbortError):  # Redis 7.0 refuses even the reads of a transaction then
                answers = await self._pool_keys(table, chunk, at_one_moment=False)
            for pool, has_row, has_queue in zip(chunk, answers[::2], answers[1::2], strict=True):
                if has_row == 1:
                    found.add(pool)
                if has_queue:
                    queues.setdefault(pool, {})
                else:
                    queues.pop(pool, None)
        return found

    async def _zset(self, name: str) -> dict[str, float]:
        async def scan() -> dict[str, float]:
            pairs = self.redis.zscan_iter(self.keys.of(name), count=CHUNK)
            return {member.decode("utf-8", "replace"): float(score) async for member, score in pairs}

        return await self._typed(name, scan(), {})

    async def _members(self, name: str) -> set[str]:
        answer = await self._typed(name, self.redis.smembers(self.keys.of(name)), set())
        return {one.decode("utf-8", "replace") for one in answer}

    async def _entries(self, name: str) -> dict[str, Record]:
        """The assignments of an inbox's lane; no payload is kept."""
        found: dict[str, Record] = {}
        begin = "-"
        while True:
            command = ("XRANGE", self.keys.of(name), begin, "+", "COUNT", INBOX_CHUNK)
            answer = await self._typed(name, self.redis.execute_command(*command), [])
            for entry, fields in answer:
                if fields.get(b"message_type") == b"task_assignment":
                    told = {key: value for key, value in fields.items() if key in {b"task_id", b"lease"}}
                    found[entry.decode()] = {key.decode(): value.decode() for key, value in told.items()}
                begin = f"({entry.decode()}"
            if len(answer) < INBOX_CHUNK:
                return found

    async def _ttls(self, names: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for at in range(0, len(names), CHUNK):
            chunk = names[at : at + CHUNK]
            pipe = self.redis.pipeline(transaction=False)
            for name in chunk:
                pipe.pttl(self.keys.of(name))
            found.update(zip(chunk, await pipe.execute(), strict=True))
        return found

    async def _capped(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Streams that are capped by bytes, where the server measures them for this user."""
        s = self.settings
        caps = {"log:progress": s.progress_log_bytes, "log:": s.log_bytes, "replies:": s.replies_bytes}
        caps["dead:in"] = s.dead_in_bytes
        capped = {name: cap for name in names for head, cap in reversed(caps.items()) if name.startswith(head)}
        pipe = self.redis.pipeline(transaction=False)
        for name in capped:
            pipe.execute_command("MEMORY USAGE", self.keys.of(name))
        sizes = await pipe.execute(raise_on_error=False)
        told = zip(capped.items(), sizes, strict=True)
        return {name: (size, cap) for (name, cap), size in told if isinstance(size, int)}

    async def _typed(self, name: str, answer: Awaitable[T], otherwise: T) -> T:
        """What is read of a key, or ``otherwise`` when it is of another type, which is a finding."""
        try:
            return await answer
        except ResponseError as error:
            self._wrong_type(name, error)
            return otherwise

    def _wrong_type(self, name: str, error: Exception) -> None:
        if "WRONGTYPE" not in str(error):
            raise error
        self._is_odd("type.wrong", name, "it is of another type than it should be")

    def _is_odd(self, code: str, key: str, message: str) -> None:
        finding = Finding(code, key, message)
        if finding not in self.odd:
            self.odd.append(finding)


def _rest(names: set[str], head: str) -> list[str]:
    return sorted(name[len(head) :] for name in names if name.startswith(head))
