"""The state of a cell: the memory of its server, the presence of its workers, and the backlog of its streams."""

from __future__ import annotations

from msgspec import Struct

# Shares of maxmemory, in the order in which they are reached.

#: Above this share, results and payloads of ended tasks are dropped, oldest first …
RELIEVE_ABOVE = 0.75
#: … until this share is in use. A pass frees a twentieth of the memory, so passes are rare.
RELIEVE_DOWN_TO = 0.70
#: Above this share submissions are refused, because the waiting tasks need room for their results.
REFUSE_ABOVE = 0.85
#: The same share: above it dead letters of messages are removed, oldest first, until the next share is in use.
LETTERS_DOWN_TO = 0.80
#: Above this share no task is placed: the rest is for the results of tasks that agents hold.
PLACE_UP_TO = 0.92


class Memory(Struct, frozen=True):
    """Memory in use and its maximum, in bytes; a maximum of 0 means none."""

    used: int
    maximum: int

    @property
    def share(self) -> float:
        """The used share of the maximum; 0 if there is no maximum."""
        return self.used / self.maximum if self.maximum else 0.0

    @property
    def is_nearly_full(self) -> bool:
        """True while submissions are refused, so that reports have room."""
        return self.share > REFUSE_ABOVE

    @property
    def is_too_full_to_place(self) -> bool:
        """True while no task is placed, so that the results of running tasks have room."""
        return self.share > PLACE_UP_TO


class MemoryPart(Struct, frozen=True, kw_only=True):
    """The memory of the keys of one kind."""

    kind: str  #: ended tasks, log:tasks, …
    bytes: int
    keys: int
    is_estimate: bool = False  #: scaled up from a sample of the keys


class MemoryUse(Struct, frozen=True, kw_only=True):
    """The use of a server's memory; bytes."""

    used: int  #: 0 if INFO is forbidden
    maximum: int  #: 0: no limit
    parts: list[MemoryPart] = []  #: largest first; empty if keys cannot be measured
    results_dropped: int = 0  #: ended tasks whose result and payload were dropped, since the cell was created
    results_dropped_bytes: int = 0
    dead_letters_dropped: int = 0  #: dead letters of messages that were removed to free memory
    note: str = ""  #: what could not be measured, and why

    @property
    def memory(self) -> Memory:
        """Memory in use and its maximum."""
        return Memory(self.used, self.maximum)


#: kind of worker -> the items that wait while no worker of that kind runs.
WAITS_FOR = {
    "registry": "registrations and heartbeats",
    "distributor": "submitted tasks and results",
    "router": "messages",
    "push": "tasks of agents with an HTTP endpoint",
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
    heartbeat_at: int = 0  #: its last sign of life
    handled: int  #: entries handled since its start
    per_s: float  #: entries a second since its previous report, a few seconds earlier
    lag_ms: int  #: age of the last entry when it was handled
    require_tokens: bool | None = None  #: its setting; None: a worker that does not report it
    lanes: tuple[str, ...] = ()  #: of messages, which a router delivers


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
