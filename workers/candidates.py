"""A group of the view: the agents that may get the tasks of some pools."""

from __future__ import annotations

import math
from typing import Protocol

from coord.models.tasks import Requirements
from coord.placement import OwnRules, Rules, Strategy, facets_required, rules_with
from workers.changes import Changes, Follower

#: The facet that every agent has: groups without required facets are listed under it.
ANY_AGENT = "*"
#: The members of every empty group. It is frozen, so it cannot be changed by mistake.
NO_AGENTS: set[str] = frozenset()  # type: ignore[assignment]
#: What a group without a strategy follows.
NO_CHANGES = Follower(Changes())


#: Requirements as JSON, what the tasks or their type set, the versions of agents that refused the payload, the ids of
#: those that have no handler, and the task type if agents are ejected for it (otherwise empty: several types share a
#: group).
GroupKey = tuple[bytes, OwnRules, tuple[str, ...], tuple[str, ...], str]


class Fleet(Protocol):
    """What a group needs of the view that it belongs to."""

    rules: Rules

    def strategy_for(self, group: Candidates) -> Strategy:
        """Create the strategy of a group."""

    def bring_up_to_date(self, group: Candidates) -> None:
        """Take over what has changed since the group was last used."""


class Order(Protocol):
    """What a group needs of an order that several groups share."""

    def unplace(self, agent_id: str) -> None:
        """Take out an agent that joins or leaves a group."""

    def dismiss(self, group: Candidates) -> None:
        """End the use of the order by a group."""


class Candidates:
    """The agents that meet one set of requirements, under one set of rules; small while no agent does."""

    __slots__ = (
        "_view",
        "bit",
        "created",
        "ejected",
        "eligible",
        "follower",
        "idle",
        "is_asleep",
        "is_preferred",
        "key",
        "line",
        "meeting",
        "needs",
        "order",
        "own_rules",
        "refused_by",
        "requirements",
        "rules",
        "shared_from",
        "taken",
        "task_type",
        "turn",
        "unhandled_by",
        "users",
        "watched",
        "within",
    )

    def __init__(self, view: Fleet, key: GroupKey, requirements: Requirements) -> None:
        self.key = key
        self.requirements = requirements
        self.refused_by = key[2]  #: versions of agents that are not eligible
        self.unhandled_by = key[3]  #: ids of agents that are not eligible
        self.needs = facets_required(requirements)  #: an agent without all of these is not eligible
        self.watched = ANY_AGENT  #: the facet that the group is listed under
        self.own_rules = key[1]  #: what its tasks, or their type, set
        self.rules = rules_with(key[1], view.rules)  #: what holds
        self.within: set[str] = NO_AGENTS  #: agents that have all of ``needs``
        self.eligible: set[str] = NO_AGENTS  #: those of them that meet all requirements now, and are not ejected
        self.task_type = key[4]  #: of all its tasks, if agents are ejected for it; else empty
        self.meeting: set[str] = set()  #: agents that meet all requirements; only kept if it has a ``task_type``
        self.ejected: frozenset[str] = frozenset()  #: those of them that get none of its tasks
        self.users = 0  #: waiting pools that hold it
        self.is_asleep = False  #: the planner skips it (``SleepingGroups``)
        self.is_preferred = False  #: ``View.turned`` shows when it gets its first eligible agent or loses its last one
        self.taken = 0  #: tasks planned since the demand for capabilities was last determined
        self.idle = 0  #: how often it was determined since a task was planned
        self.follower = NO_CHANGES  #: up to which change its strategy was brought up to date
        self.order: Order | None = None  #: that it shares with other groups; None: its strategy is its own
        self.bit = 0  #: its number in that order
        self.shared_from = math.inf  #: number of agents from which on it may share one
        #: Of the planner: the group's waiting pools by their heads, and its entry in the order.
        self.line: list[tuple[float, str]] = []
        self.turn: tuple[float, str] | None = None
        self.created: Strategy | None = None  #: ``strategy``, once it is used
        self._view = view

    @property
    def strategy(self) -> Strategy:
        """The strategy that holds the agents with room; created on first use."""
        if self.created is None:
            self.created = self._view.strategy_for(self)
        return self.created

    @property
    def has_room(self) -> bool:
        """True if any of its agents may get a task now."""
        if not self.eligible:
            return False
        self._view.bring_up_to_date(self)
        return self.strategy.has_room

    def join(self, agent_id: str) -> None:
        """Add an eligible agent; its room is taken over when the group is used."""
        if not self.eligible:
            self.eligible = set()
        self.eligible.add(agent_id)
        if self.order is not None:
            self.order.unplace(agent_id)
        elif len(self.eligible) >= self.shared_from:
            self.forget()

    def leave(self, agent_id: str) -> None:
        """Remove an agent that is no longer eligible; a group without agents becomes small again."""
        self.eligible.discard(agent_id)
        if self.order is not None:
            self.order.unplace(agent_id)
        elif self.created is not None:
            self.created.withdraw(agent_id)
        if not self.eligible:
            self.forget()

    def forget(self) -> None:
        """Drop the strategy; it is created again when the group is used."""
        self.created, self.shared_from = None, math.inf
        if self.order is not None:
            self.order.dismiss(self)
