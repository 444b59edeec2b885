"""Strategies that look at what an agent could do besides the task."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.placement.demand import Demand
from coord.placement.learning import Learned
from coord.placement.load import LeastConnections
from coord.placement.strategy import Strategy, TaskContext

#: Demands that differ by less than this count as equal.
STEP = 0.05

#: Demand for the capabilities of an agent in steps, and their number.
Cost = tuple[int, int]


def cost_of(demand: Demand, capabilities: frozenset[str]) -> Cost:
    """Return how much an agent with these capabilities is needed for other tasks; the lowest is chosen first."""
    return (round(demand.pressure(capabilities) / STEP), len(capabilities))


def demand_terms(cost: Cost) -> dict[str, float]:
    """Return what a cost was made of."""
    return {"demand": cost[0] * STEP, "capabilities": cost[1]}


class RareSkillsFirst(Strategy):
    """Orders agents by how little their other capabilities are in demand, and those that are equal by another strategy.

    Demand is the number of recent tasks that require a capability, for each agent that has it. Among agents whose other
    capabilities are equally in demand, those with the fewest are first. Agents with the same capabilities are ordered
    by another strategy.

    Args:
        random: the source of randomness.
        learned: its ``demand`` is used.
        within: the strategy that orders agents with the same capabilities.
    """

    def __init__(
        self, random: Random, learned: Learned | None = None, within: type[Strategy] = LeastConnections
    ) -> None:
        super().__init__(random, learned)
        self._within = within
        self.follows_load = within.follows_load
        self._agents: dict[str, FleetAgent] = {}
        self._profile_of: dict[str, frozenset[str]] = {}
        self._profiles: dict[frozenset[str], dict[str, None]] = {}  # capabilities -> the agents that have just these
        self._costs: dict[frozenset[str], Cost] = {}
        self._levels: dict[Cost, Strategy] = {}
        self._order: list[Strategy] = []  # the levels, the lowest cost first
        self._version = self.learned.demand.version  # that the costs were determined with

    def offer(self, agent: FleetAgent) -> None:
        agent_id, profile = agent.agent_id, agent.capabilities
        before = self._profile_of.get(agent_id)
        if before is not profile and before != profile:
            self.withdraw(agent_id)
            members = self._profiles.get(profile)
            if members is None:
                members = self._profiles[profile] = {}
                self._costs[profile] = self._cost_of(profile)
            members[agent_id] = None
            self._profile_of[agent_id] = profile
        self._agents[agent_id] = agent
        self._level(self._costs[profile]).offer(agent)

    def withdraw(self, agent_id: str) -> None:
        profile = self._profile_of.pop(agent_id, None)
        if profile is None:
            return
        del self._agents[agent_id]
        self._levels[self._costs[profile]].withdraw(agent_id)
        members = self._profiles[profile]
        del members[agent_id]
        if not members:
            del self._profiles[profile], self._costs[profile]

    @property
    def has_room(self) -> bool:
        return bool(self._agents)

    def choose(self, task: TaskContext) -> str | None:
        if self._version != self.learned.demand.version:
            self._move()
        avoided: str | None = None
        for level in self._order:
            agent_id = level.choose(task)
            if agent_id is not None:
                self.fallback = level.fallback
                if agent_id not in task.avoid:
                    return agent_id
                avoided = avoided or agent_id
        return avoided

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        found: list[Candidate] = []
        for cost in sorted(self._levels):
            demand = demand_terms(cost)
            some = self._levels[cost].candidates(task, most - len(found), row_of)
            found += [replace(one, terms=demand | one.terms) for one in some]
            if len(found) >= most or any(one.agent_id not in task.avoid for one in some):
                break  # the levels after this one were not asked
        return found

    def _cost_of(self, profile: frozenset[str]) -> Cost:
        return cost_of(self.learned.demand, profile)

    def _level(self, cost: Cost) -> Strategy:
        level = self._levels.get(cost)
        if level is None:
            level = self._levels[cost] = self._within(self.random, self.learned)
            self._sort()
        return level

    def _sort(self) -> None:
        self._order = [self._levels[cost] for cost in sorted(self._levels)]

    def _move(self) -> None:
        """Move the agents whose capabilities are more or less in demand than before, and drop empty levels."""
        self._version = self.learned.demand.version
        for profile, members in self._profiles.items():
            before, cost = self._costs[profile], self._cost_of(profile)
            if cost == before:
                continue
            self._costs[profile] = cost
            for agent_id in members:
                self._levels[before].withdraw(agent_id)
                self._level(cost).offer(self._agents[agent_id])
        self._levels = {cost: level for cost, level in self._levels.items() if level.has_room}
        self._sort()


class CapabilityBased(RareSkillsFirst):
    """Chooses the agent whose other capabilities are least in demand, so that rare skills stay free (best fit).

    Agents that are equal in this are chosen by their load, as least_connections does. Under another strategy, the
    modifier ``rare_skills_first`` does the same.
    """

    name = "capability_based"
