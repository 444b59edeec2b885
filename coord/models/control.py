"""What operators want changed: the facts of ``in:control:{registry,distributor,router}``, a stream for each authority.

A *dead letter* is what coord gave up on and keeps for a while: a failed task, a message that could not be delivered, an
entry that could not be handled (``dead:in``). It is replayed by the worker whose work it is.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from coord.models.ids import EntryId, Id
from coord.models.tasks import Seconds, Text

#: Seconds since a dead letter died; 0 takes all that died before the fact was appended.
Age = Annotated[float, Meta(ge=0, le=315_360_000)]
Value = Annotated[str, Meta(min_length=1, max_length=128)] | float


class StrategySet(Struct, frozen=True, omit_defaults=True):
    """How the best agent is chosen from now on, for tasks that name no strategy of their own."""

    strategy: Text


class SettingSet(Struct, frozen=True, omit_defaults=True):
    """A setting that distributors obey while they run; ``null`` gives it back to their environment."""

    name: Text
    value: Value | None


class TaskReplayed(Struct, frozen=True, omit_defaults=True):
    """A failed task is tried again: the same id, fresh attempts, its story kept."""

    task_id: Id


class DeadPurged(Struct, frozen=True, omit_defaults=True):
    """Dead letters of the stream's authority are forgotten: failed tasks by the distributor, messages by the router.

    One of them, or the oldest of those that died ``older_than`` seconds before this fact or earlier: at most 1,000,
    and the answer tells how many are left.
    """

    dead_id: Id | None = None  #: a task's or a message's
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _one_of(self.dead_id, self.older_than, "dead_id")


class AgentDrained(Struct, frozen=True, omit_defaults=True):
    """An agent finishes what it has and gets nothing new, whatever it says of itself, until it is resumed or leaves."""

    agent_id: Id


class AgentResumed(Struct, frozen=True, omit_defaults=True):
    """An agent is no longer drained: its status is what it last said of itself."""

    agent_id: Id


class AgentRemoved(Struct, frozen=True, omit_defaults=True):
    """An agent counts as having left. What it had in flight goes to others."""

    agent_id: Id


class MessageReplayed(Struct, frozen=True, omit_defaults=True):
    """A dead message is delivered as if it had been sent now."""

    message_id: Id
    ttl: Seconds | None = None  #: seconds from now on; default: the router's


class EntryReplayed(Struct, frozen=True, omit_defaults=True):
    """A buried entry is appended anew to the stream that it came from; told to the kind of worker that reads it."""

    entry_id: EntryId  #: of its entry in dead:in


class EntriesPurged(Struct, frozen=True, omit_defaults=True):
    """Buried entries are forgotten, whichever stream they came from; bounded as ``DeadPurged`` is."""

    entry_id: EntryId | None = None  #: of its entry in dead:in
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _one_of(self.entry_id, self.older_than, "entry_id")


#: kind of worker -> what its operators may tell it.
CONTROL_FACTS: dict[str, tuple[type[Struct], ...]] = {
    "registry": (AgentDrained, AgentResumed, AgentRemoved, EntryReplayed, EntriesPurged),
    "distributor": (StrategySet, SettingSet, TaskReplayed, DeadPurged, EntryReplayed),
    "router": (MessageReplayed, DeadPurged, EntryReplayed),
}


def _one_of(one: str | None, age: float | None, name: str) -> None:
    if (one is None) == (age is None):
        raise ValueError(f"give either {name} or older_than")
