"""The JSON bodies of the API: one Struct per request and per response, and times as HTTP callers see them.

Requests have the same limits as the facts that they become. Responses show records with ISO 8601 times (UTC,
milliseconds, with the offset) and without what only an agent's own process may know.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from coord.clock import now_ms
from coord.models.agents import AgentRecord, AgentStatus, AgentType, Health, InboxDelivery, Location, why_deaf
from coord.models.explanations import (
    Explanation,
    NearestMiss,
    PlacedExplanation,
    StartEstimate,
    WaitingCounts,
    WaitingExplanation,
    WaitingReason,
)
from coord.models.facts import AgentRegistered, Metrics, Name, Names
from coord.models.ids import Id
from coord.models.tasks import (
    AttemptRecord,
    Milliseconds,
    Moment,
    Requirements,
    Retry,
    Seconds,
    TaskError,
    TaskRecord,
    Text,
)
from coord.queries import Backlog, PoolBacklog

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_LIMITS = (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC))
_FIRST_MS, _LAST_MS = ((limit - _EPOCH) // timedelta(milliseconds=1) for limit in _LIMITS)

#: The fields of a pool's definition that are shown.
_DEFINITION = ("task_type", "requirements", "strategy", "expected_ms")

Label = Annotated[str, Meta(max_length=256)]
Capacity = Annotated[int, Meta(ge=0, le=100_000)]
Weight = Annotated[float, Meta(ge=0, le=1_000_000)]
Interval = Annotated[float, Meta(ge=0.05, le=86_400)]
Delay = Annotated[float, Meta(ge=0, le=31_536_000)]


class RegisterAgent(Struct, frozen=True):
    """POST /agents/register; unknown keys are ignored."""

    agent_id: Id
    agent_type: AgentType
    capabilities: Names = ()
    services: Names = ()
    endpoints: dict[Text, str] = {}
    metadata: dict[str, Any] = {}
    tags: Names = ()
    labels: Annotated[dict[Text, Label], Meta(max_length=62)] = {}  #: chain_id and island_id become labels too
    version: Name = ""
    location: Location | None = None
    capacity: Capacity | None = None  #: tasks at a time
    weight: Weight = 1.0
    heartbeat_interval: Interval | None = None  #: seconds
    chain_id: Label | int | None = None
    island_id: Label | int | None = None

    def fact(self) -> AgentRegistered:
        """Return the fact for the registry. An HTTP agent has no incarnation, so each registration is a refresh.

        Its tasks are pushed if it has an endpoint for them, unless its metadata says that it polls.
        """
        pushes = self.endpoints.get("http", "").lower().startswith(("http://", "https://"))
        polls = self.metadata.get("delivery") == InboxDelivery.POLL
        delivery = InboxDelivery.PUSH if pushes and not polls else InboxDelivery.POLL
        extra = {"chain_id": self.chain_id, "island_id": self.island_id}
        labels = self.labels | {name: str(value) for name, value in extra.items() if value is not None}
        same = {name: getattr(self, name) for name in self.__struct_fields__ if name not in (*extra, "labels")}
        return AgentRegistered(**same, labels=labels, delivery=delivery)


class HeartbeatBody(Struct, frozen=True):
    """POST /agents/{id}/heartbeat; the body is optional."""

    status: AgentStatus | None = None
    load_metrics: Metrics = {}
    running: Any = None  #: accepted and ignored: an agent without an incarnation is not asked for its leases


class StatusBody(Struct, frozen=True):
    """PUT /agents/{id}/status."""

    status: AgentStatus
    load_metrics: Metrics = {}  #: merged into those reported before


class TaskData(Struct, frozen=True):
    """The fields of ``task_data`` that the gateway reads; all of ``task_data`` is the task's payload."""

    task_id: Id | None = None
    task_type: Text | None = None
    required_capabilities: Names | None = None


class RequirementsBody(Requirements, frozen=True):
    """The requirements of a task; unknown keys are ignored."""

    location: Location | None = None  #: as the field of the task, which comes first


