"""Tasks: states and transitions, priority, requirements, submission and record.

The life of a task:

* ``scheduled``: it must not run before a given time (a delay, or the backoff before its next attempt);
* ``queued``: it may run now, and waits for an eligible agent with room;
* ``assigned``: it was pushed to an agent's inbox under a lease;
* ``running``: its agent has reported that it started;
* ``completed``, ``failed``, ``cancelled``, ``expired``: the outcome, recorded once. A failed task is a dead letter. An
  operator may replay it; then it is ``queued`` again;
* ``refused``: it was never admitted, because the backlog was full; it may be submitted again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from math import log
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from coord.models.agents import Location
from coord.models.ids import Id, not_reserved
from coord.models.tracing import TraceParent


class TaskState(StrEnum):
    """The state of a task; records and logs use these values."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


#: The states in which a task has ended. (A refused task never started its life.)
TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})

_S = TaskState

#: state -> the states that may follow; ``None``: no record yet. The headers of ``workers/lua`` declare the same.
MOVES: MappingProxyType[TaskState | None, frozenset[TaskState]] = MappingProxyType(
    {
        None: frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED}),
        _S.REFUSED: frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED}),
        _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED, _S.EXPIRED}),
        _S.QUEUED: frozenset({_S.ASSIGNED, _S.CANCELLED, _S.EXPIRED}),
        _S.ASSIGNED: frozenset({_S.RUNNING, _S.COMPLETED, _S.SCHEDULED, _S.FAILED, _S.CANCELLED, _S.EXPIRED}),
        _S.RUNNING: frozenset({_S.COMPLETED, _S.SCHEDULED, _S.FAILED, _S.CANCELLED, _S.EXPIRED}),
        _S.COMPLETED: frozenset(),
        # Replayed by an operator, and perhaps cancelled in the same batch; the only outcome that is not final.
        _S.FAILED: frozenset({_S.QUEUED, _S.CANCELLED}),
        _S.CANCELLED: frozenset(),
        _S.EXPIRED: frozenset(),
    }
)


class Priority(StrEnum):
    """The priority of a task, highest first."""

    URGENT = "urgent"
    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


#: Head start of each priority in ms: tasks are ordered by submission time minus head start. A task is overtaken only by
#: tasks submitted within the difference of the head starts, so no task starves and the longest delay is known.
HEAD_START_MS: MappingProxyType[Priority, int] = MappingProxyType(
    {
        Priority.URGENT: 600_000,
        Priority.CRITICAL: 300_000,
        Priority.HIGH: 120_000,
        Priority.NORMAL: 60_000,
        Priority.LOW: 0,
    }
)

#: Share of the backlog limit at which submissions of a priority are refused: lower priorities are refused first.
BACKLOG_SHARE: MappingProxyType[Priority, float] = MappingProxyType(
    {
        Priority.URGENT: 1.0,
        Priority.CRITICAL: 0.95,
        Priority.HIGH: 0.9,
        Priority.NORMAL: 0.85,
        Priority.LOW: 0.8,
    }
)


class Lane(StrEnum):
    """A lane of an inbox. Agents read the lanes in this order."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


#: priority -> the lane on which its tasks are pushed: urgent and critical share one.
LANE: MappingProxyType[Priority, Lane] = MappingProxyType(
    {
        Priority.URGENT: Lane.CRITICAL,
        Priority.CRITICAL: Lane.CRITICAL,
        Priority.HIGH: Lane.HIGH,
        Priority.NORMAL: Lane.NORMAL,
        Priority.LOW: Lane.LOW,
    }
)

Text = Annotated[str, Meta(min_length=1, max_length=128)]
Fraction = Annotated[float, Meta(ge=0, le=1)]
Seconds = Annotated[float, Meta(gt=0, le=31_536_000)]
Moment = Annotated[datetime, Meta(tz=True)]
Milliseconds = Annotated[float, Meta(gt=0, le=31_536_000_000)]
# Structs with `gc=False` are numerous and never part of a reference cycle, so the garbage collector can skip them.


def check_moment(moment: datetime, field: str) -> None:
    """Check that every reader can show a moment, in whatever time zone it was given.

    Raises:
        ValueError: it is outside the years 1 to 9999 in UTC; names the field.
    """
    try:
        moment.astimezone(UTC)
    except OverflowError:
        raise ValueError(f"{field} {moment.isoformat()} is outside the years 1 to 9999 in UTC") from None


class Requirements(Struct, frozen=True, omit_defaults=True, gc=False):
    """The properties that an agent must have to get a task. They are never relaxed. Unknown keys are ignored."""

    agent_type: Text | None = None
    capabilities: tuple[Text, ...] = ()  #: all of them
    services: tuple[Text, ...] = ()  #: all of them
    tags: tuple[Text, ...] = ()  #: all of them
    labels: dict[Text, str] = {}  #: all of them, with these values
    agent_id: Id | None = None  #: only this agent
    min_health_score: Fraction = 0.0  #: in addition to the threshold of the cell


class Retry(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """The number of attempts of a task, and the backoff between them (exponential, with full jitter)."""

    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backoff: Annotated[float, Meta(ge=0, le=86_400)] | None = None  #: seconds before the second attempt
    backoff_max: Annotated[float, Meta(ge=0, le=86_400)] | None = None  #: seconds, upper limit of the backoff


class Modifiers(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """Modifiers of placement that a task sets; None: those of its type, or of the cell, hold."""

    avoid_failed_agent: bool | None = None
    ejection: bool | None = None
    rare_skills_first: bool | None = None


class Pool(Struct, frozen=True, omit_defaults=True):
    """The properties that interchangeable tasks share: each of them may go to the same agents."""

    task_type: str
    requirements: Requirements = Requirements()
    strategy: str | None = None
    modifiers: Modifiers | None = None
    refused_by: tuple[str, ...] = ()  #: versions of agents that could not decode the payload of these tasks
    unhandled_by: tuple[str, ...] = ()  #: ids of agents that have no handler for these tasks
    expected_ms: float | None = None  #: how long these tasks take, as ``size_class`` rounds it; None: not known


def size_class(expected_ms: float) -> float:
    """Return the power of 4 that is nearest to an expected duration: tasks of about one size share a pool."""
    return 4.0 ** max(0, round(log(expected_ms, 4)))


#: The end of the name of a pool's second queue, in which tasks wait that a plan names, because they are not
#: interchangeable: tasks with preferences, and tasks that avoid agents.
NAMED = ".named"


def named_queue(pool: str) -> str:
    """Return the name of the queue of a pool's tasks that a plan names."""
    return pool if is_named(pool) else pool + NAMED


