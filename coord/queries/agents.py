"""Agents: their records, and the view of them that placement uses."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

import msgspec
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from coord.codec import BAD_JSON, decode_json
from coord.keys import Keys
from coord.models.agents import AgentRecord, AgentStatus, Ejected, FleetAgent, Health, Location, outside_load_of
from coord.pipeline import pack, send_and_read
from coord.queries.reads import chunks, parse_json, parse_time, read_hash

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
    "version",
    "location",
    "metric:cpu",
    "metric:memory",
    "last_heartbeat",
    "heartbeat_interval",
    "term",
    "status",
    "ejected",
)
#: Fields that say whether an agent may get a task, without what only strategies use.
_JUDGED_FIELDS = (
    "agent_type",
    "capabilities",
    "services",
    "tags",
    "labels",
    "version",
    "capacity",
    "health_score",
    "status",
    "ejected",
)
#: Fields that say what is wrong with an agent.
_FAULT_FIELDS = ("status", "deaf", "unpolled", "unread", "ejected", "last_heartbeat")
#: The first byte of the fields with the metrics of an agent: a cheap test for most of the other fields.
_M = ord("m")
#: Fields that HSCAN reads of a record at once: all of nearly every agent. It answers with an array, and HGETALL with a
#: map, which hiredis reads several times as slowly.
_FIELDS_AT_ONCE = "1000"
#: Ejections that seem to last longer are over: the server's clock was changed.
_EJECTED_MOST_MS = 1_000_000
_ejected = msgspec.json.Decoder(tuple[Ejected, ...])
#: Agents that ``scan_fleet`` reads in one round trip: a few milliseconds of the server's time.
SCAN_STEP = 500


class AgentFaults(NamedTuple):
    """What keeps an agent from getting tasks."""

    status: AgentStatus
    deaf_reason: str  #: as that of ``AgentRecord``; empty: it reads its inbox
    ejected: tuple[Ejected, ...]  #: the task types that it gets no tasks of now
    last_heartbeat: int  #: ms since 1970 on the server's clock


async def get_agent(redis: Redis, keys: Keys, agent_id: str) -> AgentRecord | None:
    """Return an agent's record, or None."""
    return (await get_agents(redis, keys, [agent_id]))[0]