class SubmitTask(Struct, frozen=True):
    """POST /tasks/submit; unknown keys are ignored."""

    task_data: Annotated[msgspec.Raw, Meta(extra_json_schema={"type": "object"})]
    priority: str | None = None
    requirements: RequirementsBody | None = None
    timeout: Seconds | None = None  #: seconds, limits one attempt
    deadline: Moment | None = None
    delay: Delay | None = None  #: seconds
    run_at: Moment | None = None
    retry: Retry | None = None
    location: Location | None = None  #: where the task is best run
    affinity_key: Text | None = None
    expected_ms: Milliseconds | None = None  #: how long it is expected to take
    chain_id: Any = None  #: accepted and ignored
    payment: Any = None  #: accepted and ignored


class AgentSchema(Struct, frozen=True, kw_only=True):
    """An agent's record, without its incarnation: a caller that knows it could act as the agent's process."""

    agent_id: str
    agent_type: str
    status: str
    capabilities: tuple[str, ...]
    services: tuple[str, ...]
    endpoints: dict[str, str]
    metadata: dict[str, Any]
    tags: tuple[str, ...]
    labels: dict[str, str]
    location: Location | None
    version: str
    capacity: int
    weight: float
    heartbeat_interval: float | None
    registration_time: str | None
    last_heartbeat: str | None
    load_metrics: dict[str, float]
    health_score: float
    health: Health | None  #: the parts of ``health_score``
    deaf: bool  #: it does not read its inbox, and gets nothing new
    deaf_reason: str  #: ``reported``, ``unread``, ``unpolled``, or empty
    deaf_text: str  #: the same for people, with the next step
    drained_from: str  #: the status that it reports while an operator imposes another one; empty: none does
    delivery: str  #: how it gets its inbox over HTTP: push, poll; empty: it reads it from Redis
    load: int  #: tasks that it holds
    term: int
    rev: int

    @classmethod
    def of(cls, record: AgentRecord) -> AgentSchema:
        """Build it from a record."""
        more = {name: iso_or_none(getattr(record, name)) for name in ("registration_time", "last_heartbeat")}
        more["deaf_text"] = why_deaf(record)
        same = {name: getattr(record, name) for name in cls.__struct_fields__ if name not in more}
        return cls(**same | more)


class AttemptSchema(Struct, frozen=True, kw_only=True):
    """An attempt that did not complete."""

    attempt: int
    agent_id: str
    how: str  #: failed, released, recalled, timed_out, agent_lost, cancelled, expired
    queued_at: str | None
    assigned_at: str | None
    started_at: str | None
    ended_at: str | None
    code: str
    message: str
    detail: Any
    placement: Any

    @classmethod
    def of(cls, record: AttemptRecord) -> AttemptSchema:
        """Build it from a record."""
        names = ("queued_at", "assigned_at", "started_at", "ended_at")
        times = {name: iso_or_none(getattr(record, name)) for name in names}
        return cls(**common_fields(cls, record) | times)


class TaskSchema(Struct, frozen=True, kw_only=True):
    """A task's record, without its lease: a caller that knows it could report for the task."""

    task_id: str
    state: str
    task_type: str
    priority: str
    payload: Any
    requirements: Requirements | None  #: null in a list
    location: Location | None
    affinity_key: str | None
    expected_ms: float | None
    traceparent: str | None
    submitted_at: str | None
    queued_at: str | None  #: end of its delay or last backoff, or its last replay; null: it was queued at once
    run_at: str | None
    deadline: str | None
    attempt: int
    failures: int
    releases: int
    agent_id: str | None
    assigned_at: str | None
    started_at: str | None
    cancel_requested_at: str | None
    finished_at: str | None
    progress: Any
    placement: Any
    attempts: tuple[AttemptSchema, ...]
    result: Any
    error: TaskError | None
    dropped: bool  #: payload, progress and result were dropped to free memory on the server

    @classmethod
    def of(cls, record: TaskRecord) -> TaskSchema:
        """Build it from a record."""
        names = (
            "submitted_at",
            "queued_at",
            "run_at",
            "deadline",
            "assigned_at",
            "started_at",
            "cancel_requested_at",
            "finished_at",
        )
        times = {name: iso_or_none(getattr(record, name)) for name in names}
        attempts = tuple(map(AttemptSchema.of, record.attempts))
        return cls(**common_fields(cls, record) | times | {"attempts": attempts})


