"""Strategies: which of the agents that may be chosen comes next. One small class each, in one registry.

A strategy holds the agents that have room, in whatever order it chooses by; ``offer`` and ``withdraw`` keep it up to
date one agent at a time, so that a choice among 10,000 agents costs what one among 100 does.
"""

from __future__ import annotations

import heapq
from abc import ABC, abstractmethod
from random import Random
from typing import ClassVar

from coord.models.agents import FleetAgent


class Strategy(ABC):
    """Orders the agents that have room for one set of requirements."""

    name: ClassVar[str]

    def __init__(self, random: Random) -> None:
        self.random = random

    @abstractmethod
    def offer(self, agent: FleetAgent) -> None:
        """The agent has room; called again whenever its load has changed and it still has."""

    @abstractmethod
    def withdraw(self, agent_id: str) -> None:
        """The agent has no room, or may not be chosen any more; nothing happens if it was not offered."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """Whether ``choose`` would find anybody."""

    @abstractmethod
    def choose(self) -> str | None:
        """The agent that comes next, or None when nobody has room. The caller then offers or withdraws it."""


class LeastConnections(Strategy):
    """The agent with the fewest tasks, counting what it reports from outside; equals take turns."""

    name = "least_connections"

    def __init__(self, random: Random) -> None:
        super().__init__(random)
        self._at: dict[str, int] = {}
        self._buckets: dict[int, dict[str, None]] = {}
        # The loads that have, or lately had, a bucket: they may lie far apart, for agents report what they like.
        self._loads: list[int] = []
        self._heaped: set[int] = set()

    def offer(self, agent: FleetAgent) -> None:
        load = agent.load + agent.outside_load
        before = self._at.get(agent.agent_id)
        if before == load:
            return
        if before is not None:
            self._take_out(agent.agent_id, before)
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
            self._take_out(agent_id, load)

    @property
    def has_room(self) -> bool:
        return bool(self._at)

    def choose(self) -> str | None:
        if not self._at:
            return None
        while self._loads[0] not in self._buckets:
            self._heaped.discard(heapq.heappop(self._loads))
        return next(iter(self._buckets[self._loads[0]]))

    def _take_out(self, agent_id: str, load: int) -> None:
        bucket = self._buckets[load]
        del bucket[agent_id]
        if not bucket:
            del self._buckets[load]


class RoundRobin(Strategy):
    """One agent after the other, in the order in which they got room."""

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
    """Any agent that has room, each as likely as the other."""

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


#: name -> strategy; what a task, a setting or an operator may name.
STRATEGIES: dict[str, type[Strategy]] = {cls.name: cls for cls in (LeastConnections, RoundRobin, RandomChoice)}


def strategy_named(name: str) -> type[Strategy] | None:
    """The strategy of this name, or None."""
    return STRATEGIES.get(name)
