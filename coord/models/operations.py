"""Operations on many tasks: what they do, and what became of them."""

from __future__ import annotations

from typing import Literal, TypeAlias

from msgspec import Struct

from coord.models.facts import TaskAction
from coord.models.tasks import TaskState

#: What an operation does: retry and replay are the same.
BulkAction: TypeAlias = Literal["cancel", "retry", "replay", "prioritize"]

_S = TaskState
#: action -> what the fact calls it, and the states of the tasks that it can change.
ACTIONS: dict[BulkAction, tuple[TaskAction, tuple[TaskState, ...]]] = {
    "cancel": ("cancel", (_S.SCHEDULED, _S.QUEUED, _S.ASSIGNED, _S.RUNNING)),
    "retry": ("replay", (_S.FAILED,)),
    "replay": ("replay", (_S.FAILED,)),
    "prioritize": ("prioritize", (_S.SCHEDULED, _S.QUEUED)),
}


class BulkResult(Struct, frozen=True, kw_only=True):
    """What became of an operation on all tasks that match a query, as far as it went."""

    action: BulkAction
    query: str  #: with the states that the action needs
    matched: int  #: tasks that matched
    done: int = 0  #: of these, tasks that were changed
    stopping: int = 0  #: of the changed ones, tasks that still run: a cancel has asked their agents to stop
    skipped: dict[str, int] = {}  #: code -> tasks that were not changed: they had changed meanwhile
    unanswered: int = 0  #: tasks of a request that waits for a distributor
    next: str | None = None  #: cursor; the operation continues there; None: it is complete
    operation: str = ""  #: its id; empty: tasks were only counted
