"""Statistics of the whole cell in one round trip of some 100 cheap commands, however many tasks, pools and agents."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.config import Settings, live_text
from coord.keys import CONSUMES, Keys
from coord.models.agents import AgentStatus
from coord.models.cell import Memory
from coord.models.ids import entry_ms
from coord.models.statistics import BOUNDS_MS, EMPTY_HISTOGRAM, CellStatistics, Histogram, StreamStatistics
from coord.models.tasks import Priority
from coord.queries.cell import PRESENT
from coord.queries.queues import waiting_counts_of
from coord.queries.reads import SET_STEP, chunks, decode_fields, parse_time, read_members
from coord.queries.settings import PRESENCE_PREFIX

#: Names of histograms that have a label, and those without.
_WAIT, _DISTRIBUTION, _RUN = "wait", "distribution", "run"
_STRATEGY = "strategy"
#: Streams whose facts have tokens: who only counts, such as the gateway, may not read them.
_WITH_TOKENS = ("in:registry", "in:beats", "in:links", "in:messages:", "in:control:")
_DEAD = {"task": "tasks:dead", "message": "messages:dead", "entry": "dead:in"}


async def get_statistics(redis: Redis, keys: Keys, settings: Settings, presence_ttl_ms: int) -> CellStatistics:
    """Return the statistics of the cell; one round trip, and a second one for the strategy unless it was set live.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        settings: stands for the environment of the distributors while none is present.
        presence_ttl_ms: a worker counts if it renewed its presence within this time.

    Raises:
        RedisError: the server does not answer, or the user may not read what every reader needs.
    """
    commands = _commands(keys)
    pipe = redis.pipeline(transaction=False)
    for command in commands.values():
        pipe.execute_command(*command)
    raw = dict(zip(commands, await pipe.execute(raise_on_error=False), strict=True))
    now = parse_time(_needed(raw["time"]))
    histograms = _histograms(decode_fields(_needed(raw["histograms"])))
    types = sorted(decode_fields(_needed(raw["task_types"])).items(), key=lambda row: (-int(row[1]), row[0]))
    since = now - presence_ttl_ms
    present = {kind: [name for name, at in _needed(raw["workers", kind]) if float(at) > since] for kind in PRESENT}
    live = decode_fields(_needed(raw["settings"]))
    return CellStatistics(
        now=now,
        strategy=live.get(_STRATEGY) or await _environment(redis, keys, settings, present["distributor"]),
        counters={name: int(value) for name, value in decode_fields(_needed(raw["counters"])).items()},
        task_types={name: int(count) for name, count in types},
        wait={priority: histograms.get(f"{_WAIT}:{priority}", EMPTY_HISTOGRAM) for priority in Priority},
        distribution=histograms.get(_DISTRIBUTION, EMPTY_HISTOGRAM),
        run={
            name.removeprefix(f"{_RUN}:"): histogram
            for name, histogram in sorted(histograms.items())
            if name.startswith(f"{_RUN}:")
        },
        total_agents=int(_needed(raw["agents"])),
        active_agents=int(_needed(raw["active"])),
        agents={status: int(_needed(raw["agents", status])) for status in AgentStatus},
        workers={kind: len(names) for kind, names in present.items() if names or kind in CONSUMES},
        streams=tuple(_stream(raw, kind, stream, now) for kind, streams in CONSUMES.items() for stream in streams),
        waiting=waiting_counts_of(_needed(raw["waiting"]), now),
        pools=int(_needed(raw["pools"])),
        dead_letters={kind: _number(raw["dead", kind]) for kind in _DEAD},
        open_requests=_number(raw["requests"]),
        memory=_memory(raw["memory"]),
    )


def _commands(keys: Keys) -> dict[Any, tuple[Any, ...]]:
    """Return what is read: name -> command."""
    commands: dict[Any, tuple[Any, ...]] = {
        "time": ("TIME",),
        "memory": ("INFO", "memory"),
        "agents": ("SCARD", keys.of("agents:all")),
        "active": ("SCARD", keys.of("agents:active")),
        "pools": ("HLEN", keys.of("pools")),
        "requests": ("ZCARD", keys.of("requests")),
    }
    for name in ("counters", "histograms", "task_types", "waiting", "settings"):
        commands[name] = ("HGETALL", keys.of(name))
    for status in AgentStatus:
        commands["agents", status] = ("SCARD", keys.facet("status", status))
    for kind, name in _DEAD.items():
        commands["dead", kind] = ("XLEN" if kind == "entry" else "ZCARD", keys.of(name))
    for kind in PRESENT:
        commands["workers", kind] = ("ZRANGE", keys.of(f"workers:{kind}"), 0, -1, "WITHSCORES")
    for kind, streams in CONSUMES.items():
        for stream in streams:
            commands["length", stream] = ("XLEN", keys.of(stream))
            commands["pending", stream] = ("XPENDING", keys.of(stream), kind)
            if not stream.startswith(_WITH_TOKENS):
                commands["first", stream] = ("XRANGE", keys.of(stream), "-", "+", "COUNT", 1)
    return commands


def _needed(answer: Any) -> Any:
    if isinstance(answer, Exception):
        raise answer
    return answer


def _number(answer: Any) -> int | None:
    """Return a number; None if the user may not read it."""
    return None if isinstance(answer, redis_errors.NoPermissionError) else int(_needed(answer))


def _stream(raw: Mapping[Any, Any], kind: str, stream: str, now: int) -> StreamStatistics:
    length, pending = _number(raw["length", stream]), raw["pending", stream]
    if isinstance(pending, redis_errors.NoPermissionError):
        return StreamStatistics(stream=stream, kind=kind, entries=length, pending=None, oldest_ms=None)
    # Without a group nothing was read: no worker of the kind has ever run.
    found = {} if isinstance(pending, redis_errors.ResponseError) else _needed(pending)
    oldest = found.get("min")  # read in the order of their ids, so the oldest that was read is the oldest of all
    if not oldest:
        first = _needed(raw.get(("first", stream), ()))
        oldest = first[0][0] if first else None
    is_unknown = oldest is None and bool(length) and ("first", stream) not in raw
    return StreamStatistics(
        stream=stream,
        kind=kind,
        entries=length,
        pending=int(found.get("pending", 0)),
        oldest_ms=None if is_unknown else max(0, now - entry_ms(oldest)) if oldest else 0,
    )


def _memory(answer: Any) -> Memory | None:
    if isinstance(answer, redis_errors.NoPermissionError):
        return None
    info = _needed(answer)
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    return Memory(used=used, maximum=int(info.get("maxmemory", 0)))


def _histograms(fields: Mapping[str, str]) -> dict[str, Histogram]:
    """Return the histograms by name, from ``{name}:{bound}`` and ``{name}:sum``.

    A bound of another release counts for the next higher one.
    """
    buckets: dict[str, list[int]] = {}
    sums: dict[str, int] = {}
    for field, value in fields.items():
        name, _, bound = field.rpartition(":")
        if bound == "sum":
            sums[name] = int(value)
            continue
        of_name = buckets.setdefault(name, [0] * (len(BOUNDS_MS) + 1))
        place = len(BOUNDS_MS) if bound == "inf" else sum(known < int(bound) for known in BOUNDS_MS)
        of_name[place] += int(value)
    return {name: Histogram(tuple(of_name), sums.get(name, 0)) for name, of_name in buckets.items()}


async def get_weights(redis: Redis, keys: Keys) -> dict[str, float]:
    """Return the weight of each agent that may get work now; a round trip for every 1,000 agents."""
    agents = await read_members(redis, keys.of("agents:active"))
    weights: dict[str, float] = {}
    for some in chunks(agents, SET_STEP):
        pipe = redis.pipeline(transaction=False)
        for agent_id in some:
            pipe.hget(keys.agent(agent_id), "weight")
        for agent_id, weight in zip(some, await pipe.execute(), strict=True):
            weights[agent_id] = float(weight or 1)
    return weights


async def _environment(redis: Redis, keys: Keys, settings: Settings, distributors: list[bytes]) -> str:
    """Return the strategy in the environment of the distributors."""
    pipe = redis.pipeline(transaction=False)
    for name in distributors:
        pipe.hget(keys.worker("distributor", name.decode()), f"{PRESENCE_PREFIX}{_STRATEGY}")
    found = sorted({value.decode() for value in await pipe.execute() if value}) if distributors else []
    return " | ".join(found) or live_text(_STRATEGY, settings.strategy)