async def get_agents(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> list[AgentRecord | None]:
    """Return the records of many agents, in order; one round trip, unless a record has very many fields."""
    commands: list[tuple[str, ...]] = [("TIME",)]
    for agent_id in agent_ids:
        commands += [("HSCAN", keys.agent(agent_id), "0", "COUNT", _FIELDS_AT_ONCE), ("SCARD", keys.inflight(agent_id))]
    moment, *answers = await send_and_read(redis, [pack(command) for command in commands], to_raise=True)
    now = parse_time(moment)
    found: list[AgentRecord | None] = []
    for agent_id, (cursor, flat), load in zip(agent_ids, answers[::2], answers[1::2], strict=True):
        fields = dict(zip(flat[::2], flat[1::2], strict=True)) if cursor == b"0" else None
        if fields is None:  # an agent with very many metrics
            fields = await read_hash(redis, keys.agent(agent_id))
        found.append(_agent_record(fields, load, now) if fields else None)
    return found


async def get_agent_faults(redis: Redis, keys: Keys, agent_ids: Sequence[str]) -> dict[str, AgentFaults]:
    """Return what is wrong with many agents, without the rest of their records; one round trip.

    An agent without a record is left out.
    """
    commands = [("TIME",), *(("HMGET", keys.agent(agent_id), *_FAULT_FIELDS) for agent_id in agent_ids)]
    moment, *rows = await send_and_read(redis, [pack(command) for command in commands])
    found: dict[str, AgentFaults] = {}
    for agent_id, row in zip(agent_ids, rows, strict=True):
        if isinstance(row, ResponseError):
            if "WRONGTYPE" in str(row):
                continue  # a foreign key in the place of an agent's must not hide the others
            raise row
        status, *flags, ejected, last_heartbeat = row
        if status is not None:
            marks = dict(zip((b"deaf", b"unpolled", b"unread"), flags, strict=True))
            found[agent_id] = AgentFaults(
                _status(status),
                _deaf_reason({name: mark for name, mark in marks.items() if mark is not None}),
                _current_ejections(ejected, parse_time(moment)),
                int(last_heartbeat or 0),
            )
    return found


async def list_agents(redis: Redis, keys: Keys) -> list[AgentRecord]:
    """Return the records of all agents, sorted by id; two round trips."""
    ids = await list_agent_ids(redis, keys)
    return [agent for agent in await get_agents(redis, keys, ids) if agent is not None]


async def list_agent_ids(redis: Redis, keys: Keys) -> list[str]:
    """Return the ids of all agents that have a record, sorted."""
    members: set[bytes] = await redis.execute_command("SMEMBERS", keys.of("agents:all"))
    return sorted(member.decode() for member in members)


async def get_fleet(redis: Redis, keys: Keys, only: Iterable[str] | None = None) -> dict[str, FleetAgent]:
    """Return the properties that placement uses, of each agent that has a record.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        only: ids to read; None reads all agents.
    """
    ids = list(only) if only is not None else await list_agent_ids(redis, keys)
    suspended = await get_suspended_agents(redis, keys)
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    for agent_id in ids:
        pipe.hmget(keys.agent(agent_id), _FLEET_FIELDS)
        pipe.sismember(keys.of("agents:active"), agent_id)
        pipe.scard(keys.inflight(agent_id))
    moment, *answers = await pipe.execute(raise_on_error=False)
    if isinstance(moment, Exception):
        raise moment
    now = parse_time(moment)
    fleet: dict[str, FleetAgent] = {}
    for agent_id, fields, active, load in zip(ids, answers[::3], answers[1::3], answers[2::3], strict=True):
        error = next((answer for answer in (fields, active, load) if isinstance(answer, Exception)), None)
        if error is not None:
            if "WRONGTYPE" not in str(error):
                raise error
            continue  # a foreign key in the place of an agent's must not hide the others
        if fields[0] is not None:
            agent = fleet[agent_id] = _fleet_agent(agent_id, fields, active=bool(active), load=int(load), now=now)
            if agent_id in suspended:
                agent.active, agent.suspended = False, True
    return fleet


async def scan_fleet(redis: Redis, keys: Keys) -> AsyncIterator[list[FleetAgent]]:
    """Yield all agents in pieces, with the properties that say whether they may get a task, and why not.

    Unlike ``get_fleet`` it leaves out what only strategies use, so that 10,000 agents take a fraction of a second.
    """
    suspended = await get_suspended_agents(redis, keys)
    for ids in chunks(await list_agent_ids(redis, keys), SCAN_STEP):
        commands: list[tuple[str, ...]] = [("TIME",), ("SMISMEMBER", keys.of("agents:active"), *ids)]
        commands += [("HMGET", keys.agent(agent_id), *_JUDGED_FIELDS) for agent_id in ids]
        commands += [("SCARD", keys.inflight(agent_id)) for agent_id in ids]
        moment, are_active, *answers = await send_and_read(redis, [pack(command) for command in commands])
        for answer in (moment, are_active):
            if isinstance(answer, ResponseError):
                raise answer
        now = parse_time(moment)
        agents: list[FleetAgent] = []
        rows, loads = answers[: len(ids)], answers[len(ids) :]
        for agent_id, is_active, row, load in zip(ids, are_active, rows, loads, strict=True):
            error = next((answer for answer in (row, load) if isinstance(answer, ResponseError)), None)
            if error is not None and "WRONGTYPE" not in str(error):
                raise error
            if error is None and row[0] is not None:
                active = bool(is_active) and agent_id not in suspended
                agents.append(_judged_agent(agent_id, row, active=active, load=int(load), now=now))
        yield agents


async def get_suspended_agents(redis: Redis, keys: Keys) -> set[str]:
    """Return the ids of the agents to which dispatch assigns nothing.

    Each of them returned a task before starting it, and the registry has not handled a fact of that agent since.
    """
    marks: dict[bytes, bytes] = await redis.execute_command("HGETALL", keys.of("suspended")) or {}
    pipe = redis.pipeline(transaction=False)
    for agent_id in marks:
        pipe.hmget(keys.agent(agent_id.decode()), "beat_id", "fact_id", "registered_id")
    answers = await pipe.execute() if marks else []
    return {
        agent_id.decode()
        for (agent_id, mark), facts in zip(marks.items(), answers, strict=True)
        if mark == b" ".join(fact or b"" for fact in facts)
    }


async def get_loads(redis: Redis, keys: Keys, agent_ids: Iterable[str]) -> dict[str, int]:
    """Return the true load of each of these agents: the tasks assigned to it and not settled."""
    ids = list(agent_ids)
    pipe = redis.pipeline(transaction=False)
    for agent_id in ids:
        pipe.scard(keys.inflight(agent_id))
    return dict(zip(ids, await pipe.execute(), strict=True))


def _agent_record(raw: Mapping[bytes, bytes], load: int, now: int) -> AgentRecord:
    # Fields are decoded one by one: a page of records is read often, and half of the fields are internal.
    get = raw.get
    location = get(b"location")
    interval = get(b"heartbeat_interval")
    leases = get(b"leases")
    return AgentRecord(
        agent_id=_text(raw[b"agent_id"]),
        agent_type=_text(get(b"agent_type")),
        status=_status(raw[b"status"]),
        capabilities=_listed(get(b"capabilities")),
        services=_listed(get(b"services")),
        endpoints=_object(get(b"endpoints")),
        metadata=_object(get(b"metadata")),
        tags=_listed(get(b"tags")),
        labels=_object(get(b"labels")),
        location=_place(location) if location else None,
        version=_text(get(b"version")),
        capacity=int(get(b"capacity") or 0),
        weight=float(get(b"weight") or 1),
        heartbeat_interval=int(interval) / 1000 if interval else None,
        incarnation=_text(get(b"incarnation")),
        deaf=get(b"deaf") == b"1",
        deaf_reason=_deaf_reason(raw),
        delivery=_text(get(b"delivery")),
        drained_from=_text(get(b"drained_from")),
        term=int(get(b"term") or 0),
        rev=int(get(b"rev") or 0),
        registration_time=int(get(b"registration_time") or 0),
        last_heartbeat=int(get(b"last_heartbeat") or 0),
        load_metrics={_text(name[7:]): float(raw[name]) for name in raw if name[0] == _M and name[:7] == b"metric:"},
        health_score=float(get(b"health_score") or 0),
        health=_health(get(b"health_parts")),
        leases=int(leases) if leases else None,
        ejected=_current_ejections(get(b"ejected"), now),
        load=load,
    )


def _text(raw: bytes | None) -> str:
    return raw.decode("utf-8", "replace") if raw else ""


def _json(raw: bytes | None) -> Any:
    """Return the value of a JSON field; the text itself if it cannot be decoded."""
    if not raw:
        return None
    try:
        return decode_json(raw)
    except BAD_JSON:
        return parse_json(raw.decode("utf-8", "replace"))


def _object(raw: bytes | None) -> Any:
    """Return a field with a JSON object, which most agents leave empty."""
    return (_json(raw) or {}) if raw and raw != b"{}" else {}


def _place(raw: bytes) -> Location | None:
    place = _json(raw)
    return msgspec.convert(place, Location) if place else None


@lru_cache(16)
def _status(raw: bytes) -> AgentStatus:
    return AgentStatus(raw.decode())


def _fleet_agent(agent_id: str, fields: Sequence[bytes | None], *, active: bool, load: int, now: int) -> FleetAgent:
    text = [None if value is None else value.decode() for value in fields]
    kind, capabilities, services, tags, labels, capacity, weight, health, rev, connections, pending, *report = text
    version, place, cpu, memory, beat, interval, term, status, _ = report
    return FleetAgent(
        agent_id=agent_id,
        agent_type=kind or "",
        capabilities=frozenset(parse_json(capabilities) or ()),
        services=frozenset(parse_json(services) or ()),
        tags=frozenset(parse_json(tags) or ()),
        labels=parse_json(labels) or {},
        version=version or "",
        capacity=int(capacity or 0),
        weight=float(weight or 1),
        health_score=float(health or 0),
        rev=int(rev or 0),
        active=active,
        load=load,
        outside_load=outside_load_of(float(connections or 0) + float(pending or 0)),
        location=_location(place),
        cpu=_share(cpu),
        memory=_share(memory),
        status=AgentStatus(status or "active"),
        load_at_report=load,
        report_age=max(0, now - int(beat or now)) / 1000,
        report_interval=int(interval) / 1000 if interval else None,
        term=int(term or 0),
        ejected=_current_ejections(fields[-1], now),
        read_at=now,
    )


def _current_ejections(raw: bytes | None, now: int) -> tuple[Ejected, ...]:
    """Return the ejections that are not over; one that cannot be read must not hide the agent."""
    if raw:
        with suppress(*BAD_JSON):
            return tuple(found for found in _ejected.decode(raw) if now < found.until <= now + _EJECTED_MOST_MS)
    return ()


def _deaf_reason(raw: Mapping[bytes, bytes]) -> str:
    if raw.get(b"deaf") != b"1":
        return ""
    return next((reason for reason in ("unpolled", "unread") if reason.encode() in raw), "reported")


@lru_cache(1_000)
def _health(parts: bytes | None) -> Health | None:
    return Health(*map(float, parts.split())) if parts else None


@lru_cache(1_000)
def _listed(raw: bytes | None) -> tuple[str, ...]:
    """Return a field with a list; most agents of a fleet have one of a few."""
    return tuple(_json(raw) or ())


def _location(place: str | None) -> Location | None:
    """Return a place; None if there is none, or none that can be read: it must not hide the agent."""
    with suppress(msgspec.ValidationError):
        return msgspec.convert(parse_json(place) or None, Location | None)
    return None


def _share(metric: str | None) -> float | None:
    """Return a metric as a fraction; an agent may report any number."""
    return None if metric is None else min(max(float(metric), 0.0), 1.0)


def _judged_agent(agent_id: str, row: Sequence[bytes | None], *, active: bool, load: int, now: int) -> FleetAgent:
    kind, capabilities, services, tags, labels, version, capacity, health, status, ejected = row
    return FleetAgent(
        agent_id=agent_id,
        agent_type=(kind or b"").decode(),
        capabilities=_names(capabilities),
        services=_names(services),
        tags=_names(tags),
        labels=_labels(labels),
        version=(version or b"").decode(),
        capacity=int(capacity or 0),
        health_score=float(health or 0),
        active=active,
        load=load,
        status=AgentStatus((status or b"active").decode()),
        ejected=_current_ejections(ejected, now),
        read_at=now,
    )


@lru_cache(1_000)
def _names(raw: bytes | None) -> frozenset[str]:
    """Return a field with a list of names; most agents of a fleet have one of a few lists."""
    return frozenset(parse_json(raw.decode()) or ()) if raw else frozenset()


@lru_cache(1_000)
def _labels(raw: bytes | None) -> dict[str, str]:
    """Return the labels of an agent, which must not be changed: agents with the same labels share them."""
    return (parse_json(raw.decode()) or {}) if raw else {}
