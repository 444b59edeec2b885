"""Traces: what happened in a cell for a while, as far as a simulation needs it."""

from __future__ import annotations

from msgspec import Struct

from coord.models.agents import Location
from coord.models.tasks import Priority

#: Version of the format of a trace. A reader refuses others.
TRACE_VERSION = 1


class TraceHeader(Struct, frozen=True, tag_field="line", tag="trace"):
    """The first line of a trace. Times are milliseconds since 1970 on the server's clock."""

    version: int
    begin: int
    end: int
    strategy: str  #: of the cell, when the trace was made
    skipped: int = 0  #: completed tasks whose records were removed


class TraceAgent(Struct, frozen=True, omit_defaults=True, tag_field="line", tag="agent"):
    """An agent that had tasks, or could have had some."""

    agent_id: str
    capacity: int
    weight: float = 1.0
    capabilities: tuple[str, ...] = ()
    location: Location | None = None


class TraceTask(Struct, frozen=True, omit_defaults=True, tag_field="line", tag="task"):
    """A completed task. Times are milliseconds since 1970."""

    task_id: str
    task_type: str
    ready_at: int  #: when it was submitted, or its run time
    assigned_at: int  #: of the attempt that completed
    finished_at: int
    agent_id: str
    priority: Priority = Priority.NORMAL
    capabilities: tuple[str, ...] = ()  #: that its agent must have
    expected_ms: float | None = None  #: as submitted


class Trace(Struct, frozen=True):
    """A whole trace."""

    header: TraceHeader
    agents: tuple[TraceAgent, ...]
    tasks: tuple[TraceTask, ...]  #: in the order in which they completed
