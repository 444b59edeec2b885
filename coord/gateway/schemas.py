"""What callers get: records with times that people read, and without what only an agent's own process may know."""

from __future__ import annotations

from typing import Any

from msgspec import UNSET, Struct, UnsetType

from coord.client.submission import TaskSpec
from coord.gateway.times import iso_or_none, now
from coord.models.agents import AgentRecord, Location
from coord.models.tasks import AttemptRecord, TaskError, TaskRecord


class Agent(Struct, frozen=True, kw_only=True):
    """An agent's record, without its incarnation (who knows that may speak as its process)."""

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
    load: int  #: tasks that it holds now
    term: int
    rev: int

    @classmethod
    def of(cls, record: AgentRecord) -> Agent:
        """Of a record."""
        times = {name: iso_or_none(getattr(record, name)) for name in ("registration_time", "last_heartbeat")}
        return cls(**_same(cls, record) | times)


class Attempt(Struct, frozen=True, kw_only=True):
    """An attempt that did not complete."""

    attempt: int
    agent_id: str
    how: str  #: failed, released, recalled, timed_out, agent_lost, cancelled, expired
    assigned_at: str | None
    started_at: str | None
    ended_at: str | None
    code: str
    message: str

    @classmethod
    def of(cls, record: AttemptRecord) -> Attempt:
        """Of a record."""
        times = {name: iso_or_none(getattr(record, name)) for name in ("assigned_at", "started_at", "ended_at")}
        return cls(**_same(cls, record) | times)


class Task(Struct, frozen=True, kw_only=True):
    """A task's record, without its lease (who knows that may report for it)."""

    task_id: str
    state: str
    task_type: str
    priority: str
    payload: Any
    submitted_at: str | None
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
    attempts: tuple[Attempt, ...]
    result: Any
    error: TaskError | None
    dropped: bool  #: payload, progress and result were dropped to free memory on the server

    @classmethod
    def of(cls, record: TaskRecord) -> Task:
        """Of a record."""
        names = (
            "submitted_at",
            "run_at",
            "deadline",
            "assigned_at",
            "started_at",
            "cancel_requested_at",
            "finished_at",
        )
        times = {name: iso_or_none(getattr(record, name)) for name in names}
        attempts = tuple(map(Attempt.of, record.attempts))
        return cls(**_same(cls, record) | times | {"attempts": attempts})


class AgentFound(Struct, frozen=True, kw_only=True):
    """GET /agents/{id}."""

    status: str = "success"
    agent: Agent
    timestamp: str

    @classmethod
    def of(cls, record: AgentRecord) -> AgentFound:
        """Of a record."""
        return cls(agent=Agent.of(record), timestamp=now())


class TaskFound(Struct, frozen=True, kw_only=True):
    """GET /tasks/{id}."""

    status: str = "success"
    task: Task
    timestamp: str

    @classmethod
    def of(cls, record: TaskRecord) -> TaskFound:
        """Of a record."""
        return cls(task=Task.of(record), timestamp=now())


class Registered(Struct, frozen=True, kw_only=True):
    """POST /agents/register."""

    status: str = "success"
    message: str = "Agent registered successfully"
    agent_id: str
    registered_at: str


class HeartbeatTaken(Struct, frozen=True, kw_only=True):
    """POST /agents/{id}/heartbeat."""

    status: str = "success"
    message: str = "Heartbeat received"
    agent_id: str
    heartbeat_at: str


class Submitted(Struct, frozen=True, kw_only=True):
    """POST /tasks/submit."""

    status: str = "success"
    message: str = "Task submitted successfully"
    task_id: str
    priority: str
    submitted_at: str
    escrow_id: UnsetType | None = UNSET  #: null where a payment was sent: none is made

    @classmethod
    def of(cls, spec: TaskSpec, at: str, *, paid: bool) -> Submitted:
        """Of what was submitted, and when."""
        escrow_id = None if paid else UNSET
        return cls(task_id=str(spec.task_id), priority=spec.priority, submitted_at=at, escrow_id=escrow_id)


def _same(view: type[Struct], record: Struct) -> dict[str, Any]:
    """The fields of a record that a view has as well."""
    return {name: getattr(record, name) for name in view.__struct_fields__}