class EstimateSchema(Struct, frozen=True, kw_only=True):
    """An estimate of when a task starts."""

    at: str
    per_s: float  #: tasks of its pool that were assigned per second
    basis: str

    @classmethod
    def of(cls, estimate: StartEstimate) -> EstimateSchema:
        """Build it from an estimate."""
        return cls(at=iso(estimate.at), per_s=estimate.per_s, basis=estimate.basis)


class WaitingSchema(Struct, frozen=True, kw_only=True):
    """Why a task waits."""

    reason: str
    text: str  #: the reason, in words
    pool: str
    run_at: str | None
    position: int | None  #: in the pool; 1 is the next one
    ahead: int | None  #: tasks of its pool that are placed before it
    length: int | None  #: tasks in its pool
    agents: int  #: agents that were examined
    eligible: int  #: those that may get the task now
    rejected: dict[str, int]  #: number of the others by reason, each counted once
    nearest: tuple[NearestMiss, ...]
    estimate: EstimateSchema | None
    obstacles: tuple[str, ...]

    @classmethod
    def of(cls, waiting: WaitingExplanation) -> WaitingSchema:
        """Build it from the waiting part of an explanation."""
        estimate = waiting.estimate and EstimateSchema.of(waiting.estimate)
        return cls(**common_fields(cls, waiting) | {"run_at": iso_or_none(waiting.run_at), "estimate": estimate})


class PlacedSchema(Struct, frozen=True, kw_only=True):
    """Where a task was placed, and why there."""

    agent_id: str
    assigned_at: str | None
    term: int
    attempt: int
    strategy: str | None
    eligible: int | None  #: agents that met all requirements
    waiting_reason: str | None  #: why it had waited; null: it was placed before that was judged
    decision: Any

    @classmethod
    def of(cls, placed: PlacedExplanation) -> PlacedSchema:
        """Build it from the placed part of an explanation."""
        return cls(**common_fields(cls, placed) | {"assigned_at": iso_or_none(placed.assigned_at)})


class PoolSchema(Struct, frozen=True, kw_only=True):
    """A pool in which tasks wait."""

    pool: str
    task_type: str
    requirements: Requirements
    strategy: str | None
    expected_ms: float | None  #: how long its tasks are expected to take, rounded to a power of 4
    reason: str | None  #: why its first task waits
    length: int
    head: str  #: its first task
    head_priority: str | None
    head_age: float | None  #: seconds since the first task was submitted

    @classmethod
    def of(cls, pool: PoolBacklog) -> PoolSchema:
        """Build it from a pool of the backlog."""
        definition = {name: getattr(pool.definition, name) for name in _DEFINITION}
        same = {name: getattr(pool, name) for name in ("pool", "reason", "length", "head", "head_priority")}
        return cls(**definition | same, head_age=None if pool.head_age is None else pool.head_age / 1000)


class AgentFound(Struct, frozen=True, kw_only=True):
    """GET /agents/{id}."""

    status: str = "success"
    agent: AgentSchema
    timestamp: str

    @classmethod
    def of(cls, record: AgentRecord) -> AgentFound:
        """Build it from a record."""
        return cls(agent=AgentSchema.of(record), timestamp=now())


class TaskFound(Struct, frozen=True, kw_only=True):
    """GET /tasks/{id}."""

    status: str = "success"
    task: TaskSchema
    timestamp: str

    @classmethod
    def of(cls, record: TaskRecord) -> TaskFound:
        """Build it from a record."""
        return cls(task=TaskSchema.of(record), timestamp=now())


class TaskExplained(Struct, frozen=True, kw_only=True):
    """GET /tasks/{id}/explain."""

    status: str = "success"
    task_id: str
    state: str
    summary: str
    waiting: WaitingSchema | None
    placed: PlacedSchema | None
    timestamp: str

    @classmethod
    def of(cls, found: Explanation) -> TaskExplained:
        """Build it from an explanation."""
        return cls(
            task_id=found.task_id,
            state=found.state,
            summary=found.summary,
            waiting=None if found.waiting is None else WaitingSchema.of(found.waiting),
            placed=None if found.placed is None else PlacedSchema.of(found.placed),
            timestamp=now(),
        )


