"""Agents: type, status, record, and the view of an agent that placement uses."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, NamedTuple

from msgspec import Meta, Struct


class AgentType(StrEnum):
    """The purpose of an agent."""

    COORDINATOR = "coordinator"
    WORKER = "worker"
    SPECIALIST = "specialist"
    MONITOR = "monitor"
    GATEWAY = "gateway"
    ORCHESTRATOR = "orchestrator"
    INFERENCE = "inference"
    TRAINING = "training"
    PROCESSING = "processing"
    PROVIDER = "provider"
    CONSUMER = "consumer"
    GENERAL = "general"


class AgentStatus(StrEnum):
    """The status of an agent. Only an ``active`` agent is placeable, and so a member of ``agents:active``."""

    ACTIVE = "active"
    INACTIVE = "inactive"  #: it left the cell
    BUSY = "busy"  #: it wants no further tasks for now
    STALE = "stale"  #: it missed its heartbeats
    MAINTENANCE = "maintenance"
    ERROR = "error"
    DRAINING = "draining"  #: it finishes its tasks and gets no new ones


class Location(Struct, frozen=True, omit_defaults=True):
    """The location of an agent; ``lat`` and ``lon`` in degrees."""

    lat: Annotated[float, Meta(ge=-90, le=90)] | None = None
    lon: Annotated[float, Meta(ge=-180, le=180)] | None = None
    region: str | None = None
    zone: str | None = None


class Ejected(Struct, frozen=True):
    """Why an agent gets no tasks of a type for a while: it failed them far more often than the other agents."""

    task_type: str
    until: int  #: ms since 1970 on the server's clock
    for_ms: int  #: how long it lasts in all
    failure_rate: float  #: of the agent's last attempts, 0 to 1
    others_rate: float  #: mean of the other agents
    in_a_row: int = 1  #: number of ejections in a row; each is twice as long as the one before


class InboxDelivery(StrEnum):
    """How an agent that speaks only HTTP gets what is in its inbox."""

    PUSH = "push"  #: a push worker sends it
    POLL = "poll"  #: the agent asks for it


class Health(Struct, frozen=True):
    """Why an agent has its health: ``freshness`` x ``regularity`` less the penalties, 0 to 1.

    The registry computes it (``workers/lua/lib/agents.lua``), and stores it when the score moves by 0.05.
    """

    freshness: float  #: 1 while heartbeats are on time, 0.5 at the moment at which it turns stale, 0 when it is stale
    regularity: float  #: share of the last ten expected heartbeats that arrived
    load_penalty: float  #: for the mean of the cpu and the memory that it reports
    status_penalty: float  #: for error, maintenance and busy
    ejected_penalty: float  #: it gets no tasks of some type, because it failed too many
    deaf_penalty: float  #: it does not read its inbox


class AgentFilter(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The agents that a caller looks for: those that meet all of it."""

    agent_type: AgentType | None = None
    status: AgentStatus | None = None
    capabilities: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    min_health: float | None = None
    placeable: bool = False  #: only agents that may get work now
    departed: bool = False  #: also agents that left


class AgentRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of an agent. Times are milliseconds since 1970 on the server's clock."""

    agent_id: str
    agent_type: str
    status: AgentStatus
    capabilities: tuple[str, ...] = ()
    services: tuple[str, ...] = ()
    endpoints: dict[str, str] = {}
    metadata: dict[str, Any] = {}
    tags: tuple[str, ...] = ()
    labels: dict[str, str] = {}
    location: Location | None = None
    version: str = ""
    capacity: int = 0
    weight: float = 1.0
    heartbeat_interval: float | None = None  #: seconds
    incarnation: str = ""
    deaf: bool = False  #: it does not read its inbox, and gets nothing new until it does
    #: How that is known: ``reported`` by the agent, it sends heartbeats and leaves its inbox ``unread``, or it is
    #: ``unpolled`` over HTTP.
    deaf_reason: str = ""
    #: How it gets its inbox over HTTP: ``push`` or ``poll``; empty: it reads it from Redis.
    delivery: str = ""
    drained_from: str = ""  #: the status it reports while an operator imposes another one; empty: none does
    term: int = 0
    rev: int = 0
    registration_time: int = 0  #: of its first registration
    last_heartbeat: int = 0
    load_metrics: dict[str, float] = {}
    health_score: float = 1.0
    health: Health | None = None  #: the parts of ``health_score``
    leases: int | None = None  #: number of leases that it reported with its last heartbeat
    ejected: tuple[Ejected, ...] = ()  #: the task types that it gets no tasks of now
    load: int = 0  #: tasks assigned and not settled


