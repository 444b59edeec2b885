"""Strategies that use what was learned of each agent for the type of the task: service time, load, failures.

All scores are estimates in seconds. A type of which nothing is known takes one second everywhere, so load decides.

Of a task that has an expected duration the times of its type *and size* count. They say two things that those of the
type do not: which agents are good at long tasks and which at short ones, and how fast an agent is that happened to get
long ones. The expected duration itself is a factor of the score of every agent, so it is no part of the comparison.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, log
from statistics import fmean
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
        load_terms = self.learned.load_terms
        if estimates is None:
            return [load_terms[agent.load + agent.outside_load] for agent in agents]
        if task.expected_ms is not None:
            sized = self.learned.of_type(task.task_type, task.expected_ms)
            if sized is not None:
                return self._scores_of_size(agents, task, sized)
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
            found.append(base * load_terms[agent.load + agent.outside_load])
        return found

    def _scores_of_size(self, agents: Sequence[FleetAgent], task: TaskContext, sized: TypeEstimates) -> list[float]:
        """Return the scores for a task of a known size.

        An agent that has had no task of this size takes as much longer than the mean as it does for other sizes.

        Args:
            agents: to score.
            task: the task.
            sized: what is known of its type and size.
        """
        load_terms, service_s = self.learned.load_terms, self.service_s
        others = [one for one in self.learned.sizes_of(task.task_type) if one is not sized]
        found: list[float] = []
        for agent in agents:
            cell = sized.cell_of(agent.agent_id)
            if cell is not None:
                base = service_s(cell, sized)
            else:
                known = [(one, cell) for one in others if (cell := one.cell_of(agent.agent_id)) is not None]
                logs = [log(service_s(cell, one) / one.fleet_s) for one, cell in known]
                base = sized.fleet_s * exp(fmean(logs)) if logs else sized.fleet_s
            found.append(base * load_terms[agent.load + agent.outside_load])
        return found

    def terms(self, agent: FleetAgent, task: TaskContext) -> dict[str, float]:
        estimates = self.learned.of_type(task.task_type, task.expected_ms) or self.learned.of_type(task.task_type)
        cell = None if estimates is None else estimates.cell_of(agent.agent_id)
        unknown_s = 1.0 if estimates is None else estimates.fleet_s
        return {
            "service_s": unknown_s if cell is None or estimates is None else estimates.plain_s(cell),
            "shrunk_service_s": unknown_s if cell is None else cell.shrunk_s,
            "failure_rate": 0.0 if cell is None else cell.failure_rate,
            "load_exponent": self.learned.exponent,
            "load_term": self.learned.load_term(agent.load + agent.outside_load),
            **super().terms(agent, task),
        }

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
    _limit: float = inf  # the highest load of an agent that is not hot, at the last choice

    def terms(self, agent: FleetAgent, task: TaskContext) -> dict[str, float]:
        is_hot = len(self._considered) > 1 and agent.load + agent.outside_load > self._limit
        return {"is_hot": is_hot, **super().terms(agent, task)}

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        loads = [agent.load + agent.outside_load for agent in agents]
        count = len(loads)
        self._limit = limit = sorted(loads)[(count - 1) // 2 if count <= FEW else int(COLD * (count - 1))]
        cold = [agent for agent, load in zip(agents, loads, strict=True) if load <= limit]
        return cold[0] if len(cold) == 1 else super().pick(cold, task)
