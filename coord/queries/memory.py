"""Memory: how full the server is, and which kinds of keys use its memory.

Keys that exist once are measured individually. For families (records, inboxes, replies) a sample of the keyspace is
measured and scaled up; a small keyspace is measured completely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.keys import CONSUMES, Keys
from coord.models.cell import Memory, MemoryPart, MemoryUse
from coord.models.events import LOGS
from coord.queries.reads import chunks, decode_text
from coord.queries.tasks import get_counters

#: Keys in the sample: the error for a kind that has a tenth of them is a few percent.
SAMPLE = 2_000
#: Keys in one round trip: some milliseconds of the server's time.
CHUNK = 500

#: Keys that exist once.
SINGLE = (
    *(f"log:{log}" for log in (*LOGS, "reports", "learned", "loads")),
    *(stream for streams in CONSUMES.values() for stream in streams),
    *("dead:in", "messages:dead", "tasks:dead", "tasks:terminal", "tasks:refused", "pools", "pools:changed"),
    *("alarms", "deadlines", "limits", "unclaimed", "suspended", "counters", "tombstones"),
    *("agents:all", "agents:active", "agents:expiry", "agents:departed", "agents:lost", "agents:reported"),
)
#: Kind by the prefix of a key's name, first match; a task's record has its kind by state. The rest is ``OTHER``.
KINDS = {
    "replies:": "replies",
    "inbox:": "inboxes",
    "in:": "facts in streams",
    "message:": "messages",
    "recipients:": "messages",
    "outcomes:": "messages",
    "messages:dead": "dead letters",
    "dead:in": "dead letters",
    "tasks:dead": "dead letters",
    "tasks:terminal": "ended tasks",
    "tasks:refused": "refused tasks",
    "agent": "agents",
    "token:": "agents",
    "inflight:": "agents",
    "unclaimed": "agents",
    "suspended": "agents",
    "queue:": "waiting tasks",
    "pools": "waiting tasks",
    "alarms": "waiting tasks",
    "deadlines": "running tasks",
    "limits": "running tasks",
}
STATES = {
    b"scheduled": "waiting tasks",
    b"queued": "waiting tasks",
    b"assigned": "running tasks",
    b"running": "running tasks",
    b"completed": "ended tasks",
    b"cancelled": "ended tasks",
    b"expired": "ended tasks",
    b"failed": "dead letters",
    b"refused": "refused tasks",
}
OTHER = "other"
#: Memory that no key of the cell holds: connections, buffers, other namespaces.
SERVER = "server and other data"


async def get_memory(redis: Redis) -> Memory:
    """Return how full the server is, as the server itself counts it: without buffers of replicas and of the AOF."""
    info = await redis.info("memory")
    used = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    return Memory(used=used, maximum=int(info.get("maxmemory", 0)))


async def measure_memory(redis: Redis, keys: Keys) -> MemoryUse:
    """Measure a cell's memory by kind of key; what the user may not read is left out and named in ``note``."""
    notes: list[str] = []
    try:
        memory = await get_memory(redis)
    except redis_errors.ResponseError as error:
        memory = Memory(0, 0)
        notes.append(f"how full the server is cannot be read (INFO): {error}")
    parts: list[MemoryPart] = []
    try:
        parts += await _parts(redis, keys)
    except redis_errors.ResponseError as error:  # not permitted, or a server that does not know the command
        notes.append(f"keys cannot be measured (MEMORY USAGE, SCAN, DBSIZE): {error}")
    else:
        rest = max(0, memory.used - sum(part.bytes for part in parts))
        is_estimate = any(part.is_estimate for part in parts)
        parts.append(MemoryPart(kind=SERVER, bytes=rest, keys=0, is_estimate=is_estimate))
    counters = await get_counters(redis, keys)
    return MemoryUse(
        used=memory.used,
        maximum=memory.maximum,
        parts=sorted(parts, key=lambda part: -part.bytes),
        results_dropped=counters.get("results_dropped", 0),
        results_dropped_bytes=counters.get("results_dropped_bytes", 0),
        dead_letters_dropped=counters.get("dead_letters_dropped", 0),
        note="; ".join(notes),
    )


async def _parts(redis: Redis, keys: Keys) -> list[MemoryPart]:
    sizes: defaultdict[str, int] = defaultdict(int)
    numbers: defaultdict[str, float] = defaultdict(float)
    for name, size in zip(SINGLE, await _measure(redis, keys, SINGLE), strict=True):
        if size:
            sizes[_kind(name)] += size
            numbers[_kind(name)] += 1
    sampled, scale = await _sample(redis, keys)
    estimated: set[str] = set()
    for chunk in chunks(sampled, CHUNK):
        of_tasks = [name for name in chunk if name.startswith("task:")]
        states = dict(zip(of_tasks, await _states(redis, keys, of_tasks), strict=True))
        for name, size in zip(chunk, await _measure(redis, keys, chunk), strict=True):
            if not size:
                continue  # the key ended during the measurement
            kind = STATES.get(states[name] or b"", OTHER) if name in states else _kind(name)
            sizes[kind] += round(size * scale)
            numbers[kind] += 0 if name.startswith("size:") else scale
            if scale > 1:
                estimated.add(kind)
    return [
        MemoryPart(kind=kind, bytes=size, keys=round(numbers[kind]), is_estimate=kind in estimated)
        for kind, size in sizes.items()
    ]


async def _sample(redis: Redis, keys: Keys) -> tuple[list[str], float]:
    """Return a sample of the keys of the cell's families, and the number of keys that each of them represents.

    SCAN walks the hash table, so its first keys are a random sample. On a server in cluster mode it walks slot by slot;
    there the sample is representative only if the server has a single cell.
    """
    total = int(await redis.dbsize())
    cursor, seen = 0, 0
    sampled: list[str] = []
    while True:
        cursor, names = await redis.scan(cursor, count=CHUNK)
        seen += len(names)
        texts = [decode_text(name) for name in names]
        sampled += [text.removeprefix(keys.prefix) for text in texts if text.startswith(keys.prefix)]
        if not cursor or seen >= SAMPLE:
            break
    families = [name for name in dict.fromkeys(sampled) if name not in SINGLE]
    return families, max(1.0, total / seen) if cursor and seen else 1.0


async def _measure(redis: Redis, keys: Keys, names: Sequence[str]) -> list[int | None]:
    pipe = redis.pipeline(transaction=False)
    for name in names:
        # A record has few fields, one of which may be large, so all are counted. Long keys are sampled by the server.
        samples = ("SAMPLES", 0) if name.startswith(("task:", "message:")) else ()
        pipe.execute_command("MEMORY USAGE", keys.of(name), *samples)
    answers: list[int | None] = await pipe.execute()
    return answers


async def _states(redis: Redis, keys: Keys, names: Sequence[str]) -> list[bytes | None]:
    pipe = redis.pipeline(transaction=False)
    for name in names:
        pipe.hget(keys.of(name), "state")
    answers: list[Any] = await pipe.execute(raise_on_error=False)
    return [answer if isinstance(answer, bytes) else None for answer in answers]


def _kind(name: str) -> str:
    name = name.removeprefix("size:")
    if name.startswith("log:"):
        return name
    return next((kind for prefix, kind in KINDS.items() if name.startswith(prefix)), OTHER)
