"""Strategies in which the agents take turns, whatever their load."""

from __future__ import annotations

from random import Random

from coord.models.agents import FleetAgent
from coord.placement.learning import Learned
from coord.placement.strategy import LEAST_WEIGHT, OrderedStrategy, TaskContext

#: Agents without room whose turns are remembered, in addition to one for each agent with room.
ABSENT_KEPT = 1_000
#: The golden ratio spreads the first turns of any number of agents evenly.
GOLDEN = 0.618033988749895


class RoundRobin(OrderedStrategy):
    """Chooses one agent after the other, in the order in which they were last chosen.

    A new agent comes after those that wait. An agent that had no room for a while keeps its place in the order if its
    turn has not passed, and comes last otherwise.
    """

    name = "round_robin"
    follows_load = False

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        # agent -> its next turn and the distance to the one after it; also of agents that have no room
        self._turns: dict[str, tuple[float, float]] = {}
        self._now = 0.0  # the turn of the agent that was chosen last

    def key(self, agent: FleetAgent) -> float:
        agent_id, step = agent.agent_id, self.step(agent)
        turn = self._turns.get(agent_id)
        if turn is None:
            due = self._now + self.first_step(agent)
        elif turn[0] < self._now and agent_id not in self._entries:
            due = self.return_at(turn[0], step)
        else:
            due = turn[0]
        self._turns[agent_id] = (due, step)
        return due

    def withdraw(self, agent_id: str) -> None:
        super().withdraw(agent_id)
        if len(self._turns) > 2 * len(self._entries) + ABSENT_KEPT:
            self._turns = {kept: self._turns[kept] for kept in self._entries}

    def choose(self, task: TaskContext) -> str | None:
        agent_id = super().choose(task)
        if agent_id is not None:
            due, step = self._turns[agent_id]
            self._turns[agent_id] = (due + step, step)
            self._now = max(self._now, due)
        return agent_id

    def terms(self, agent: FleetAgent) -> dict[str, float]:
        due, step = self._turns[agent.agent_id]
        return {"turn": due - step if agent.agent_id == self._chosen else due, "step": step}

    def step(self, agent: FleetAgent) -> float:
        """Return the distance between two turns of the agent."""
        return 1.0

    def first_step(self, agent: FleetAgent) -> float:
        """Return the distance to the first turn of an agent."""
        return 1.0

    def return_at(self, due: float, step: float) -> float:
        """Return the next turn of an agent whose turn passed while it had no room."""
        return self._now + step


class WeightedRoundRobin(RoundRobin):
    """Gives each agent turns in proportion to its weight, spread evenly, so that a heavy agent gets no bursts.

    Source: the smooth weighted round robin of nginx (commit 52327e0627f4, 2012), which costs O(n) for a choice. Here
    each agent has a turn every 1 ÷ weight on a virtual clock, and the first turns are spread by the golden ratio: the
    shares are the same, no two turns of an agent are close, and a choice costs O(log n).
    """

    name = "weighted_round_robin"

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._seen = 0

    def step(self, agent: FleetAgent) -> float:
        return 1 / (agent.weight or LEAST_WEIGHT)

    def first_step(self, agent: FleetAgent) -> float:
        self._seen += 1
        return (self._seen * GOLDEN) % 1 * self.step(agent)

    def return_at(self, due: float, step: float) -> float:
        # It catches up on one turn at most.
        return max(due, self._now - step)
