"""A worker as it says that it is there, and what waits for it."""

from __future__ import annotations

from msgspec import Struct

from coord.models.memory import MemoryUse

#: kind of worker -> what waits while none of the kind runs.
WAITS_FOR = {
    "registry": "registrations and heartbeats",
    "distributor": "submitted tasks and results",
    "router": "messages",
}


class WorkerRecord(Struct, frozen=True, kw_only=True):
    """A worker's presence. Moments are milliseconds since 1970: ``started_at`` by its clock, else by the server's."""

    kind: str
    name: str
    pid: int
    host: str
    version: str
    started_at: int
    progress_at: int  #: when its loop last came round
    handled: int  #: entries since its start
    per_s: float  #: entries a second since it said so before, a few seconds ago
    lag_ms: int  #: how old the last entry was when it was handled


class StreamBacklog(Struct, frozen=True, kw_only=True):
    """A stream of facts, and what waits in it to be handled."""

    stream: str  #: without the namespace
    kind: str  #: of the workers that read it
    length: int
    oldest_at: int | None = None  #: milliseconds since 1970 on the server's clock; None: it is empty


class Picture(Struct, frozen=True):
    """A cell's workers at one moment, and what is wrong."""

    workers: list[WorkerRecord]
    backlogs: list[StreamBacklog]  #: streams in which something waits
    warnings: list[str]
    now: int  #: milliseconds since 1970 on the server's clock
    memory: MemoryUse | None = None  #: how full the server is, and what holds its memory
