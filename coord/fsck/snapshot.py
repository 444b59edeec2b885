"""CellSnapshot of a cell: every structure that names tasks, and the TTL of each key; read by SCAN in bounded pipelines.

A snapshot of a live cell is not taken at one moment. Only parts that say so are read at one moment.
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
from coord.models.tasks import Lane, Priority, TaskState
from coord.queries.reads import chunks

T = TypeVar("T")
Record = dict[str, str]
HELD = ("assigned", "running")
WAITING = ("scheduled", "queued")
#: state of an ended task -> the index that lists it.
END_INDEX: Mapping[str, str] = MappingProxyType(
    {
        "completed": "tasks:terminal",
        "cancelled": "tasks:terminal",
        "expired": "tasks:terminal",
        "failed": "tasks:dead",
        "refused": "tasks:refused",
    }
)
#: Fields that are read of a task's record; not payload and result, which may have 1 MiB each.
FIELDS = (
    "state", "submission", "assignment", "run_at", "deadline", "cancel_by", "dropped", "preferences", "avoid",
)  # fmt: skip
#: Fields that are read of an agent's record.
AGENT_FIELDS = ("status", "facets", "deaf", "health_score", "delivery")
#: Sets that list agents, apart from those of their facets.
AGENT_SETS = ("agents:all", "agents:active", "agents:facets", "agents:pushed")
#: Fields that are read of the record of a broadcast.
BROADCAST_FIELDS = ("status", "recipients", "delivered", "dead")
#: Fields that are read of a message's record.
MESSAGE_FIELDS = ("status", "request", "conversation")
#: Commands in one round trip: a few milliseconds of the server's time.
CHUNK = 500
#: Entries of an inbox in one round trip; each may have 1 MiB.
INBOX_CHUNK = 50


class Finding(Struct, frozen=True, order=True):
    """An inconsistency."""

    code: str  #: kind of inconsistency, such as ``inflight.missing``
    key: str  #: key without the namespace
    message: str


class BroadcastState(NamedTuple):
    """A broadcast of which the list of recipients is kept."""

    record: Record  #: status, recipients, delivered and dead; empty: there is no record
    chunks: int  #: of its recipients
    outcomes: int  #: chunks that have an outcome
    is_waiting: bool  #: its entry is in its stream


class CellSnapshot(NamedTuple):
    """All data of a cell about its tasks."""

    counters: dict[str, int]
    records: dict[str, Record]  #: by task id: ``FIELDS`` with their parts, and ``body_bytes`` instead of the body
    queues: dict[str, dict[str, float]]  #: by pool
    inflight: dict[str, set[str]]  #: by agent
    inboxes: dict[str, dict[str, Record]]  #: by ``agent:lane``
    pools: set[str]
    alarms: dict[str, float]
    deadlines: dict[str, float]
    limits: dict[str, float]
    ended: dict[str, set[str]]  #: by index
    unclaimed: dict[str, float]  #: by agent
    dead_messages: Container[str] = frozenset()  #: messages whose records live as long as they are in the index
    tokens: Mapping[str, Record] = MappingProxyType({})  #: digests of tokens, by agent
    token_agents: Mapping[str, str] = MappingProxyType({})  #: digest of a token -> agent
    api_keys: Mapping[str, Record] = MappingProxyType({})  #: keys of the HTTP API, by id
    used_api_keys: Mapping[str, float] = MappingProxyType({})  #: key of the HTTP API -> ms of its last use
    ttls: Mapping[str, int] = MappingProxyType({})  #: key -> ms, -1 for none
    unreadable: Sequence[Finding] = ()  #: keys and records that could not be read
    requests: Mapping[str, float] = MappingProxyType({})
    message_records: Mapping[str, Record] = MappingProxyType({})  #: by message id: ``MESSAGE_FIELDS``
    conversations: Mapping[str, set[str]] = MappingProxyType({})  #: conversation -> its messages
    is_stable: bool = True  #: no counter changed while the records were read
    capped: Mapping[str, tuple[int, int]] = MappingProxyType({})  #: stream -> its size in memory and its cap, in bytes
    agents: Mapping[str, Record] = MappingProxyType({})  #: by agent id: ``AGENT_FIELDS``
    agent_sets: Mapping[str, set[str]] = MappingProxyType({})  #: ``AGENT_SETS`` and ``agents:by:…`` -> their members
    agent_health: Mapping[str, float] = MappingProxyType({})  #: agent -> its score in ``agents:health``
    messages: Sequence[str] = ()  #: in inboxes: agent and lane, entry, message, as in ``messages:expiring``
    expiring: Container[str] = frozenset()  #: the rows of ``messages:expiring``
    links: Mapping[str, Mapping[str, str]] = MappingProxyType({})  #: agent -> other agent -> state
    masters: Mapping[str, str] = MappingProxyType({})  #: agent -> master
    subordinates: Mapping[str, set[str]] = MappingProxyType({})  #: master -> agents
    leases: Mapping[str, str] = MappingProxyType({})  #: lane -> lease of its router
    broadcasts: Mapping[str, BroadcastState] = MappingProxyType({})  #: by message id
    histograms: Mapping[str, str] = MappingProxyType({})
    task_types: Mapping[str, str] = MappingProxyType({})  #: as ``histograms`` read before the counters


async def read_snapshot(redis: Any, keys: Keys, settings: Settings) -> CellSnapshot:
    """Read a snapshot, in pieces.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: of the cell's workers, for the maximum size of each stream.
    """
    return await _Reader(redis, keys, settings).read()


class _Reader:
    def __init__(self, redis: Any, keys: Keys, settings: Settings) -> None:
        self.redis = redis
        self.keys = keys
        self.settings = settings
        self.unreadable: list[Finding] = []
        self.messages: list[str] = []

    async def read(self) -> CellSnapshot:
        prefix = self.keys.prefix
        before = await self._read("counters", self.redis.hgetall(self.keys.of("counters")), {})
        scan = self.redis.scan_iter(match=f"{prefix}*", count=CHUNK)
        names = {raw.decode("utf-8", "replace")[len(prefix) :] async for raw in scan}
        records = await self._records(_rest(names, "task:"))
        queues = {pool: await self._zset(f"queue:{pool}") for pool in _rest(names, "queue:")}
        inflight = {agent: await self._members(f"inflight:{agent}") for agent in _rest(names, "inflight:")}
        inboxes = {inbox: await self._entries(f"inbox:{inbox}") for inbox in _rest(names, "inbox:")}
        ended = {index: set(await self._zset(index)) for index in sorted(set(END_INDEX.values()))}
        histograms, task_types = await self._hash("histograms"), await self._hash("task_types")
        after = await self._read("counters", self.redis.hgetall(self.keys.of("counters")), {})
        return CellSnapshot(
            counters=self._counters(after),
            records=records,
            queues=queues,
            inflight={agent: tasks for agent, tasks in inflight.items() if tasks},
            inboxes=inboxes,
            pools=await self._pools(queues),
            alarms=await self._zset("alarms"),
            deadlines=await self._zset("deadlines"),
            limits=await self._zset("limits"),
            ended=ended,
            unclaimed=await self._zset("unclaimed"),
            dead_messages=await self._zset("messages:dead"),
            tokens=await self._tokens(_rest(names, "token:")),
            token_agents=await self._hash("tokens"),
            api_keys={one: await self._hash(f"api_key:{one}") for one in _rest(names, "api_key:")},
            used_api_keys=await self._zset("api_keys"),
            requests=await self._zset("requests"),
            message_records=await self._message_records(_rest(names, "message:")),
            conversations=await self._conversations(_rest(names, "conversation:")),
            ttls=await self._ttls(sorted(names)),
            unreadable=self.unreadable,
            is_stable=before == after,
            capped=await self._capped(sorted(names)),
            agents=await self._agents(_rest(names, "agent:")),
            agent_sets={name: await self._members(name) for name in _agent_sets(names)},
            agent_health=await self._zset("agents:health"),
            messages=self.messages,
            expiring=await self._zset("messages:expiring"),
            links={agent: await self._links(f"links:{agent}") for agent in _rest(names, "links:")},
            masters=await self._hash("masters"),
            subordinates={
                agent: await self._members(f"subordinates:{agent}") for agent in _rest(names, "subordinates:")
            },
            leases=await self._leases(),
            broadcasts=await self._broadcasts(_rest(names, "recipients:")),
            histograms=histograms,
            task_types=task_types,
        )

    async def _leases(self) -> dict[str, str]:
        raw = await self._read("lanes", self.redis.hmget(self.keys.of("lanes"), *Lane), [None] * len(Lane))
        pairs = zip(Lane, raw, strict=True)
        return {lane.value: value.decode("utf-8", "replace") for lane, value in pairs if value is not None}

    async def _broadcasts(self, ids: Sequence[str]) -> dict[str, BroadcastState]:
        """Read the broadcasts; those that are being delivered meanwhile differ in the next snapshot."""
        found: dict[str, BroadcastState] = {}
        for message_id in ids:
            key = self.keys.message(message_id)
            lane, entry = await self._read(
                f"message:{message_id}", self.redis.hmget(key, "priority", "entry"), [b"", b""]
            )
            stream = self.keys.of(f"in:messages:{(lane or b'').decode()}")
            pipe = self.redis.pipeline(transaction=False)
            pipe.hmget(key, BROADCAST_FIELDS)
            pipe.llen(self.keys.of(f"recipients:{message_id}"))
            pipe.llen(self.keys.of(f"outcomes:{message_id}"))
            pipe.execute_command("XRANGE", stream, entry or "0-0", entry or "0-0")
            answers = await pipe.execute(raise_on_error=False)
            if error := next((answer for answer in answers if isinstance(answer, Exception)), None):
                self._wrong_type(f"message:{message_id}", error)
                continue
            values, chunks_, outcomes, waiting = answers
            pairs = zip(BROADCAST_FIELDS, values, strict=True)
            record = {name: value.decode("utf-8", "replace") for name, value in pairs if value is not None}
            found[message_id] = BroadcastState(record, chunks_, outcomes, bool(waiting))
        return found

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
                self._report("counters.value", "counters", f"{name.decode()} is not a whole number")
        return found

    async def _records(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in chunks(ids, CHUNK):
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
                record = {name: value.decode("utf-8", "replace") for name, value in pairs if value is not None}
                if not record:
                    continue  # it was removed after the keys were listed
                record = self._unpack(task, record)
                if record.get("state") not in set(TaskState) or record.get("priority") not in set(Priority):
                    self._report("task.unknown", f"task:{task}", "it has no known state and priority")
                    continue
                found[task] = record | {"body_bytes": str(size)}
        return found

    async def _agents(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in chunks(ids, CHUNK):
            pipe = self.redis.pipeline(transaction=False)
            for agent in chunk:
                pipe.hmget(self.keys.agent(agent), AGENT_FIELDS)
            for agent, values in zip(chunk, await pipe.execute(raise_on_error=False), strict=True):
                if isinstance(values, Exception):
                    self._wrong_type(f"agent:{agent}", values)
                elif values[0] is not None:
                    pairs = zip(AGENT_FIELDS, values, strict=True)
                    found[agent] = {
                        name: value.decode("utf-8", "replace") for name, value in pairs if value is not None
                    }
        return found

    async def _message_records(self, ids: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for chunk in chunks(ids, CHUNK):
            pipe = self.redis.pipeline(transaction=False)
            for message in chunk:
                pipe.hmget(self.keys.message(message), MESSAGE_FIELDS)
            for message, values in zip(chunk, await pipe.execute(raise_on_error=False), strict=True):
                if isinstance(values, Exception):
                    self._wrong_type(f"message:{message}", values)
                    continue
                pairs = zip(MESSAGE_FIELDS, values, strict=True)
                found[message] = {name: value.decode("utf-8", "replace") for name, value in pairs if value is not None}
        return found

    async def _conversations(self, ids: Sequence[str]) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for chunk in chunks(ids, INBOX_CHUNK):
            pipe = self.redis.pipeline(transaction=False)
            for conversation in chunk:
                pipe.zrange(self.keys.conversation(conversation), 0, -1)
            for conversation, members in zip(chunk, await pipe.execute(raise_on_error=False), strict=True):
                if isinstance(members, Exception):
                    self._wrong_type(f"conversation:{conversation}", members)
                else:
                    found[conversation] = {member.decode("utf-8", "replace") for member in members}
        return found

    def _unpack(self, task: str, record: Record) -> Record:
        try:
            return unpack_record(record)
        except ValueError:
            self._report("assignment.value", f"task:{task}", "its submission or assignment cannot be parsed")
        try:
            return unpack_record({name: value for name, value in record.items() if name != "assignment"})
        except ValueError:
            return record

    async def _pools(self, queues: dict[str, dict[str, float]]) -> set[str]:
        """Read the table of pools. A queue and its row are read at one moment, because they are created together."""
        table = self.keys.of("pools")
        rows = await self._read("pools", self.redis.hkeys(table), [])
        named = sorted({raw.decode() for raw in rows} | set(queues))
        found: set[str] = set()
        for chunk in chunks(named, CHUNK):
            try:
                answers = await self._pool_keys(table, chunk, at_one_moment=True)
            except (OutOfMemoryError, ExecAbortError):  # without memory, Redis 7.0 refuses even a transaction of reads
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

        return await self._read(name, scan(), {})

    async def _members(self, name: str) -> set[str]:
        answer = await self._read(name, self.redis.smembers(self.keys.of(name)), set())
        return {member.decode("utf-8", "replace") for member in answer}

    async def _tokens(self, agents: Sequence[str]) -> dict[str, Record]:
        found: dict[str, Record] = {}
        for agent in agents:
            raw = await self._read(f"token:{agent}", self.redis.hgetall(self.keys.token(agent)), {})
            if raw:
                pairs = ((name.decode(), value.decode("utf-8", "replace")) for name, value in raw.items())
                found[agent] = dict(pairs)
        return found

    async def _hash(self, name: str) -> dict[str, str]:
        raw = await self._read(name, self.redis.hgetall(self.keys.of(name)), {})
        return {field.decode("utf-8", "replace"): value.decode("utf-8", "replace") for field, value in raw.items()}

    async def _links(self, name: str) -> dict[str, str]:
        return {other: value.partition(" ")[0] for other, value in (await self._hash(name)).items()}

    async def _entries(self, name: str) -> dict[str, Record]:
        """Read the assignments in a lane of an inbox, without payloads; note its messages."""
        found: dict[str, Record] = {}
        begin = "-"
        while True:
            command = ("XRANGE", self.keys.of(name), begin, "+", "COUNT", INBOX_CHUNK)
            answer = await self._read(name, self.redis.execute_command(*command), [])
            for entry, fields in answer:
                if b"id" in fields:
                    message = fields[b"id"].decode("utf-8", "replace")
                    self.messages.append(f"{name.partition(':')[2]} {entry.decode()} {message}")
                elif fields.get(b"message_type") == b"task_assignment":
                    found[entry.decode()] = {
                        name.decode(): value.decode()
                        for name, value in fields.items()
                        if name in {b"task_id", b"lease"}
                    }
                begin = f"({entry.decode()}"
            if len(answer) < INBOX_CHUNK:
                return found

    async def _ttls(self, names: Sequence[str]) -> dict[str, int]:
        found: dict[str, int] = {}
        for chunk in chunks(names, CHUNK):
            pipe = self.redis.pipeline(transaction=False)
            for name in chunk:
                pipe.pttl(self.keys.of(name))
            found.update(zip(chunk, await pipe.execute(), strict=True))
        return found

    async def _capped(self, names: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Read the sizes of the streams that are capped by bytes, if this user may measure them."""
        s = self.settings
        caps = {"log:": s.log_bytes, "replies:": s.replies_bytes, "dead:in": s.dead_in_bytes}
        caps |= dict.fromkeys(("log:progress", "log:reports", "log:learned", "log:loads"), s.progress_log_bytes)
        capped = {name: cap for name in names for prefix, cap in caps.items() if name.startswith(prefix)}
        pipe = self.redis.pipeline(transaction=False)
        for name in capped:
            pipe.execute_command("MEMORY USAGE", self.keys.of(name))
        sizes = await pipe.execute(raise_on_error=False)
        measured = zip(capped.items(), sizes, strict=True)
        return {name: (size, cap) for (name, cap), size in measured if isinstance(size, int)}

    async def _read(self, name: str, answer: Awaitable[T], default: T) -> T:
        """Await an answer; if the key has the wrong type, report that and return ``default``."""
        try:
            return await answer
        except ResponseError as error:
            self._wrong_type(name, error)
            return default

    def _wrong_type(self, name: str, error: Exception) -> None:
        if "WRONGTYPE" not in str(error):
            raise error
        self._report("type.wrong", name, "it has the wrong type")

    def _report(self, code: str, key: str, message: str) -> None:
        finding = Finding(code, key, message)
        if finding not in self.unreadable:
            self.unreadable.append(finding)


def _agent_sets(names: set[str]) -> list[str]:
    return [*AGENT_SETS, *sorted(name for name in names if name.startswith("agents:by:"))]


def _rest(names: set[str], prefix: str) -> list[str]:
    return sorted(name[len(prefix) :] for name in names if name.startswith(prefix))
