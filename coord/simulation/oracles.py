"""Two greedy oracles that know all service times beforehand. Neither is the optimum."""

from __future__ import annotations

import heapq

from coord.simulation.engine import Run
from coord.simulation.scenario import Scenario

#: Names of the oracles, as results show them.
EARLIEST_SLOT, EARLIEST_END = "oracle: earliest free slot", "oracle: earliest completion"


def oracle_runs(scenario: Scenario) -> dict[str, Run]:
    """Return what the oracles do: one gives each task to the slot that is free first, the other to where it ends first.

    Both place the tasks in the order of their arrival.

    Returns: name -> run; nothing if slots are not independent or agents change, because the oracles assume otherwise.
    """
    if not scenario.has_independent_slots:
        return {}
    return {EARLIEST_SLOT: _run(scenario, by_end=False), EARLIEST_END: _run(scenario, by_end=True)}


def _run(scenario: Scenario, *, by_end: bool) -> Run:
    free = {agent.agent_id: [0.0] * agent.capacity for agent in scenario.agents}  # heaps
    eligible = {job.capabilities: scenario.eligible(job) for job in scenario.jobs}
    starts, ends, agents = [], [], []
    for job in scenario.jobs:
        best = (float("inf"), float("inf"))
        chosen, begins, ends_at = "", 0.0, 0.0
        for agent in eligible[job.capabilities]:
            start = max(job.arrived, free[agent.agent_id][0])
            end = start + job.work / agent.speed_for(job.task.task_type)
            key = (end, start) if by_end else (start, end)
            if key < best:
                best, chosen, begins, ends_at = key, agent.agent_id, start, end
        heapq.heapreplace(free[chosen], ends_at)
        starts.append(begins)
        ends.append(ends_at)
        agents.append(chosen)
    return Run(tuple(starts), tuple(ends), tuple(agents), tuple(range(len(starts))))
