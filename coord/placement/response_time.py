"""Strategies that use what was learned of each agent for the type of the task: service time, load, failures.

All scores are estimates in seconds. A type of which nothing is known takes one second everywhere, so load decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from coord.models.agents import FleetAgent
from coord.placement.learning import Cell, TypeEstimates
from coord.placement.strategy import NEAR, SampledStrategy, TaskContext, relative_load

#: Share of the agents that are not hot.
COLD = 0.84
#: Agents up to which half of them are not hot.
FEW = 6


class LearnedStrategy(SampledStrategy):
    """Scores agents by learned times. A subclass gives ``service_s``: an agent's time without load.

    Scores within 10 % count as equal, and the load decides. Among those with the same load the lowest score does: free
    agents with one slot have all the same load, and chance would choose one that is up to 10 % slower.
    """

    near: ClassVar[float] = NEAR

    def service_s(self, cell: Cell, estimates: TypeEstimates) -> float:
        """Return the service time without load that the strategy counts with, in seconds."""
        return cell.shrunk_s

    def score(self, agent: FleetAgent, task: TaskContext) -> float:
        return self.scores((agent,), task)[0]

    def scores(self, agents: Sequence[FleetAgent], task: TaskContext) -> list[float]:
        estimates = self.learned.of_type(task.task_type)
        load_term = self.learned.load_term
        if estimates is None:
            return [load_term(agent.load + agent.outside_load) for agent in agents]
        unknown_s, cells, tick, service_s = estimates.fleet_s, estimates.cells, estimates.tick, self.service_s
        found: list[float] = []
        for agent in agents:
            cell = cells.get(agent.agent_id)
            if cell is None:
                base = unknown_s
            else:
                if cell.tick != tick:
                    estimates.estimate(cell)
                base = service_s(cell, estimates)
            found.append(base * load_term(agent.load + agent.outside_load))
        return found

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        scores = self.scores(agents, task)
        limit = min(scores) * self.near
        near = [
            (relative_load(agent), score, agent) for agent, score in zip(agents, scores, strict=True) if score <= limit
        ]
        if len(near) == 1:
            return near[0][2]
        best = min([one[:2] for one in near])
        equal = [one[2] for one in near if one[:2] == best]
        return equal[0] if len(equal) == 1 else equal[int(self.random.random() * len(equal))]


class LeastResponseTime(LearnedStrategy):
    """Chooses the agent with the lowest mean response time for this type of task, times the load term.

    The mean is a plain exponentially weighted one. Source: the load metrics of Finagle (Twitter, 2014). Its variant
    that follows peaks was in simulation up to 1.11 times as slow as least_connections.
    """

    name = "least_response_time"

    def service_s(self, cell: Cell, estimates: TypeEstimates) -> float:
        return estimates.plain_s(cell)


class Predictive(LearnedStrategy):
    """Chooses the agent with the earliest expected completion: service time * load term / (1 - failure rate).

    The service time is learned for the agent and the type of the task, and shrunk towards the mean of all agents by
    (variance within agents ÷ variance between agents). Source: James-Stein shrinkage (W. James and C. Stein, 1961).
    """

    name = "predictive"

    def service_s(self, cell: Cell, estimates: TypeEstimates) -> float:
        return cell.shrunk_s / (1 - cell.failure_rate)


class Prequal(LearnedStrategy):
    """Leaves out the hot agents, those with most tasks in flight; chooses the lowest expected time among the others.

    An agent is hot if it has more tasks in flight than 84 % of the agents (with six or fewer: than half of them). The
    least loaded agent is never hot. Source: B. Wydrowski and others, Load is not what you should balance: Introducing
    Prequal, NSDI 2024. Unlike there, the load term is part of the estimate: without it, the mean response was 5.2 times
    that of least_connections on agents whose slots share a CPU.
    """

    name = "prequal"

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        loads = sorted([agent.load + agent.outside_load for agent in agents])
        count = len(loads)
        limit = loads[(count - 1) // 2 if count <= FEW else int(COLD * (count - 1))]
        cold = [agent for agent in agents if agent.load + agent.outside_load <= limit]
        return cold[0] if len(cold) == 1 else super().pick(cold, task)
