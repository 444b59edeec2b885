"""Workers: the presence of each, and the backlog of its streams."""

from __future__ import annotations

from msgspec import Struct

from coord.models.memory import MemoryUse

#: kind of worker -> the items that wait while no worker of that kind runs.
WAITS_FOR = {
    "registry": "registrations and heartbeats",
    "distributor": "submitted tasks and results",
    "router": "messages",
}


class WorkerRecord(Struct, frozen=True, kw_only=True):
    """The presence of a worker.

    Times are milliseconds since 1970: ``started_at`` on the worker's clock, the others on the server's.
    """

    kind: str
    name: str
    pid: int
    host: str
    version: str
    started_at: int
    progress_at: int  #: last iteration of its loop
    handled: int  #: entries handled since its start
    per_s: float  #: entries a second since its previous report, a few seconds earlier
    lag_ms: int  #: age of the last entry when it was handled


class StreamBacklog(Struct, frozen=True, kw_only=True):
    """The backlog of a stream of facts."""

    stream: str  #: without the namespace
    kind: str  #: kind of worker that reads it
    length: int
    oldest_at: int | None = None  #: time of the oldest entry, ms since 1970 on the server's clock; None: empty


class WorkersReport(Struct, frozen=True):
    """The workers of a cell at one moment, with warnings."""

    workers: list[WorkerRecord]
    backlogs: list[StreamBacklog]  #: streams that are not empty
    warnings: list[str]
    now: int  #: milliseconds since 1970 on the server's clock
    memory: MemoryUse | None = None  #: the use of the server's memory
