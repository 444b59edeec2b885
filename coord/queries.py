"""Reading state: records for callers, and what a distributor plans on. Nothing here writes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, cast

import msgspec
from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.codec import BAD_JSON, decode_json
from coord.keys import Keys
from coord.models.agents import AgentRecord, AgentStatus, FleetAgent, Location
from coord.models.messages import MessageRecord, MessageStatus
from coord.models.tasks import AttemptRecord, Pool, Priority, TaskError, TaskRecord, TaskState

_FLEET_FIELDS = (
    "agent_type",
    "capabilities",
    "services",
    "tags",
    "labels",
    "capacity",
    "weight",
    "health_score",
    "rev",
    "metric:active_connections",
    "metric:pending_tasks",
)
#: An agent may report any number as its load from outside; above this, or below 0, none says more.
OUTSIDE_LOAD_MAX = 1_000_000
_pool = msgspec.json.Decoder(Pool)


class WaitingPool(Struct, frozen=True):
    """A pool in which tasks wait."""

    pool: str
    definition: Pool
    length: int
    head: float  #: score of its first task


class Memory(Struct, frozen=True):
    """How full the server is; bytes, 0 for no maximum."""

    used: int
    maximum: int

    @property
    def is_nearly_full(self) -> bool:
        """Above 85 % of its maximum: submissions are refused, so that reports have room."""
        return bool(self.maximum) and self.used > 0.85 * self.maximum


async def task(redis: Redis, keys: Keys, task_id: str) -> TaskRecord | None:
    """A task's record, or None."""
    raw = await _hash(redis, keys.task(task_id))
    return _task_record(task_id, raw) if raw else None


async def tasks(redis: Redis, keys: Keys, task_ids: Sequence[str]) -> list[TaskRecord | None]:
    """The records of many tasks in one round trip, in order."""
    pipe = redis.pipeline(transaction=False)
    for task_id in task_ids:
        pipe.hgetall(keys.task(task_id))
    answers = await pipe.execute()
    return [_task_record(one, raw) if raw else None for one, raw in zip(task_ids, answers, strict=True)]


async def agent(redis: Redis, keys: Keys, agent_id: str) -> AgentRecord | None:
    """An agent's record, or None."""
    return (await agents(redis, keys, [agent_id]))[0]