def is_named(pool: str) -> bool:
    """Return True if this is the name of a queue of tasks that a plan names."""
    return pool.endswith(NAMED)


class Preferences(Struct, frozen=True, omit_defaults=True, gc=False):
    """What a task prefers, which a strategy may use; none of it keeps an agent from getting the task."""

    location: Location | None = None
    affinity_key: str | None = None


class NamedTask(Struct, frozen=True, gc=False):
    """A task in a named queue: what a plan needs to know of it."""

    score: float  #: its place in the queue
    task_id: str
    priority: Priority = Priority.NORMAL
    preferences: Preferences = Preferences()
    avoid: tuple[str, ...] = ()  #: agents of failed attempts, the last one first


class TaskSubmitted(Struct, frozen=True, omit_defaults=True, gc=False):
    """A client submits a task. Its priority is the stream that it was appended to."""

    task_id: Id
    task_type: Text
    payload: msgspec.Raw = msgspec.Raw(b"{}")  #: any JSON; coord does not inspect it
    requirements: Requirements = Requirements()
    strategy: Text | None = None  #: placement strategy of this task; None: that of its type, or of the cell
    modifiers: Modifiers | None = None  #: of placement
    timeout: Seconds | None = None  #: seconds, limit of one attempt
    deadline: Moment | None = None  #: the task expires at this time, in any state
    delay: Annotated[float, Meta(ge=0, le=31_536_000)] | None = None  #: seconds after submission before it may run
    run_at: Moment | None = None  #: not before this time; excludes ``delay``
    retry: Retry = Retry()
    notify: bool = False  #: append the outcome to the caller's replies
    location: Location | None = None  #: where the task is best run; strategies may use it
    affinity_key: Text | None = None  #: tasks with the same key prefer the same agent; strategies may use it
    expected_ms: Milliseconds | None = None  #: how long the client expects it to take; strategies may use it
    traceparent: TraceParent | None = None  #: its place in a distributed trace; passed on to the handler

    def __post_init__(self) -> None:
        not_reserved(self.task_id, "task_id")
        if self.deadline is not None:
            check_moment(self.deadline, "deadline")
        if self.run_at is not None:
            check_moment(self.run_at, "run_at")
        if self.delay is not None and self.run_at is not None:
            raise ValueError("give delay or run_at, not both")


class TasksSubmitted(Struct, frozen=True):
    """A client submits many tasks: one entry costs Redis and the distributor little more than one task."""

    tasks: Annotated[tuple[TaskSubmitted, ...], Meta(min_length=1, max_length=256)]


class TaskError(Struct, frozen=True, omit_defaults=True):
    """The reason why an attempt or a task failed."""

    code: str
    message: str = ""
    detail: Any = None  #: what the handler gave besides


class AttemptRecord(Struct, frozen=True, omit_defaults=True):
    """An attempt that did not complete. Times are milliseconds since 1970."""

    attempt: int
    agent_id: str
    lease: str
    assigned_at: int
    ended_at: int
    how: str  #: how it ended: failed, released, recalled, timed_out, agent_lost, cancelled, expired
    started_at: int | None = None
    queued_at: int | None = None  #: end of the delay, of the backoff, or the replay before it; None: there was none
    code: str = ""
    message: str = ""
    detail: Any = None  #: of a failure, for programs; a Python handler's has the `traceback`
    placement: Any = None  #: why it was placed so


class TaskRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The record of a task. Times are milliseconds since 1970 on the server's clock."""

    task_id: str
    state: TaskState
    priority: Priority
    task_type: str = ""
    payload: Any = None
    requirements: Requirements | None = None  #: as submitted; None: not read with a list, or dropped
    submitted_at: int = 0
    queued_at: int | None = None  #: end of its delay or last backoff, or its last replay; None: queued at once
    pool: str = ""
    location: Location | None = None
    affinity_key: str | None = None
    expected_ms: float | None = None  #: as submitted
    traceparent: str | None = None  #: as submitted
    avoid: tuple[str, ...] = ()  #: agents of failed attempts, the last one first
    attempt: int = 0  #: number of times that it was assigned
    failures: int = 0  #: attempts that count against max_attempts
    releases: int = 0  #: attempts that were returned or recalled; they do not count
    run_at: int | None = None
    deadline: int | None = None
    agent_id: str | None = None
    term: int | None = None
    lease: str | None = None
    assigned_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    cancel_requested_at: int | None = None
    replayed_at: int | None = None  #: when an operator last replayed it after it had failed
    progress: Any = None
    placement: Any = None
    attempts: tuple[AttemptRecord, ...] = ()
    result: Any = None
    error: TaskError | None = None
    dropped: bool = False  #: payload, progress and result were dropped to free memory on the server