#: reason of a deaf agent -> why it gets nothing, for people.
WHY_DEAF = {
    "reported": "as it reports; it gets nothing until it reads",
    "unread": "it sends heartbeats and does not read its inbox; it gets nothing until it reads",
    "unpolled": "it reads no inbox: poll /agents/{id}/inbox or register endpoints.http",
}


def why_deaf(record: AgentRecord) -> str:
    """Return why an agent that does not read its inbox gets nothing, and the next step; empty: it is not deaf."""
    return WHY_DEAF.get(record.deaf_reason, "").replace("{id}", record.agent_id)


#: Types of an ``AgentChange`` besides those of events: an agent of the snapshot; the snapshot is complete; changes were
#: missed, and a new snapshot follows.
SNAPSHOT, READY, RESYNC = "snapshot", "ready", "resync"


class AgentChange(Struct, frozen=True):
    """A change of an agent, or an agent of the snapshot with which a watch begins."""

    type: str  #: ``snapshot``, ``ready``, ``resync``, or that of the event: ``agent.registered``, ``agent.lost`` …
    agent_id: str  #: empty for ``ready`` and ``resync``
    agent: AgentRecord | None  #: its record as it is now, perhaps newer than the change; None: it was removed
    cursor: str  #: continue a watch after this change; empty within a snapshot


class LoadReport(NamedTuple):
    """The load that an agent has reported."""

    agent_id: str
    cpu: float | None  #: 0 to 1; None: the agent does not report it
    memory: float | None  #: 0 to 1; None: the agent does not report it
    outside_load: float  #: connections and tasks from elsewhere
    at_ms: int  #: when it was reported, on the server's clock


class FleetAgent(Struct, kw_only=True):
    """The properties of an agent that placement uses: one row of the distributor's view."""

    agent_id: str
    agent_type: str
    capabilities: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    labels: dict[str, str] = {}
    version: str = ""
    capacity: int = 1
    weight: float = 1.0
    health_score: float = 1.0
    rev: int = 0
    active: bool = True
    suspended: bool = False  #: it is not ``active`` because it returned a task before it started it
    load: int = 0  #: tasks in flight as last known, plus those planned since
    outside_load: int = 0  #: connections and tasks from elsewhere that the agent reports
    location: Location | None = None
    cpu: float | None = None  #: reported, 0 to 1; None: it does not report it. 1 when the report is old
    memory: float | None = None  #: the same
    load_at_report: int = 0  #: tasks in flight when the report was read; those above were placed since
    report_age: float = 0.0  #: seconds since the report, when the row was read
    report_interval: float | None = None  #: seconds between two reports; None: the agent declares none
    term: int = 0
    ejected: tuple[Ejected, ...] = ()  #: the task types that it gets no tasks of
    read_at: int = 0  #: when the row was read, ms since 1970 on the server's clock
    status: AgentStatus = AgentStatus.ACTIVE  #: read only to explain why it is not ``active``; plans do not need it


#: An agent may report any number as its outside load. Values above this limit or below 0 are clamped.
OUTSIDE_LOAD_MAX = 1_000_000


def outside_load_of(reported: float) -> int:
    """Return the outside load of an agent from what it reports."""
    return int(min(max(reported, 0), OUTSIDE_LOAD_MAX))
