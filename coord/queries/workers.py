"""Workers: which are present, and how many facts wait for them."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis

from coord.keys import CONSUMES, Keys
from coord.models.ids import entry_ms
from coord.models.workers import StreamBacklog, WorkerRecord
from coord.queries.fields import decode_fields, decode_text, parse_time


class WorkersSnapshot(Struct, frozen=True):
    """The workers and their streams at one moment."""

    now: int  #: milliseconds since 1970 on the server's clock
    workers: list[WorkerRecord]  #: by kind, then name
    backlogs: list[StreamBacklog]  #: every stream of facts; by kind, in the order in which its workers read them


async def list_workers(redis: Redis, keys: Keys) -> WorkersSnapshot:
    """Return all workers whose presence has not expired, and the length and age of each stream; two round trips."""
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    for kind in CONSUMES:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1)
    streams = [(kind, stream) for kind, consumed in CONSUMES.items() for stream in consumed]
    for _, stream in streams:
        pipe.xlen(keys.of(stream))
        pipe.execute_command("XRANGE", keys.of(stream), "-", "+", "COUNT", 1)
    time, *answers = await pipe.execute()
    names_of_kinds, of_streams = answers[: len(CONSUMES)], answers[len(CONSUMES) :]
    names = [(kind, decode_text(name)) for kind, found in zip(CONSUMES, names_of_kinds, strict=True) for name in found]
    backlogs = [
        StreamBacklog(stream=stream, kind=kind, length=int(length), oldest_at=entry_ms(first[0][0]) if first else None)
        for (kind, stream), length, first in zip(streams, of_streams[::2], of_streams[1::2], strict=True)
    ]
    return WorkersSnapshot(parse_time(time), await _get_records(redis, keys, names), backlogs)


async def count_workers(redis: Redis, keys: Keys, ttl_ms: int) -> dict[str, int]:
    """Return the number of present workers by kind, for health checks; one round trip.

    Args:
        redis: an asyncio client that answers in bytes.
        keys: of the cell.
        ttl_ms: a worker counts if it renewed its presence within this time.
    """
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    for kind in CONSUMES:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1, withscores=True)
    time, *found = await pipe.execute()
    since = parse_time(time) - ttl_ms
    return {kind: sum(at > since for _, at in names) for kind, names in zip(CONSUMES, found, strict=True)}


async def _get_records(redis: Redis, keys: Keys, names: list[tuple[str, str]]) -> list[WorkerRecord]:
    pipe = redis.pipeline(transaction=False)
    for kind, name in names:
        pipe.hgetall(keys.worker(kind, name))
    records: list[WorkerRecord] = []
    for (kind, name), raw in zip(names, await pipe.execute(), strict=True):
        if raw:  # the name stays in the index for a moment after the record has expired
            fields = decode_fields(raw)
            records.append(
                WorkerRecord(
                    kind=kind,
                    name=name,
                    pid=int(fields.get("pid", 0)),
                    host=fields.get("host", ""),
                    version=fields.get("version", ""),
                    started_at=int(fields.get("started_at", 0)),
                    progress_at=int(fields.get("progress_at", 0)) - int(fields.get("idle_ms", 0)),
                    handled=int(fields.get("handled", 0)),
                    per_s=float(fields.get("per_s", 0)),
                    lag_ms=int(fields.get("lag_ms", 0)),
                )
            )
    return sorted(records, key=lambda worker: (list(CONSUMES).index(worker.kind), worker.name))