class WaitingCountsSchema(Struct, frozen=True, kw_only=True):
    """The waiting tasks by reason; ``reasons`` and ``uncounted`` add up to ``total``."""

    total: int
    reasons: dict[WaitingReason, int]  #: every reason
    uncounted: int  #: that began to wait during the count; below 0: that left
    counted_at: str
    age: float  #: seconds since then

    @classmethod
    def of(cls, counts: WaitingCounts) -> WaitingCountsSchema:
        """Build it from the counts."""
        return cls(**common_fields(cls, counts) | {"counted_at": iso(counts.counted_at), "age": counts.age / 1000})


class PoolsFound(Struct, frozen=True, kw_only=True):
    """GET /pools."""

    status: str = "success"
    pools: list[PoolSchema]
    count: int
    unlisted: int  #: further pools, beyond the limit
    waiting: WaitingCountsSchema | None  #: the waiting tasks by reason; null: not counted lately
    timestamp: str

    @classmethod
    def of(cls, backlog: Backlog) -> PoolsFound:
        """Build it from a backlog."""
        pools = list(map(PoolSchema.of, backlog.pools))
        waiting = None if backlog.waiting is None else WaitingCountsSchema.of(backlog.waiting)
        return cls(pools=pools, count=len(pools), unlisted=backlog.unlisted, waiting=waiting, timestamp=now())


class Registered(Struct, frozen=True, kw_only=True):
    """POST /agents/register."""

    status: str = "success"
    message: str = "Agent registered successfully"
    agent_id: str
    registered_at: str


class HeartbeatReceived(Struct, frozen=True, kw_only=True):
    """POST /agents/{id}/heartbeat."""

    status: str = "success"
    message: str = "Heartbeat received"
    agent_id: str
    heartbeat_at: str


class StatusChanged(Struct, frozen=True, kw_only=True):
    """PUT /agents/{id}/status."""

    status: str = "success"
    message: str = "Status updated"
    agent_id: str
    new_status: AgentStatus
    updated_at: str


class AgentOperated(Struct, frozen=True, kw_only=True):
    """POST /agents/{id}/drain, /maintenance and /resume."""

    status: str = "success"
    message: str
    agent_id: str
    new_status: AgentStatus | None  #: ``stale`` of a silent agent, until it is back; null: no registry has answered yet
    timestamp: str


class Deregistered(Struct, frozen=True, kw_only=True):
    """DELETE /agents/{id}."""

    status: str = "success"
    message: str = "Agent deregistered; its record is kept for a while"
    agent_id: str


class Submitted(Struct, frozen=True, kw_only=True):
    """POST /tasks/submit."""

    status: str = "success"
    message: str = "Task submitted successfully"
    task_id: str
    priority: str
    submitted_at: str
    escrow_id: UnsetType | None = UNSET  #: null if the request had a payment; the gateway makes no payments

    @classmethod
    def of(cls, task_id: str, priority: str, at: str, *, paid: bool) -> Submitted:
        """Return the response for a submitted task.

        Args:
            task_id: of the task.
            priority: of the task.
            at: time of the submission, ISO 8601.
            paid: whether the request had a payment.
        """
        escrow_id = None if paid else UNSET
        return cls(task_id=task_id, priority=priority, submitted_at=at, escrow_id=escrow_id)


def common_fields(schema: type[Struct], record: Struct) -> dict[str, Any]:
    """Return the fields of a record that the schema also has."""
    return {name: getattr(record, name) for name in schema.__struct_fields__}


def iso(ms: int) -> str:
    """Format milliseconds since 1970 as ``2026-01-31T12:00:00.000+00:00``.

    A time outside the years 1 to 9999, which an older version may have stored, becomes the first or the last of them.
    """
    ms = min(max(ms, _FIRST_MS), _LAST_MS)
    return (_EPOCH + timedelta(milliseconds=ms)).isoformat(timespec="milliseconds")


def iso_or_none(ms: int | None) -> str | None:
    """Format a time that may be missing; a record stores 0 for never."""
    return iso(ms) if ms else None


def now() -> str:
    """Return this machine's time."""
    return iso(now_ms())


def entry_time(entry_id: str) -> str:
    """Return the time at which Redis stored an entry, by its own clock."""
    return _iso_cached(int(entry_id.partition("-")[0]))


#: Entries of one millisecond have the same time.
_iso_cached = lru_cache(maxsize=1_024)(iso)