async def agents(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> list[AgentRecord | None]:
    """The records of many agents in one round trip, in order."""
    pipe = redis.pipeline(transaction=False)
    for agent_id in agent_ids:
        pipe.hgetall(keys.agent(agent_id))
        pipe.scard(keys.inflight(agent_id))
    answers = await pipe.execute()
    return [_agent_record(raw, load) if raw else None for raw, load in zip(answers[::2], answers[1::2], strict=True)]


async def agent_ids(redis: Redis, keys: Keys) -> list[str]:
    """Every agent that has a record, sorted."""
    members: set[bytes] = await redis.execute_command("SMEMBERS", keys.of("agents:all"))
    return sorted(one.decode() for one in members)


async def message(redis: Redis, keys: Keys, message_id: str) -> MessageRecord | None:
    """A message's record, or None."""
    raw = _decoded(await _hash(redis, keys.message(message_id)))
    if not raw:
        return None
    return MessageRecord(
        message_id=message_id,
        sender_id=raw["sender_id"],
        receiver_id=raw["receiver_id"],
        message_type=raw["message_type"],
        priority=raw["priority"],
        status=MessageStatus(raw["status"]),
        sent_at=int(raw["sent_at"]),
        expires_at=int(raw["expires_at"]),
        payload=_json(raw.get("body")),
        reason=raw.get("reason", ""),
    )


async def counters(redis: Redis, keys: Keys) -> dict[str, int]:
    """Every counter; ``{state}:{priority}`` is how many tasks of a priority are in a state."""
    return {name: int(value) for name, value in _decoded(await _hash(redis, keys.of("counters"))).items()}


def by_state(counted: Mapping[str, int]) -> dict[TaskState, int]:
    """How many tasks are in each state, over all priorities."""
    return {state: sum(counted.get(f"{state}:{priority}", 0) for priority in Priority) for state in TaskState}


def submitted(counted: Mapping[str, int]) -> int:
    """How many tasks were admitted, over all priorities."""
    return sum(counted.get(f"submitted:{priority}", 0) for priority in Priority)


async def fleet(redis: Redis, keys: Keys, only: Iterable[str] | None = None) -> dict[str, FleetAgent]:
    """What placement sees of each agent that has a record, or of those in ``only``; read in one or two round trips."""
    wanted = list(only) if only is not None else await agent_ids(redis, keys)
    pipe = redis.pipeline(transaction=False)
    for agent_id in wanted:
        pipe.hmget(keys.agent(agent_id), _FLEET_FIELDS)
        pipe.sismember(keys.of("agents:active"), agent_id)
        pipe.scard(keys.inflight(agent_id))
    answers = await pipe.execute(raise_on_error=False)
    rows: dict[str, FleetAgent] = {}
    for agent_id, fields, active, load in zip(wanted, answers[::3], answers[1::3], answers[2::3], strict=True):
        wrong = next((one for one in (fields, active, load) if isinstance(one, Exception)), None)
        if wrong is not None:
            if "WRONGTYPE" not in str(wrong):
                raise wrong
            continue  # a key that is no agent's must not hide the others
        if fields[0] is not None:
            rows[agent_id] = _fleet_agent(agent_id, fields, active=bool(active), load=int(load))
    return rows


async def loads(redis: Redis, keys: Keys, agent_ids: Iterable[str]) -> dict[str, int]:
    """The true load of each of these agents."""
    wanted = list(agent_ids)
    pipe = redis.pipeline(transaction=False)
    for agent_id in wanted:
        pipe.scard(keys.inflight(agent_id))
    return dict(zip(wanted, await pipe.execute(), strict=True))


async def waiting_pools(redis: Redis, keys: Keys, known: Mapping[str, Pool]) -> tuple[int, list[WaitingPool]]:
    """The table of pools in which tasks wait, with its revision as of before it was read.

    A pool that a requeue brought back has no definition in the table; it is in ``known``, or told by the body of its
    first task.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.hget(keys.of("counters"), "pools_rev")
    pipe.hgetall(keys.of("pools"))
    rev, table = await pipe.execute()
    pipe = redis.pipeline(transaction=False)
    for pool in table:
        pipe.zcard(keys.queue(pool.decode()))
        pipe.zrange(keys.queue(pool.decode()), 0, 0, withscores=True)
    answers = await pipe.execute()
    found: list[WaitingPool] = []
    for (raw, raw_definition), length, head in zip(table.items(), answers[::2], answers[1::2], strict=True):
        pool = raw.decode()
        if not head:
            continue
        definition = known.get(pool) or _definition(raw_definition)
        if definition is None:
            body: bytes | None = await redis.execute_command("HGET", keys.task(head[0][0].decode()), "body")
            definition = _definition(body)
        if definition is not None:
            found.append(WaitingPool(pool, definition, int(length), float(head[0][1])))
    return int(rev or 0), found


class LogWindow(Struct, frozen=True):
    """What a log stream holds: entry ids, ``0-0`` for none."""

    first: str  #: the oldest that is still there
    last: str  #: the latest that was ever appended
    length: int
    added: int  #: how many were ever appended; trimming leaves it, flushing begins it anew


async def log_window(redis: Redis, key: str) -> LogWindow:
    """What the log stream ``key`` (a full key) holds."""
    try:
        info = await redis.xinfo_stream(key)
    except ResponseError:  # no such key
        return LogWindow("0-0", "0-0", 0, 0)
    first = _text(info["first-entry"][0]) if info["first-entry"] else "0-0"
    return LogWindow(first, _text(info["last-generated-id"]), int(info["length"]), int(info["entries-added"]))


async def settings(redis: Redis, keys: Keys) -> dict[str, str]:
    """What operators have set."""
    return _decoded(await _hash(redis, keys.of("settings")))


async def memory(redis: Redis) -> Memory:
    """How full the server is."""
    info = await redis.info("memory")
    return Memory(used=int(info.get("used_memory", 0)), maximum=int(info.get("maxmemory", 0)))


async def _hash(redis: Redis, key: str) -> dict[bytes, bytes]:
    return cast("dict[bytes, bytes]", await redis.hgetall(key))


def _definition(raw: bytes | None) -> Pool | None:
    if not raw:
        return None
    try:
        return _pool.decode(raw)
    except BAD_JSON:
        return None


def _decoded(raw: Mapping[bytes, bytes]) -> dict[str, str]:
    return {name.decode(): value.decode("utf-8", "replace") for name, value in raw.items()}


def _text(raw: bytes | str) -> str:
    return raw.decode() if isinstance(raw, bytes) else raw


def _json(raw: str | None) -> Any:
    if raw is None:
        return None
    try:
        return decode_json(raw.encode())
    except BAD_JSON:
        return raw


def _int(raw: str | None) -> int | None:
    return None if raw is None or raw == "" else int(raw)


def _task_record(task_id: str, raw_fields: Mapping[bytes, bytes]) -> TaskRecord:
    raw = _decoded(raw_fields)
    body = _json(raw.get("body")) or {}
    error = _json(raw.get("error"))
    # Not splitlines: a message may hold one of the other characters that it takes for the end of a line.
    lines = [line for line in raw.get("attempts", "").split("\n") if line]
    return TaskRecord(
        task_id=task_id,
        state=TaskState(raw["state"]),
        priority=Priority(raw["priority"]),
        task_type=body.get("task_type", ""),
        payload=body.get("payload"),
        submitted_at=int(raw.get("submitted_at", 0)),
        pool=raw.get("pool", ""),
        attempt=int(raw.get("attempt", 0)),
        failures=int(raw.get("failures", 0)),
        releases=int(raw.get("releases", 0)),
        run_at=_int(raw.get("run_at")),
        deadline=_int(raw.get("deadline")),
        agent_id=raw.get("agent_id"),
        term=_int(raw.get("term")),
        lease=raw.get("lease"),
        assigned_at=_int(raw.get("assigned_at")),
        started_at=_int(raw.get("started_at")),
        finished_at=_int(raw.get("finished_at")),
        cancel_requested_at=_int(raw.get("cancel_at")),
        progress=_json(raw.get("progress")),
        placement=_json(raw.get("placement")),
        attempts=tuple(msgspec.json.decode(line, type=AttemptRecord) for line in reversed(lines)),
        result=_json(raw.get("result")),
        error=msgspec.convert(error, TaskError) if isinstance(error, dict) else None,
    )


def _agent_record(raw_fields: Mapping[bytes, bytes], load: int) -> AgentRecord:
    raw = _decoded(raw_fields)
    location = _json(raw.get("location"))
    interval = _int(raw.get("heartbeat_interval"))
    return AgentRecord(
        agent_id=raw["agent_id"],
        agent_type=raw.get("agent_type", ""),
        status=AgentStatus(raw["status"]),
        capabilities=tuple(_json(raw.get("capabilities")) or ()),
        services=tuple(_json(raw.get("services")) or ()),
        endpoints=_json(raw.get("endpoints")) or {},
        metadata=_json(raw.get("metadata")) or {},
        tags=tuple(_json(raw.get("tags")) or ()),
        labels=_json(raw.get("labels")) or {},
        location=msgspec.convert(location, Location) if location else None,
        version=raw.get("version", ""),
        capacity=int(raw.get("capacity", 0)),
        weight=float(raw.get("weight", 1)),
        heartbeat_interval=interval / 1000 if interval is not None else None,
        incarnation=raw.get("incarnation", ""),
        term=int(raw.get("term", 0)),
        rev=int(raw.get("rev", 0)),
        registration_time=int(raw.get("registration_time", 0)),
        last_heartbeat=int(raw.get("last_heartbeat", 0)),
        load_metrics={name[7:]: float(value) for name, value in raw.items() if name.startswith("metric:")},
        health_score=float(raw.get("health_score", 0)),
        leases=_int(raw.get("leases")),
        load=int(load),
    )


def _fleet_agent(agent_id: str, fields: Sequence[bytes | None], *, active: bool, load: int) -> FleetAgent:
    text = [None if value is None else value.decode() for value in fields]
    kind, capabilities, services, tags, labels, capacity, weight, health, rev, connections, pending = text
    return FleetAgent(
        agent_id=agent_id,
        agent_type=kind or "",
        capabilities=frozenset(_json(capabilities) or ()),
        services=frozenset(_json(services) or ()),
        tags=frozenset(_json(tags) or ()),
        labels=_json(labels) or {},
        capacity=int(capacity or 0),
        weight=float(weight or 1),
        health_score=float(health or 0),
        rev=int(rev or 0),
        active=active,
        load=load,
        outside_load=int(min(max(float(connections or 0) + float(pending or 0), 0), OUTSIDE_LOAD_MAX)),
    )
