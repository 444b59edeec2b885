"""Hard requirements: they never bend. All but room, which the strategies look after and the dispatch script checks."""

from __future__ import annotations

from coord.models.agents import FleetAgent
from coord.models.tasks import Requirements


def unmet(agent: FleetAgent, wanted: Requirements, health_threshold: float) -> str | None:
    """The first requirement that the agent does not meet, by name; None when it may be chosen.

    ``health_threshold`` (0..1) holds for every task; a task's own ``min_health_score`` can only be stricter.
    """
    checks = (
        ("active", agent.active),
        ("agent_id", wanted.agent_id in {None, agent.agent_id}),
        ("agent_type", wanted.agent_type in {None, agent.agent_type}),
        ("capabilities", agent.capabilities.issuperset(wanted.capabilities)),
        ("services", agent.services.issuperset(wanted.services)),
        ("tags", agent.tags.issuperset(wanted.tags)),
        ("labels", wanted.labels.items() <= agent.labels.items()),
        ("health", agent.health_score >= max(health_threshold, wanted.min_health_score)),
    )
    return next((name for name, met in checks if not met), None)
