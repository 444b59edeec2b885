"""Facets: the index of many agents by what the hard requirements of tasks name.

Each property of an agent and each requirement of a task is one string. An agent that has all facets of a task's
requirements meets them all, except status, health and room, which change often. Room is left to the strategies and
checked by the dispatch script. ``reasons`` checks one agent.
"""

from __future__ import annotations

from sys import intern

from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.models.explanations import WaitingReason
from coord.models.tasks import Pool, Requirements


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
    groups = reversed(facets_by_reason(requirements).values())
    return tuple(dict.fromkeys(facet for group in groups for facet in group))


def facets_by_reason(requirements: Requirements) -> dict[WaitingReason, list[str]]:
    """Return the facets that an agent must have, by the reason for which one without them is rejected, in its order."""
    agent_type, agent_id = requirements.agent_type, requirements.agent_id
    return {
        WaitingReason.NO_AGENT_TYPE: [] if agent_type is None else [_facet("type", agent_type)],
        WaitingReason.NO_CAPABILITY: [_facet("capability", name) for name in requirements.capabilities],
        WaitingReason.NO_SERVICE: [_facet("service", name) for name in requirements.services],
        WaitingReason.NO_TAG: [_facet("tag", name) for name in requirements.tags],
        WaitingReason.NO_LABEL: [_label(name, value) for name, value in requirements.labels.items()],
        WaitingReason.NAMED_AGENT_ABSENT: [] if agent_id is None else [_facet("agent", agent_id)],
    }


def preferred_pool(pool: Pool) -> Pool | None:
    """Return the pool with the capability named like its task type among its requirements.

    Its agents get the tasks of a pool that requires no capability, if there are any: they say that they can run them.

    Returns:
        None if the pool requires a capability.
    """
    requirements = pool.requirements
    if requirements.capabilities:
        return None
    return replace(pool, requirements=replace(requirements, capabilities=(pool.task_type,)))


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
