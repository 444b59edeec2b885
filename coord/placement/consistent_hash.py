"""A strategy that sends tasks with the same key to the same agent."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from random import Random

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.placement.hash_ring import HashRing
from coord.placement.learning import Learned
from coord.placement.load import LeastConnections
from coord.placement.strategy import LEAST_WEIGHT, Entry, Strategy, TaskContext, load_terms, relative_load

#: An agent may have this many times its share of all tasks.
BOUND = 1.25

#: Why the load decided.
NO_KEY = "the task has no affinity key"
OWNER_IS_FULL = "the owner of the key has too many tasks"

#: Agent -> its tasks in flight and its weight, as they were last counted.
Counted = dict[str, tuple[int, float]]


class ConsistentHash(Strategy):
    """Chooses the owner of the task's ``affinity_key``; the least loaded agent if the owner has too many tasks.

    An owner has too many if the task would raise its load above 1.25 times its share of all tasks, by weight, rounded
    up. When an agent comes or goes, only the keys that it owns move. A task without a key goes to the least loaded
    agent, and ``fallback`` says so.

    Sources: V. Mirrokni, M. Thorup and M. Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018; for the
    lookup see ``HashRing``.
    """

    name = "consistent_hash"

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._least_loaded = LeastConnections(random, self.learned)
        self._changed: dict[str, FleetAgent | None] = {}  # what ``_least_loaded`` takes over when it is used
        self._ring = HashRing()
        self._counted: Counted = {}
        self._sums = Sums()

    def offer(self, agent: FleetAgent) -> None:
        count(agent, self._ring, self._counted, self._sums)
        self._changed[agent.agent_id] = agent

    def withdraw(self, agent_id: str) -> None:
        if agent_id in self._counted:
            discount(agent_id, self._ring, self._counted, self._sums)
            self._changed[agent_id] = None
        if not self._counted:
            self._sums = Sums()  # without what rounding left

    @property
    def has_room(self) -> bool:
        return bool(self._counted)

    def choose(self, task: TaskContext) -> str | None:
        self.fallback = None
        if task.affinity_key is None:
            self.fallback = NO_KEY
        elif self._counted:
            owner = self.owner(task.affinity_key)
            load, weight = self._counted[owner]
            if owner not in task.avoid and load < most_tasks(weight, self._sums.tasks, self._sums.weight):
                return owner
            self.fallback = OWNER_IS_FULL
        return self._by_load().choose(task)

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        owner = self.owner(task.affinity_key) if task.affinity_key is not None and self._counted else None
        others = self._by_load().candidates(task, most, row_of)
        return candidates_of(owner, others, row_of, (self._sums.tasks, self._sums.weight))[:most]

    def owner(self, key: str) -> str:
        """Return the agent that owns a key."""
        return self._ring.owner(key, self._counted)

    def _by_load(self) -> LeastConnections:
        """Return the agents ordered by their load."""
        for agent_id, agent in self._changed.items():
            if agent is None:
                self._least_loaded.withdraw(agent_id)
            else:
                self._least_loaded.offer(agent)
        self._changed.clear()
        return self._least_loaded


class HashedAgents(LeastConnections):
    """Some of the agents on a ring, ordered by their load, with the sums of their tasks and weights.

    It is no strategy of its own: a group that consists of several such parts chooses the owner itself.

    Args:
        random: the source of randomness.
        learned: what is known of the agents.
        ring: of all parts.
        counted: of all parts.
    """

    def __init__(self, random: Random, learned: Learned, ring: HashRing, counted: Counted) -> None:
        super().__init__(random, learned)
        self._ring = ring
        self._counted = counted
        self.sums = Sums()

    def offer(self, agent: FleetAgent) -> None:
        count(agent, self._ring, self._counted, self.sums)
        super().offer(agent)

    def withdraw(self, agent_id: str) -> None:
        if agent_id in self._entries:
            discount(agent_id, self._ring, self._counted, self.sums)
            super().withdraw(agent_id)
        if not self._entries:
            self.sums = Sums()  # without what rounding left

    def fill(self, entries: Iterable[Entry]) -> None:
        super().fill(entries)
        counted = [self._counted[agent_id] for agent_id in self._entries]
        self.sums.tasks = sum(tasks for tasks, _ in counted)
        self.sums.weight = sum(weight for _, weight in counted)


class Sums:
    """The tasks in flight and the weights of some agents, added up."""

    __slots__ = ("tasks", "weight")

    def __init__(self) -> None:
        self.tasks = 0
        self.weight = 0.0


def count(agent: FleetAgent, ring: HashRing, counted: Counted, sums: Sums) -> None:
    """Add an agent with room to the ring and the sums, or update it."""
    agent_id, load, weight = agent.agent_id, agent.load, agent.weight or LEAST_WEIGHT
    before = counted.get(agent_id)
    counted[agent_id] = (load, weight)
    if before is None:
        ring.add(agent_id, weight)
        sums.tasks += load
        sums.weight += weight
        return
    sums.tasks += load - before[0]
    if weight != before[1]:
        ring.add(agent_id, weight)
        sums.weight += weight - before[1]


def discount(agent_id: str, ring: HashRing, counted: Counted, sums: Sums) -> None:
    """Remove an agent that was counted."""
    load, weight = counted.pop(agent_id)
    ring.withdraw(agent_id)
    sums.tasks -= load
    sums.weight -= weight


def most_tasks(weight: float, all_tasks: int, all_weight: float) -> int:
    """Return the number of tasks from which on an agent gets none for its keys.

    Args:
        weight: of the agent.
        all_tasks: of all agents.
        all_weight: of all agents.
    """
    return ceil(BOUND * (all_tasks + 1) * weight / all_weight)


def candidates_of(
    owner: str | None, others: list[Candidate], row_of: Callable[[str], FleetAgent], sums: tuple[int, float]
) -> list[Candidate]:
    """Return the owner of a key and the least loaded agents.

    Args:
        owner: None if there is none.
        others: the least loaded agents; the owner may be one of them.
        row_of: agent id -> its row.
        sums: the tasks and the weight of all agents.
    """
    found: list[Candidate] = []
    for agent_id in ([] if owner is None else [owner]) + [one.agent_id for one in others if one.agent_id != owner]:
        row = row_of(agent_id)
        limit = most_tasks(row.weight or LEAST_WEIGHT, *sums)
        terms = {"owns_key": agent_id == owner, "most_tasks": limit, **load_terms(row)}
        found.append(Candidate(agent_id, relative_load(row), terms))
    return found
