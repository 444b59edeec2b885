"""Hard requirements of a task: they never bend.

``unmet_requirement`` checks one agent. Facets are the index for many: each property of an agent and each requirement of
a task is one string, and an agent that has all facets of a task's requirements meets them all, except health and room,
which change often. Room is left to the strategies and checked by the dispatch script.
"""

from __future__ import annotations

from sys import intern

from coord.models.agents import FleetAgent
from coord.models.tasks import Requirements


def unmet_requirement(agent: FleetAgent, requirements: Requirements, health_threshold: float) -> str | None:
    """Return the name of the first requirement that the agent does not meet; None if it is eligible.

    Args:
        agent: the agent.
        requirements: of the task.
        health_threshold: 0 to 1, for every task; a task's own ``min_health_score`` can only be stricter.
    """
    checks = (
        ("active", agent.active),
        ("agent_id", requirements.agent_id in {None, agent.agent_id}),
        ("agent_type", requirements.agent_type in {None, agent.agent_type}),
        ("capabilities", agent.capabilities.issuperset(requirements.capabilities)),
        ("services", agent.services.issuperset(requirements.services)),
        ("tags", agent.tags.issuperset(requirements.tags)),
        ("labels", requirements.labels.items() <= agent.labels.items()),
        ("health", agent.health_score >= max(health_threshold, requirements.min_health_score)),
    )
    return next((name for name, is_met in checks if not is_met), None)


def facets_of(agent: FleetAgent) -> frozenset[str]:
    """Return every property of an agent that requirements can name."""
    return frozenset(
        (
            _facet("agent", agent.agent_id),
            _facet("type", agent.agent_type),
            *(_facet("tag", name) for name in agent.tags),
            *(_facet("service", name) for name in agent.services),
            *(_facet("capability", name) for name in agent.capabilities),
            *(_label(name, value) for name, value in agent.labels.items()),
        )
    )


def facets_required(requirements: Requirements) -> tuple[str, ...]:
    """Return the facets that an agent must have, first those that few agents usually have."""
    facets = [
        *([] if requirements.agent_id is None else [_facet("agent", requirements.agent_id)]),
        *(_label(name, value) for name, value in requirements.labels.items()),
        *(_facet("tag", name) for name in requirements.tags),
        *(_facet("service", name) for name in requirements.services),
        *(_facet("capability", name) for name in requirements.capabilities),
        *([] if requirements.agent_type is None else [_facet("type", requirements.agent_type)]),
    ]
    return tuple(dict.fromkeys(facets))


def capability_facet(name: str) -> str:
    """Return the facet of the agents that have a capability."""
    return _facet("capability", name)


def _facet(kind: str, name: str) -> str:
    return intern(f"{kind}:{name}")


def _label(name: str, value: object) -> str:
    # The length distinguishes the name "a=b" with the value "c" from "a" with "b=c". A value that is not text never
    # equals one that is.
    kind = "label" if isinstance(value, str) else "odd"
    return intern(f"{kind}:{len(name)}:{name}={value}")
