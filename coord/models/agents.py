"""An agent: its type, its status, what it declares of itself, and its record."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from msgspec import Meta, Struct


class AgentType(StrEnum):
    """What an agent is for."""

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
    """How an agent is. Only an ``active`` one is placeable, and so a member of ``agents:active``."""

    ACTIVE = "active"
    INACTIVE = "inactive"  #: it left
    BUSY = "busy"  #: it says that it wants nothing more for now
    STALE = "stale"  #: it missed its beats
    MAINTENANCE = "maintenance"
    ERROR = "error"
    DRAINING = "draining"  #: finishes what it has, gets nothing new


class Location(Struct, frozen=True, omit_defaults=True):
    """Where an agent is; degrees for ``lat`` and ``lon``."""

    lat: Annotated[float, Meta(ge=-90, le=90)] | None = None
    lon: Annotated[float, Meta(ge=-180, le=180)] | None = None
    region: str | None = None
    zone: str | None = None


class AgentRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is recorded of an agent. Times are milliseconds since 1970 on the server's clock."""

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
    deaf: bool = False  #: it says that it does not read its inbox, and gets nothing new until it does
    drained_from: str = ""  #: what it says of itself while an operator drains it; empty: nobody does
    term: int = 0
    rev: int = 0
    registration_time: int = 0
    last_heartbeat: int = 0
    load_metrics: dict[str, float] = {}
    health_score: float = 1.0
    leases: int | None = None  #: how many it said it held, at its last beat
    load: int = 0  #: tasks assigned and not settled


class FleetAgent(Struct, kw_only=True):
    """What placement sees of an agent: one row of the distributor's view."""

    agent_id: str
    agent_type: str
    capabilities: frozenset[str] = frozenset()
    services: frozenset[str] = frozenset()
    tags: frozenset[str] = frozenset()
    labels: dict[str, str] = {}
    capacity: int = 1
    weight: float = 1.0
    health_score: float = 1.0
    rev: int = 0
    active: bool = True
    load: int = 0  #: tasks in flight as last heard, plus those planned since
    outside_load: int = 0  #: connections and tasks that the agent reports from elsewhere
