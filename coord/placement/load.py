"""Strategies that look at the number of tasks that an agent has, or at none of its properties."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import ClassVar

from coord.models.agents import FleetAgent
from coord.placement.strategy import LEAST_WEIGHT, OrderedStrategy, SampledStrategy, TaskContext, relative_load


class LeastConnections(OrderedStrategy):
    """Chooses the agent with the lowest (tasks in flight + outside load + 1) ÷ weight; equals take turns.

    The 1 is the task that is to be placed: load ÷ weight alone would ignore the weights of idle agents.
    """

    name = "least_connections"

    def key(self, agent: FleetAgent) -> float:
        return (agent.load + agent.outside_load + 1) / (agent.weight or LEAST_WEIGHT)


class RandomChoice(SampledStrategy):
    """Chooses any agent that has room, all with the same probability."""

    name = "random"
    exact_up_to: ClassVar[int] = 1
    draws: ClassVar[int] = 1

    def score(self, agent: FleetAgent, task: TaskContext) -> float:
        return 0.0

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        # Several are left only if the one that was drawn is to be avoided.
        return agents[int(self.random.random() * len(agents))]


class PowerOfTwo(SampledStrategy):
    """Draws two different agents at random and chooses the one with the lower load, by weight as least_connections.

    Source: M. Mitzenmacher, The Power of Two Choices in Randomized Load Balancing, IEEE TPDS 12(10), 2001.
    """

    name = "power_of_two"
    exact_up_to: ClassVar[int] = sys.maxsize  # ``pick`` gets all agents and draws by itself, without repetition

    def score(self, agent: FleetAgent, task: TaskContext) -> float:
        return relative_load(agent)

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        count = len(agents)
        first = int(self.random.random() * count)
        second = (first + 1 + int(self.random.random() * (count - 1))) % count
        self._considered = (agents[first], agents[second])
        return self.least_loaded(self._considered)
