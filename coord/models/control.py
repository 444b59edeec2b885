"""The facts of operators, on ``in:control:{registry,distributor,router}``: one stream for each kind of worker.

A *dead letter* is an item that coord gave up on and keeps for a while: a failed task, an undelivered message, or an
entry that could not be handled (``dead:in``). The worker that is responsible for the item replays it.
"""

from __future__ import annotations

from typing import Annotated

from msgspec import Meta, Struct

from coord.models.ids import EntryId, Id
from coord.models.tasks import Seconds, Text

#: Age of a dead letter in seconds; 0 selects all that exist when the fact is appended.
Age = Annotated[float, Meta(ge=0, le=315_360_000)]
Value = Annotated[str, Meta(min_length=1, max_length=128)] | float


class StrategySet(Struct, frozen=True, omit_defaults=True):
    """Sets the strategy of tasks that name none of their own."""

    strategy: Text


class SettingSet(Struct, frozen=True, omit_defaults=True):
    """Sets a setting of the distributors at run time; ``null`` resets it to the value of their environment."""

    name: Text
    value: Value | None


class TaskReplayed(Struct, frozen=True, omit_defaults=True):
    """Retries a failed task: same id, fresh attempts, history kept."""

    task_id: Id


class DeadPurged(Struct, frozen=True, omit_defaults=True):
    """Removes dead letters: failed tasks on the distributor's stream, messages on the router's.

    Either one dead letter, or those that died ``older_than`` seconds before this fact or earlier, oldest first. One
    fact removes at most 1,000; the answer says how many are left.
    """

    dead_id: Id | None = None  #: id of a task or a message
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _check_exclusive(self.dead_id, self.older_than, "dead_id")


class AgentDrained(Struct, frozen=True, omit_defaults=True):
    """Drains an agent: it finishes its tasks and gets no new ones, whatever it reports, until resumed or gone."""

    agent_id: Id


class AgentResumed(Struct, frozen=True, omit_defaults=True):
    """Ends the draining of an agent: its status is again the one that it last reported."""

    agent_id: Id


class AgentRemoved(Struct, frozen=True, omit_defaults=True):
    """Removes an agent as if it had left. Its tasks go to other agents."""

    agent_id: Id


class MessageReplayed(Struct, frozen=True, omit_defaults=True):
    """Delivers a dead message as if it had been sent now."""

    message_id: Id
    ttl: Seconds | None = None  #: seconds from now; default: that of the router's settings


class EntryReplayed(Struct, frozen=True, omit_defaults=True):
    """Appends an entry of ``dead:in`` to its original stream again; handled by the workers that read that stream."""

    entry_id: EntryId  #: in dead:in


class EntriesPurged(Struct, frozen=True, omit_defaults=True):
    """Removes entries of ``dead:in``, of any original stream; with the limits of ``DeadPurged``."""

    entry_id: EntryId | None = None  #: in dead:in
    older_than: Age | None = None

    def __post_init__(self) -> None:
        _check_exclusive(self.entry_id, self.older_than, "entry_id")


#: kind of worker -> the facts on its control stream.
CONTROL_FACTS: dict[str, tuple[type[Struct], ...]] = {
    "registry": (AgentDrained, AgentResumed, AgentRemoved, EntryReplayed, EntriesPurged),
    "distributor": (StrategySet, SettingSet, TaskReplayed, DeadPurged, EntryReplayed),
    "router": (MessageReplayed, DeadPurged, EntryReplayed),
}


def _check_exclusive(dead_id: str | None, age: float | None, name: str) -> None:
    if (dead_id is None) == (age is None):
        raise ValueError(f"give either {name} or older_than")
