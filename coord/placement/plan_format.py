"""The format of recorded plans: what happened in a distributor, in the order in which it happened.

A distributor records *segments*. Each begins with a snapshot: what was learned, the rules, and no strategy yet. So a
segment can be replayed without those before it. What follows are steps, each an array whose first element is its name.
Agents, groups and tasks are numbered within a segment in the order in which they first appear.
"""

from __future__ import annotations

from typing import Any, TypeAlias

import msgspec
from msgspec import Struct

from coord.models.tasks import Requirements
from coord.placement.learning import Change, LearnedState
from coord.placement.rules import OwnRules, Rules
from coord.placement.strategy import TaskContext

#: The agent of a choice that found none.
NOBODY = -1


class Begun(Struct, frozen=True, array_like=True, tag="begin"):
    """A segment begins, and with it all strategies."""

    health_threshold: float
    rules: Rules  #: of the cell
    type_rules: dict[str, OwnRules]  #: task type -> what it sets
    full_scores: bool  #: the scores of each choice were read, which makes estimates of agents
    learned: LearnedState


class Seeded(Struct, frozen=True, array_like=True, tag="seed"):
    """The source of randomness of all strategies was seeded."""

    seed: int


class Created(Struct, frozen=True, array_like=True, tag="group"):
    """A strategy was created for a group of agents: those that meet the same requirements. It has the next number."""

    rules: Rules
    requirements: Requirements
    task_type: str  #: if agents are ejected for it; else empty


class Changed(Struct, frozen=True, array_like=True, tag="agent"):
    """Fields of an agent's row have changed, or it is new and has the next number."""

    agent: int
    fields: dict[str, Any]


class Offered(Struct, frozen=True, array_like=True, tag="offer"):
    """An agent with room was offered to the strategy of a group."""

    group: int
    agent: int
    load: int


class Withdrawn(Struct, frozen=True, array_like=True, tag="withdraw"):
    """An agent was withdrawn from the strategy of a group: it is full, ejected, not eligible any more, or gone."""

    group: int
    agent: int


class Described(Struct, frozen=True, array_like=True, tag="task"):
    """What strategies see of a task, or of all tasks that look the same to them; it has the next number."""

    task: TaskContext


class Chosen(Struct, frozen=True, array_like=True, tag="choose"):
    """The strategy of a group has chosen an agent for a task; ``NOBODY`` if none had room."""

    group: int
    task: int
    agent: int


class Learnt(Struct, frozen=True, array_like=True, tag="learn"):
    """Attempts that ended were added to what was learned."""

    now: float  #: seconds of the distributor's clock
    changes: list[Change]


class Forgotten(Struct, frozen=True, array_like=True, tag="forget"):
    """An agent left, and what was learned of it was forgotten."""

    agent_id: str


class Advanced(Struct, frozen=True, array_like=True, tag="time"):
    """The time was applied to what was learned."""

    now: float


class Demanded(Struct, frozen=True, array_like=True, tag="demand"):
    """The demand for capabilities was determined."""

    now: float
    added: dict[str, float]  #: capability -> tasks since the last time
    agents: dict[str, int]  #: capability -> agents that have it


Step: TypeAlias = (
    Begun
    | Seeded
    | Created
    | Changed
    | Offered
    | Withdrawn
    | Described
    | Chosen
    | Learnt
    | Forgotten
    | Advanced
    | Demanded
)

encode_steps = msgspec.json.Encoder().encode
decode_steps = msgspec.json.Decoder(list[Step]).decode
