"""Explanations: why a task waits, or why it went to its agent.

``WaitingReason`` is the one list of reasons. Placement, the command line, HTTP and the protocol use its names.
"""

from __future__ import annotations

from enum import StrEnum
from types import MappingProxyType
from typing import Any

from msgspec import Struct

from coord.models.tasks import TaskState


class WaitingReason(StrEnum):
    """Why a task waits. The order counts: the reason of a task is the first one that holds.

    Those from ``NO_AGENT_REGISTERED`` to ``ALL_FULL`` are also why an agent is rejected: the first requirement, in this
    order, that it does not meet.
    """

    SCHEDULED = "scheduled"  #: its run time is not reached
    NO_AGENT_REGISTERED = "no_agent_registered"
    NO_AGENT_TYPE = "no_agent_type"
    NO_CAPABILITY = "no_capability"
    NO_SERVICE = "no_service"
    NO_TAG = "no_tag"
    NO_LABEL = "no_label"
    NO_VERSION = "no_version"  #: agents of these versions could not decode its payload
    NO_HANDLER = "no_handler"  #: these agents have no handler for its type
    NAMED_AGENT_ABSENT = "named_agent_absent"
    ALL_STALE = "all_stale"
    ALL_UNHEALTHY = "all_unhealthy"
    ALL_DRAINING = "all_draining"
    ALL_BUSY_STATUS = "all_busy_status"  #: busy, in maintenance, in error, or get nothing until they report again
    EJECTED = "ejected"  #: ejected for the type of the task, because they fail it far more often than others
    ALL_FULL = "all_full"
    NEXT_IN_LINE = "next_in_line"  #: an agent has room

    @property
    def is_parked(self) -> bool:
        """True if no agent may get the task, so that its pool waits for a change of the fleet."""
        return self not in _NOT_PARKED


_NOT_PARKED = frozenset(
    {WaitingReason.SCHEDULED, WaitingReason.EJECTED, WaitingReason.ALL_FULL, WaitingReason.NEXT_IN_LINE}
)
#: reason -> what it means for an agent that is rejected for it: the agent ...
REJECTED: MappingProxyType[WaitingReason, str] = MappingProxyType(
    {
        WaitingReason.NO_AGENT_REGISTERED: "has left",
        WaitingReason.NO_AGENT_TYPE: "has another type",
        WaitingReason.NO_CAPABILITY: "lacks a capability",
        WaitingReason.NO_SERVICE: "lacks a service",
        WaitingReason.NO_TAG: "lacks a tag",
        WaitingReason.NO_LABEL: "lacks a label, or has another value of it",
        WaitingReason.NO_VERSION: "has a version that could not decode the payload",
        WaitingReason.NO_HANDLER: "has no handler for the type of the task",
        WaitingReason.NAMED_AGENT_ABSENT: "is not the agent that the task names",
        WaitingReason.ALL_STALE: "is stale: it missed its heartbeats",
        WaitingReason.ALL_UNHEALTHY: "is below the required health",
        WaitingReason.ALL_DRAINING: "is draining",
        WaitingReason.ALL_BUSY_STATUS: "takes no tasks (busy, maintenance, error), or does not read its inbox",
        WaitingReason.EJECTED: "is ejected for a while: it fails this type of task far more often than the others",
        WaitingReason.ALL_FULL: "has as many tasks as it takes",
    }
)


class WaitingCounts(Struct, frozen=True, kw_only=True):
    """The waiting tasks of a cell by reason, as a distributor has counted them.

    The numbers of ``reasons`` and ``uncounted`` add up to ``total``.
    """

    total: int  #: tasks that waited: scheduled or queued
    reasons: dict[WaitingReason, int]  #: every reason, in the order of the list
    #: Tasks that began to wait while the others were counted; below 0: that were counted and have left meanwhile. 0 on
    #: a cell at rest.
    uncounted: int
    counted_at: int  #: ms since 1970 on the server's clock
    age: int  #: ms since then


class NearestMiss(Struct, frozen=True):
    """An agent that may not get the task, although it lacks little."""

    agent_id: str
    reason: WaitingReason
    lacks: tuple[str, ...]  #: each thing that it lacks, in words: ``capability 'gpu'``
    text: str  #: agent-7 fits except for capability 'gpu'


class StartEstimate(Struct, frozen=True):
    """An estimate of when a task starts."""

    at: int  #: ms since 1970
    per_s: float  #: tasks of its pool that were assigned per second
    basis: str  #: what the rate is measured on, in words


class WaitingExplanation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a task waits."""

    reason: WaitingReason
    text: str  #: the reason, in words
    pool: str = ""
    run_at: int | None = None  #: ms since 1970; only while it is scheduled
    position: int | None = None  #: in the queue of its pool; 1 is the next one; None: it is not in the queue
    ahead: int | None = None  #: tasks of its pool that are placed before it
    length: int | None = None  #: tasks in its pool
    agents: int = 0  #: agents that were examined
    eligible: int = 0  #: those that meet all requirements and have room
    rejected: dict[WaitingReason, int] = {}  #: number of the others by reason, each counted once; in the list's order
    nearest: tuple[NearestMiss, ...] = ()  #: the rejected agents that lack least, the nearest first
    estimate: StartEstimate | None = None
    obstacles: tuple[str, ...] = ()  #: what keeps every task from being placed, in words


class Candidate(Struct, frozen=True):
    """An agent that a strategy has considered for a task; the lowest score is the best."""

    agent_id: str
    score: float
    terms: dict[str, float]  #: what the score was made of, and the load, which decides among equals


class PlacedExplanation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Where a task was placed last, and why there."""

    agent_id: str
    assigned_at: int  #: ms since 1970
    term: int  #: of the agent
    attempt: int
    strategy: str | None = None
    eligible: int | None = None  #: agents that met all requirements
    #: Why it had waited, as judged last before it was placed, once a second; None: it was placed before that.
    waiting_reason: WaitingReason | None = None
    decision: Any = None  #: all that the distributor recorded about its choice


class Explanation(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Why a task waits, or why it went to its agent."""

    task_id: str
    state: TaskState
    summary: str  #: one sentence
    waiting: WaitingExplanation | None = None  #: only of a task that waits
    placed: PlacedExplanation | None = None  #: only of a task that was placed, and has not been taken back since

    @property
    def is_waiting(self) -> bool:
        """True if the task is not placed yet."""
        return self.waiting is not None
