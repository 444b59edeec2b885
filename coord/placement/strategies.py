"""Strategies: which of the eligible agents gets the next task. Each strategy is one small class.

To add a strategy, write a subclass of ``Strategy`` with a ``name``, and list it in ``STRATEGIES`` at the end of this
file. Tasks (``strategy=``), the setting ``strategy`` and the command line then accept the name.

A strategy is a data structure that a distributor keeps up to date, not a function that sorts all agents for each task.
``offer`` and ``withdraw`` change one agent at a time, so a choice among 10,000 agents costs as much as one among 100.
This is how a distributor uses it::

    strategy = STRATEGIES["random"](Random())   # one instance for each set of requirements
    strategy.offer(agent)                       # an eligible agent has room: agent.load < agent.capacity
    agent_id = strategy.choose()                # a task is planned for this agent; its load rises by 1
    strategy.offer(agent)                       # its load has changed and it still has room ...
    strategy.withdraw(agent_id)                 # ... or it is full, lost, or no longer eligible
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from random import Random
from typing import ClassVar

from coord.models.agents import FleetAgent


class Strategy(ABC):
    """Orders the agents that are eligible for one set of requirements and have room.

    A strategy holds at most the agents that were offered and not withdrawn. It has no I/O and no clock, and its only
    randomness is ``self.random``, so that tests can repeat every choice. A distributor may discard an instance at any
    time and fill a new one.

    Args:
        random: the source of randomness, for strategies that need one.
    """

    #: The name by which tasks, settings and operators select the strategy; lower case, digits and underscores.
    name: ClassVar[str]

    def __init__(self, random: Random) -> None:
        self.random = random

    @abstractmethod
    def offer(self, agent: FleetAgent) -> None:
        """Add an agent that has room, or update it.

        Called again whenever the load of the agent changes and it still has room, with the same ``agent_id``. Useful
        fields: ``load`` (tasks in flight), ``outside_load`` (work from elsewhere that the agent reports), ``capacity``,
        ``weight`` and ``health_score``. The object changes later, so copy what is needed.
        """

    @abstractmethod
    def withdraw(self, agent_id: str) -> None:
        """Remove an agent that has no room or is no longer eligible; do nothing if it was not offered."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """True if ``choose`` would return an agent."""

    @abstractmethod
    def choose(self) -> str | None:
        """Return the id of the agent that gets the next task; None if no agent has room.

        The agent stays offered. The caller offers or withdraws it before the next call.
        """


class LeastConnections(Strategy):
    """Chooses the agent with the fewest tasks, including its outside load; agents with equal load take turns."""

    name = "least_connections"

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._at: dict[str, int] = {}
        self._buckets: dict[int, dict[str, None]] = {}
        # The loads that have, or recently had, a bucket. They may be far apart, because agents report any outside load.
        self._loads: list[int] = []
        self._heaped: set[int] = set()

    def offer(self, agent: FleetAgent) -> None:
        load = agent.load + agent.outside_load
        before = self._at.get(agent.agent_id)
        if before == load:
            return
        if before is not None:
            self._remove(agent.agent_id, before)
        self._at[agent.agent_id] = load
        bucket = self._buckets.get(load)
        if bucket is None:
            bucket = self._buckets[load] = {}
        bucket[agent.agent_id] = None
        if load not in self._heaped:
            self._heaped.add(load)
            heapq.heappush(self._loads, load)

    def withdraw(self, agent_id: str) -> None:
        load = self._at.pop(agent_id, None)
        if load is not None:
            self._remove(agent_id, load)

    @property
    def has_room(self) -> bool:
        return bool(self._at)

    def choose(self) -> str | None:
        if not self._at:
            return None
        while self._loads[0] not in self._buckets:
            self._heaped.discard(heapq.heappop(self._loads))
        return next(iter(self._buckets[self._loads[0]]))

    def _remove(self, agent_id: str, load: int) -> None:
        bucket = self._buckets[load]
        del bucket[agent_id]
        if not bucket:
            del self._buckets[load]


class RoundRobin(Strategy):
    """Chooses one agent after the other, in the order in which they got room."""

    name = "round_robin"

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._ring: dict[str, None] = {}

    def offer(self, agent: FleetAgent) -> None:
        self._ring.setdefault(agent.agent_id)

    def withdraw(self, agent_id: str) -> None:
        self._ring.pop(agent_id, None)

    @property
    def has_room(self) -> bool:
        return bool(self._ring)

    def choose(self) -> str | None:
        agent_id = next(iter(self._ring), None)
        if agent_id is not None:
            del self._ring[agent_id]
            self._ring[agent_id] = None
        return agent_id


class RandomChoice(Strategy):
    """Chooses any agent that has room, all with the same probability."""

    name = "random"

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._agents: list[str] = []
        self._index: dict[str, int] = {}

    def offer(self, agent: FleetAgent) -> None:
        if agent.agent_id not in self._index:
            self._index[agent.agent_id] = len(self._agents)
            self._agents.append(agent.agent_id)

    def withdraw(self, agent_id: str) -> None:
        at = self._index.pop(agent_id, None)
        if at is None:
            return
        last = self._agents.pop()
        if last != agent_id:
            self._agents[at] = last
            self._index[last] = at

    @property
    def has_room(self) -> bool:
        return bool(self._agents)

    def choose(self) -> str | None:
        return self.random.choice(self._agents) if self._agents else None


#: name -> strategy: the names that a task, a setting or an operator may use.
STRATEGIES: dict[str, type[Strategy]] = {cls.name: cls for cls in (LeastConnections, RoundRobin, RandomChoice)}
