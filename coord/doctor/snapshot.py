"""Reads what the checks need, in some round trips of bounded cost, however many agents, tasks and pools there are."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from msgspec import Struct
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError, ResponseError

from coord.config import Settings
from coord.doctor.agents import AgentProblems, read_agent_problems
from coord.errors import ServerUnfit
from coord.fsck import FsckReport, examine
from coord.keys import CONSUMES, GATEWAY, KINDS, Keys
from coord.models.cell import WorkerRecord
from coord.models.ids import entry_ms
from coord.models.statistics import CellStatistics
from coord.queries import get_statistics, get_write_refusal, worker_record
from coord.queries.reads import decode_fields, decode_text, parse_time
from coord.queries.settings import PRESENCE_PREFIX
from coord.server_check import ADVISED_SETTINGS

#: Entries of ``log:agents`` that are read for the clocks of agents, and for agents that were just ejected.
REGISTRATIONS = 200
#: Milliseconds for which a registration says something about the clock of its machine.
REGISTERED_MS = 3_600_000
#: Processes of one kind that are read.
PROCESSES = 500
#: The kinds of processes, in the order of ``coord ps``.
_KINDS = (*KINDS, GATEWAY)


class Registration(Struct, frozen=True):
    """When an agent registered, by two clocks; ms since 1970."""

    agent_id: str
    created_at: int  #: when its incarnation was made, by the clock of its machine
    at: int  #: when it was registered, by the server's clock


class Snapshot(Struct, frozen=True, kw_only=True):
    """A cell at one moment."""

    now: int  #: ms since 1970 on the server's clock
    statistics: CellStatistics
    processes: tuple[WorkerRecord, ...]  #: workers and gateways, by kind, then name
    #: Distributor -> the values of its environment for live settings.
    environments: Mapping[str, Mapping[str, str]] = {}
    pending: Mapping[str, Mapping[str, int]] = {}  #: stream -> worker -> entries that it has read and not handled
    oldest: Mapping[str, int] = {}  #: stream -> age of its oldest entry, ms; only of streams that may be read
    pushed: int = 0  #: agents to which tasks are pushed
    info: Mapping[str, Any] | None = None  #: of the server; None: the user may not read it
    config: Mapping[str, str] | None = None  #: of the server; None: the user may not read it, or it was not asked for
    refusal: str = ""  #: why the server refuses every write at the moment
    agents: AgentProblems = AgentProblems()
    registrations: tuple[Registration, ...] = ()  #: the newest
    #: This machine's clock less the server's, ms; None: not measured.
    clock_offset: int | None = None
    clock_error: int = 0  #: the offset may be wrong by this, ms: half of the round trip
    denied: tuple[str, ...] = ()  #: what the user may not read: ``CONFIG GET``
    ledger: FsckReport | None = None  #: None: not checked
    allow_eviction: bool = False  #: the setting of this process


async def read_snapshot(
    redis: Redis, keys: Keys, settings: Settings, *, full: bool = True, checks_ledger: bool = False
) -> Snapshot:
    """Read a cell.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: of this process.
        full: read what only an operator may read: settings of the server, and facts that have tokens.
        checks_ledger: check counters and records too, which takes seconds.

    Raises:
        ServerUnfit: the user may not read the cell.
        RedisError: the server does not answer.
    """
    ttl_ms = int(settings.presence_ttl_s * 1000)
    try:
        statistics = await get_statistics(redis, keys, settings, presence_ttl_ms=ttl_ms)
    except NoPermissionError as error:
        raise ServerUnfit(
            f"this user may not read the cell ({error}); connect as an operator (`coord acl operator`)"
        ) from error
    refusal = await get_write_refusal(redis)
    began = time.time()
    await redis.ping()
    middle = time.time()
    raw, denied = await _read(redis, keys, full=full)
    now = parse_time(raw["time"])
    half_trip = (middle - began) / 2
    processes, environments = await _processes(redis, keys, raw)
    try:
        agents = await read_agent_problems(redis, keys, statistics, _ejected(raw.get("registered", ())))
    except NoPermissionError:
        agents = AgentProblems()
        denied.append("read the indexes and records of agents")
    ledger = None
    if checks_ledger:
        try:
            ledger = await examine(redis, keys, settings=settings)
        except NoPermissionError:
            denied.append("read every key, for the check of the ledger")
    return Snapshot(
        now=now,
        statistics=statistics,
        processes=processes,
        environments=environments,
        pending={
            stream: _consumers(raw.get(("pending", stream))) for streams in CONSUMES.values() for stream in streams
        },
        oldest=_ages(raw, now)
        | {stream.stream: stream.oldest_ms for stream in statistics.streams if stream.oldest_ms is not None},
        pushed=int(raw.get("pushed", 0)),
        info=raw.get("info"),
        config=None if "config" not in raw else {decode_text(k): decode_text(v) for k, v in raw["config"].items()},
        refusal=refusal,
        agents=agents,
        registrations=tuple(_registrations(raw.get("registered", ()), now)),
        clock_offset=round((middle + half_trip) * 1000) - now,
        clock_error=round(half_trip * 1000),
        denied=tuple(denied),
        ledger=ledger,
        allow_eviction=settings.allow_eviction,
    )


def _commands(keys: Keys, *, full: bool) -> dict[Any, tuple[Any, ...]]:
    """Return what is read: name -> command."""
    commands: dict[Any, tuple[Any, ...]] = {
        "time": ("TIME",),
        "info": ("INFO",),
        "pushed": ("SCARD", keys.of("agents:pushed")),
        "registered": ("XREVRANGE", keys.of("log:agents"), "+", "-", "COUNT", REGISTRATIONS),
    }
    if full:
        commands["config"] = ("CONFIG GET", "proto-max-bulk-len", "appendfsync", "save", *ADVISED_SETTINGS)
    for kind in _KINDS:
        commands["workers", kind] = ("ZRANGE", keys.of(f"workers:{kind}"), 0, PROCESSES - 1)
    for kind, streams in CONSUMES.items():
        for stream in streams:
            commands["pending", stream] = ("XPENDING", keys.of(stream), kind)
            if full:
                commands["first", stream] = ("XRANGE", keys.of(stream), "-", "+", "COUNT", 1)
    return commands


async def _read(redis: Redis, keys: Keys, *, full: bool) -> tuple[dict[Any, Any], list[str]]:
    """Return the answers by name, and the commands that the user may not send; one round trip."""
    commands = _commands(keys, full=full)
    pipe = redis.pipeline(transaction=False)
    for command in commands.values():
        pipe.execute_command(*command)
    raw, denied = {}, list[str]()
    for (name, command), answer in zip(commands.items(), await pipe.execute(raise_on_error=False), strict=True):
        if isinstance(answer, NoPermissionError):
            denied.append(command[0] if name in {"info", "config"} else f"{command[0]} {command[1]}")
        elif isinstance(answer, ResponseError) and name != "time":
            continue  # a stream without a group, or a command that a managed server does not have
        elif isinstance(answer, Exception):
            raise answer
        else:
            raw[name] = answer
    return raw, list(dict.fromkeys(denied))


async def _processes(
    redis: Redis, keys: Keys, raw: Mapping[Any, Any]
) -> tuple[tuple[WorkerRecord, ...], dict[str, dict[str, str]]]:
    """Return the processes with a record, and the environment of each distributor; one round trip."""
    names = [(kind, decode_text(name)) for kind in _KINDS for name in sorted(raw.get(("workers", kind), ()))]
    pipe = redis.pipeline(transaction=False)
    for kind, name in names:
        pipe.hgetall(keys.worker(kind, name))
    found: list[WorkerRecord] = []
    environments: dict[str, dict[str, str]] = {}
    for (kind, name), answer in zip(names, await pipe.execute() if names else (), strict=True):
        if not answer:  # the name stays in the index for a moment after the record has expired
            continue
        fields = decode_fields(answer)
        found.append(worker_record(kind, name, fields))
        settings = {
            field.removeprefix(PRESENCE_PREFIX): value
            for field, value in fields.items()
            if field.startswith(PRESENCE_PREFIX)
        }
        if settings:
            environments[name] = settings
    return tuple(found), environments


def _ejected(entries: Any) -> list[str]:
    """Return the agents that entries of the log of agents name as ejected."""
    rows = [decode_fields(raw) for _, raw in entries]
    return [row["agent_id"] for row in rows if row.get("type") == "agent.ejected" and "agent_id" in row]


def _consumers(answer: Any) -> dict[str, int]:
    """Return the entries that each worker has read and not handled, from the answer of XPENDING."""
    return {decode_text(row["name"]): int(row["pending"]) for row in (answer or {}).get("consumers", ())}


def _ages(raw: Mapping[Any, Any], now: int) -> dict[str, int]:
    """Return the age of the oldest entry of each stream that was read."""
    first = {name[1]: entries for name, entries in raw.items() if name[0] == "first"}
    return {stream: max(0, now - entry_ms(entries[0][0])) for stream, entries in first.items() if entries}


def _registrations(entries: Any, now: int) -> list[Registration]:
    """Return the newest registration of each agent within the last hour; clocks may have been corrected since.

    Args:
        entries: of the log, newest first.
        now: the server's clock in ms.
    """
    newest: dict[str, Registration | None] = {}
    for entry_id, raw in entries:
        fields = decode_fields(raw)
        at, agent_id = entry_ms(entry_id), fields.get("agent_id", "")
        if fields.get("type") == "agent.registered" and now - at < REGISTERED_MS and agent_id not in newest:
            created_at = _created_at(fields.get("incarnation", ""))
            newest[agent_id] = None if created_at is None else Registration(agent_id, created_at, at)
    return [registration for registration in newest.values() if registration is not None]


def _created_at(incarnation: str) -> int | None:
    """Return when an incarnation was made, by the clock of the agent; None if it is no UUIDv7."""
    digits = incarnation.replace("-", "")
    if len(digits) != 32 or digits[12] != "7":
        return None
    try:
        return int(digits[:12], 16)
    except ValueError:
        return None
