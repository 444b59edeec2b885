"""The cell as a whole: if it is in use, which workers are present, how many facts wait, and if writes are accepted.

A server with a full disk or memory, or another role, refuses writes and still answers reads.
"""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct
from redis import exceptions as redis_errors
from redis.asyncio import Redis

from coord.connection import is_temporary, server_text
from coord.keys import CONSUMES, GATEWAY, KINDS, PUSH, Keys
from coord.models.cell import StreamBacklog, WorkerRecord
from coord.models.facts import STREAM_FACTS
from coord.models.ids import entry_ms
from coord.queries.memory import get_memory
from coord.queries.reads import decode_fields, decode_text, parse_time

#: The kinds of processes that record their presence, in the order in which they are listed.
PRESENT = (*KINDS, GATEWAY)


async def is_empty_cell(redis: Redis, keys: Keys) -> bool:
    """Return True if no worker has started in the namespace and no client has submitted anything to it.

    A worker creates the streams that it reads, with its consumer group; a client creates the one that it appends to.
    """
    return not await redis.exists(*(keys.of(stream) for stream in STREAM_FACTS))


class WorkersSnapshot(Struct, frozen=True):
    """The workers and their streams at one moment."""

    now: int  #: milliseconds since 1970 on the server's clock
    workers: list[WorkerRecord]  #: by kind, then name
    backlogs: list[StreamBacklog]  #: every stream of facts; by kind, in the order in which its workers read them
    pushed: int = 0  #: agents to which tasks are pushed


async def list_workers(redis: Redis, keys: Keys) -> WorkersSnapshot:
    """Return all present workers and gateways, and the length and age of each stream; two round trips."""
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    pipe.scard(keys.of("agents:pushed"))
    for kind in PRESENT:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1)
    streams = [(kind, stream) for kind, consumed in CONSUMES.items() for stream in consumed]
    for _, stream in streams:
        pipe.xlen(keys.of(stream))
        pipe.execute_command("XRANGE", keys.of(stream), "-", "+", "COUNT", 1)
    time, pushed, *answers = await pipe.execute()
    names_of_kinds, of_streams = answers[: len(PRESENT)], answers[len(PRESENT) :]
    names = [(kind, decode_text(name)) for kind, found in zip(PRESENT, names_of_kinds, strict=True) for name in found]
    backlogs = [
        StreamBacklog(stream=stream, kind=kind, length=int(length), oldest_at=entry_ms(first[0][0]) if first else None)
        for (kind, stream), length, first in zip(streams, of_streams[::2], of_streams[1::2], strict=True)
    ]
    return WorkersSnapshot(parse_time(time), await _get_records(redis, keys, names), backlogs, int(pushed))


async def count_workers(redis: Redis, keys: Keys, ttl_ms: int) -> dict[str, int]:
    """Return the number of present workers by kind, for health checks; one round trip.

    Push workers are listed only if there is one, or an agent that needs one.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        ttl_ms: a worker counts if it renewed its presence within this time.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    pipe.scard(keys.of("agents:pushed"))
    for kind in KINDS:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1, withscores=True)
    time, pushed, *found = await pipe.execute()
    since = parse_time(time) - ttl_ms
    counts = {kind: sum(at > since for _, at in names) for kind, names in zip(KINDS, found, strict=True)}
    return {kind: count for kind, count in counts.items() if kind != PUSH or count or pushed}


async def _get_records(redis: Redis, keys: Keys, names: list[tuple[str, str]]) -> list[WorkerRecord]:
    pipe = redis.pipeline(transaction=False)
    for kind, name in names:
        pipe.hgetall(keys.worker(kind, name))
    records: list[WorkerRecord] = []
    for (kind, name), raw in zip(names, await pipe.execute(), strict=True):
        if raw:  # the name stays in the index for a moment after the record has expired
            records.append(worker_record(kind, name, decode_fields(raw)))
    return sorted(records, key=lambda worker: (PRESENT.index(worker.kind), worker.name))


def worker_record(kind: str, name: str, fields: Mapping[str, str]) -> WorkerRecord:
    """Return the presence of a worker or gateway from the fields of its hash."""
    heartbeat_at = int(fields.get("progress_at", 0))
    return WorkerRecord(
        kind=kind,
        name=name,
        pid=int(fields.get("pid", 0)),
        host=fields.get("host", ""),
        version=fields.get("version", ""),
        started_at=int(fields.get("started_at", 0)),
        progress_at=heartbeat_at - int(fields.get("idle_ms", 0)),
        heartbeat_at=heartbeat_at,
        handled=int(fields.get("handled", 0)),
        per_s=float(fields.get("per_s", 0)),
        lag_ms=int(fields.get("lag_ms", 0)),
        require_tokens={"on": True, "off": False}.get(fields.get("require_tokens", "")),
        lanes=tuple(fields.get("lanes", "").split()),
    )


async def get_write_refusal(redis: Redis) -> str:
    """Return why the server refuses every write at the moment, or ''; sends three commands.

    Raises:
        RedisError: the server does not answer, or refuses permanently.
    """
    try:
        await redis.ping()  # refused with MISCONF exactly while writes are
    except redis_errors.ResponseError as error:
        if is_temporary(error):
            return server_text(error).rstrip(".")
        raise
    try:
        role = (await redis.info("replication")).get("role")
        used = await get_memory(redis)
    except redis_errors.NoPermissionError:
        return ""  # this user has no permission to ask
    if role == "slave":
        return "it is a read-only replica"
    if used.maximum and used.used >= used.maximum:
        return "its memory is full"
    return ""
