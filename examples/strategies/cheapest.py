"""A placement strategy of one's own: the agent with the lowest price gets the task.

Agents carry their price as a label: ``coord.Agent("a1", labels={"price": "0.12"})``. ``pyproject.toml`` declares the
strategy as an entry point. Install the package where distributors run and where tasks are submitted. Then
``coord strategy set cheapest``, or ``client.submit(..., strategy="cheapest")``.
"""

from __future__ import annotations

from math import inf, isfinite

from coord.models.agents import FleetAgent
from coord.placement import OrderedStrategy


class Cheapest(OrderedStrategy):
    """Chooses the agent with the lowest price; agents with the same price take turns, those without one come last."""

    name = "cheapest"

    def key(self, agent: FleetAgent) -> float:
        """Return the price."""
        try:
            price = float(agent.labels.get("price", inf))
        except ValueError:
            return inf
        return price if isfinite(price) else inf
