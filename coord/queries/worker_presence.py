"""Which workers are there, and what waits for them."""

from __future__ import annotations

from msgspec import Struct
from redis.asyncio import Redis

from coord.keys import CONSUMES, Keys
from coord.models.workers import StreamBacklog, WorkerRecord
from coord.queries.fields import decoded, text_of


class Presence(Struct, frozen=True):
    """What was found at one moment."""

    now: int  #: milliseconds since 1970 on the server's clock
    workers: list[WorkerRecord]  #: by kind, then name
    backlogs: list[StreamBacklog]  #: each stream that a kind of worker reads, in the order in which it reads them


async def presence(redis: Redis, keys: Keys) -> Presence:
    """Every worker whose presence has not ended, and the length and age of every stream; read in two round trips."""
    pipe = redis.pipeline(transaction=False)
    pipe.time()
    for kind in CONSUMES:
        pipe.zrange(keys.of(f"workers:{kind}"), 0, -1)
    streams = [(kind, stream) for kind, consumed in CONSUMES.items() for stream in consumed]
    for _, stream in streams:
        pipe.xlen(keys.of(stream))
        pipe.execute_command("XRANGE", keys.of(stream), "-", "+", "COUNT", 1)
    (seconds, micros), *answers = await pipe.execute()
    of_kinds, of_streams = answers[: len(CONSUMES)], answers[len(CONSUMES) :]
    names = [(kind, text_of(name)) for kind, found in zip(CONSUMES, of_kinds, strict=True) for name in found]
    backlogs = [
        StreamBacklog(stream=stream, kind=kind, length=int(length), oldest_at=_moment(first))
        for (kind, stream), length, first in zip(streams, of_streams[::2], of_streams[1::2], strict=True)
    ]
    return Presence(int(seconds) * 1000 + int(micros) // 1000, await _workers(redis, keys, names), backlogs)


async def _workers(redis: Redis, keys: Keys, names: list[tuple[str, str]]) -> list[WorkerRecord]:
    pipe = redis.pipeline(transaction=False)
    for kind, name in names:
        pipe.hgetall(keys.worker(kind, name))
    found: list[WorkerRecord] = []
    for (kind, name), raw in zip(names, await pipe.execute(), strict=True):
        if raw:  # its name outlives it by a moment
            fields = decoded(raw)
            found.append(
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
    return sorted(found, key=lambda worker: (list(CONSUMES).index(worker.kind), worker.name))


def _moment(first: list[tuple[bytes, dict[bytes, bytes]]]) -> int | None:
    """The time in the id of a stream's first entry."""
    return int(first[0][0].partition(b"-")[0]) if first else None
