"""Facets: what an agent has and a task requires, one string each, so that either side can be indexed by them.

An agent that has all facets of a task's requirements meets all of them but health and room, which change often.
"""

from __future__ import annotations

from sys import intern

from coord.models.agents import FleetAgent
from coord.models.tasks import Requirements


def facets_of(agent: FleetAgent) -> frozenset[str]:
    """Return everything about an agent that requirements can name."""
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


def facets_required(wanted: Requirements) -> tuple[str, ...]:
    """Return the facets that an agent must have; those first that few agents usually have."""
    facets = [
        *([] if wanted.agent_id is None else [_facet("agent", wanted.agent_id)]),
        *(_label(name, value) for name, value in wanted.labels.items()),
        *(_facet("tag", name) for name in wanted.tags),
        *(_facet("service", name) for name in wanted.services),
        *(_facet("capability", name) for name in wanted.capabilities),
        *([] if wanted.agent_type is None else [_facet("type", wanted.agent_type)]),
    ]
    return tuple(dict.fromkeys(facets))


def _facet(kind: str, name: str) -> str:
    return intern(f"{kind}:{name}")


def _label(name: str, value: object) -> str:
    # The length keeps a=b with the value c apart from a with the value b=c; a value that is no text equals none.
    kind = "label" if isinstance(value, str) else "odd"
    return intern(f"{kind}:{len(name)}:{name}={value}")
