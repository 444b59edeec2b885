"""Strategies that look at the resources of an agent's machine."""

from __future__ import annotations

from coord.models.agents import FleetAgent
from coord.placement.strategy import OrderedStrategy

#: Utilizations that differ by less than this count as equal.
STEP = 0.001
#: Part of a step by which the share of used slots orders agents with equal utilization.
TIE = STEP / 10


class ResourceBased(OrderedStrategy):
    """Chooses the agent with the lowest utilization: the highest of cpu, memory and load ÷ capacity.

    An agent reports cpu and memory every few seconds. Each task that it got since then counts as one slot's share of
    the machine, so that an idle machine is not flooded until its next report. What an agent does not report is left
    out. Among agents with equal utilization the share of used slots decides.
    """

    name = "resource_based"

    def key(self, agent: FleetAgent) -> float:
        capacity = agent.capacity or 1
        slots = (agent.load + agent.outside_load) / capacity
        reported = max(agent.cpu or 0.0, agent.memory or 0.0)
        if agent.load > agent.load_at_report:
            reported += (agent.load - agent.load_at_report) / capacity
        return round(max(slots, reported) / STEP) * STEP + (slots if slots < 1 else 1.0) * TIE

    def terms(self, agent: FleetAgent) -> dict[str, float]:
        reported = {"cpu": agent.cpu, "memory": agent.memory}
        return {
            **{name: value for name, value in reported.items() if value is not None},
            "capacity": agent.capacity,
            "placed_since_report": max(0, agent.load - agent.load_at_report),
            **super().terms(agent),
        }
