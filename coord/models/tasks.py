"""A task: its states and the moves between them, its priority, what it requires, and its record.

The life of a task, documented once:

* ``scheduled``: has a moment before which it must not run (a delay, or the backoff before its next attempt);
* ``queued``: may run now and waits for an eligible agent with room;
* ``assigned``: pushed to an agent's inbox under a lease;
* ``running``: its agent has said that it started;
* ``completed``, ``failed``, ``cancelled``, ``expired``: the outcome, recorded once; a failed task is a dead letter,
  which an operator may replay: it is ``queued`` again;
* ``refused``: never admitted, because the backlog was full; it may be submitted again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from types import MappingProxyType
from typing import Annotated, Any

import msgspec
from msgspec import Meta, Struct

from coord.models.ids import Id, not_reserved


class TaskState(StrEnum):
    """Where a task is in its life; the values are what records and logs say."""

    SCHEDULED = "scheduled"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"
    REFUSED = "refused"


#: The states that end a task's life. (A refused one never began it.)
TERMINAL = frozenset({TaskState.COMPLETED, TaskState.FAILED, TaskState.CANCELLED, TaskState.EXPIRED})

_S = TaskState

#: Every legal move, from ``None`` (no record yet). The headers of ``workers/lua`` declare the same edges.
MOVES: MappingProxyType[TaskState | None, frozenset[TaskState]] = MappingProxyType(
    {
        None: frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED}),
        _S.REFUSED: frozenset({_S.QUEUED, _S.SCHEDULED, _S.REFUSED, _S.CANCELLED, _S.EXPIRED}),
        _S.SCHEDULED: frozenset({_S.QUEUED, _S.CANCELLED, _S.EXPIRED}),
        _S.QUEUED: frozenset({_S.ASSIGNED, _S.CANCELLED, _S.EXPIRED}),
        _S.ASSIGNED: frozenset({_S.RUNNING, _S.COMPLETED, _S.SCHEDULED, _S.FAILED, _S.CANCELLED, _S.EXPIRED}),
        _S.RUNNING: frozenset({_S.COMPLETED, _S.SCHEDULED, _S.FAILED, _S.CANCELLED, _S.EXPIRED}),
        _S.COMPLETED: frozenset(),
        _S.FAILED: frozenset({_S.QUEUED}),  # replayed by an operator; the only outcome that is not the last word
        _S.CANCELLED: frozenset(),
        _S.EXPIRED: frozenset(),
    }
)


class Priority(StrEnum):
    """How soon a task wants to run, most pressing first."""

    URGENT = "urgent"
    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


#: Milliseconds by which a priority is put ahead of its submission time. A task is overtaken only by tasks submitted
#: within the difference after it, so nothing starves and the longest wait behind others is known.
HEAD_START_MS: MappingProxyType[Priority, int] = MappingProxyType(
    {
        Priority.URGENT: 600_000,
        Priority.CRITICAL: 300_000,
        Priority.HIGH: 120_000,
        Priority.NORMAL: 60_000,
        Priority.LOW: 0,
    }
)

#: Share of the backlog's limit at which a priority is refused: the pressing ones find room for longest.
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
    """An inbox lane. Agents read them in this order."""

    CRITICAL = "critical"
    HIGH = "high"
    NORMAL = "normal"
    LOW = "low"


#: The lane on which a task of each priority is pushed: urgent and critical share one.
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
# Many are held at a time and none is part of a cycle: `gc=False` spares the collector what it would find nothing in.


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
    """What an agent must have to be given a task; none of it ever bends. Unknown keys are ignored."""

    agent_type: Text | None = None
    capabilities: tuple[Text, ...] = ()  #: all of them
    services: tuple[Text, ...] = ()  #: all of them
    tags: tuple[Text, ...] = ()  #: all of them
    labels: dict[Text, str] = {}  #: all of them, with these values
    agent_id: Id | None = None  #: this agent and no other
    min_health_score: Fraction = 0.0  #: on top of the fleet's own threshold


class Retry(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, gc=False):
    """How often a task is tried, and how long it rests in between (exponential, full jitter)."""

    max_attempts: Annotated[int, Meta(ge=1, le=1000)] | None = None
    backoff: Annotated[float, Meta(ge=0, le=86_400)] | None = None  #: seconds before the second attempt
    backoff_max: Annotated[float, Meta(ge=0, le=86_400)] | None = None  #: seconds, ceiling of the doubling


class Pool(Struct, frozen=True, omit_defaults=True):
    """What interchangeable tasks share: any of them may go wherever one of them may."""

    task_type: str
    requirements: Requirements = Requirements()
    strategy: str | None = None


class TaskSubmitted(Struct, frozen=True, omit_defaults=True, gc=False):
    """A client wants a task done. Its priority is the stream that it was appended to."""

    task_id: Id
    task_type: Text
    payload: msgspec.Raw = msgspec.Raw(b"{}")  #: any JSON; coord never looks inside
    requirements: Requirements = Requirements()
    strategy: Text | None = None  #: this task's own placement strategy
    timeout: Seconds | None = None  #: seconds, bounds one attempt
    deadline: Moment | None = None  #: the task expires then, whatever its state
    delay: Annotated[float, Meta(ge=0, le=31_536_000)] | None = None  #: seconds after submission before it may run
    run_at: Moment | None = None  #: the same as a moment; not both
    retry: Retry = Retry()
    notify: bool = False  #: the outcome is appended to the caller's replies

    def __post_init__(self) -> None:
        not_reserved(self.task_id, "task_id")
        if self.deadline is not None:
            check_moment(self.deadline, "deadline")
        if self.run_at is not None:
            check_moment(self.run_at, "run_at")
        if self.delay is not None and self.run_at is not None:
            raise ValueError("give delay or run_at, not both")


class TasksSubmitted(Struct, frozen=True):
    """A client wants many tasks done: one entry costs Redis and the distributor little more than one of them."""

    tasks: Annotated[tuple[TaskSubmitted, ...], Meta(min_length=1, max_length=256)]


class TaskError(Struct, frozen=True, omit_defaults=True):
    """Why an attempt or a task failed."""

    code: str
    message: str = ""
    detail: Any = None  #: what the handler gave besides


class AttemptRecord(Struct, frozen=True, omit_defaults=True):
    """An attempt that did not complete: who tried, when (milliseconds since 1970), and how it ended."""

    attempt: int
    agent_id: str
    lease: str
    assigned_at: int
    ended_at: int
    how: str  #: failed, released, recalled, timed_out, agent_lost, cancelled, expired
    started_at: int | None = None
    code: str = ""
    message: str = ""


class TaskRecord(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Everything that is recorded of a task. Times are milliseconds since 1970 on the server's clock."""

    task_id: str
    state: TaskState
    priority: Priority
    task_type: str = ""
    payload: Any = None
    submitted_at: int = 0
    pool: str = ""
    attempt: int = 0  #: how often it was assigned
    failures: int = 0  #: attempts that count against max_attempts
    releases: int = 0  #: attempts given or taken back, which do not
    run_at: int | None = None
    deadline: int | None = None
    agent_id: str | None = None
    term: int | None = None
    lease: str | None = None
    assigned_at: int | None = None
    started_at: int | None = None
    finished_at: int | None = None
    cancel_requested_at: int | None = None
    replayed_at: int | None = None  #: when an operator last set it going again, after it had failed
    progress: Any = None
    placement: Any = None
    attempts: tuple[AttemptRecord, ...] = ()
    result: Any = None
    error: TaskError | None = None
    dropped: bool = False  #: payload, progress and result were dropped to free memory on the server
