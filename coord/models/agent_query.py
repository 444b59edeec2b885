"""The fields of a query for agents: ``state:busy region:eu* load:>=0.8``. ``AGENTS`` is the grammar.

The Fleet page of the dashboard has the same fields and runs its query in the browser
(``gateway/ui/pages/fleet_query.js``).
"""

from __future__ import annotations

from coord.models.agents import AgentRecord, AgentStatus
from coord.models.query import Field, Grammar, Kind


def load_of(agent: AgentRecord) -> float:
    """Return the share of its capacity that an agent uses, 0 to 1."""
    if agent.capacity <= 0:
        return 1.0 if agent.load > 0 else 0.0
    return min(1.0, agent.load / agent.capacity)


def _labels(agent: AgentRecord) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in agent.labels.items())


def _region(agent: AgentRecord) -> str | None:
    return agent.location.region if agent.location is not None else None


def _zone(agent: AgentRecord) -> str | None:
    return agent.location.zone if agent.location is not None else None


def _has_word(agent: AgentRecord, word: str) -> bool:
    wanted = word.lower()
    texts = (agent.agent_id, agent.agent_type, *agent.capabilities, *agent.tags)
    return any(wanted in text.lower() for text in texts)


_FIELDS: tuple[Field[AgentRecord], ...] = (
    Field("id", Kind.TEXT, "Id of the agent.", lambda agent: agent.agent_id, "id:gpu-*"),
    Field("state", Kind.CHOICE, "Status.", lambda agent: agent.status, "state:busy", tuple(AgentStatus)),
    Field("type", Kind.TEXT, "Type of the agent.", lambda agent: agent.agent_type, "type:worker"),
    Field(
        "capability", Kind.TEXT, "Capability that it advertises.",
        lambda agent: agent.capabilities, "capability:ocr",
    ),
    Field("service", Kind.TEXT, "Service that it offers.", lambda agent: agent.services, "service:search"),
    Field("tag", Kind.TEXT, "Tag.", lambda agent: agent.tags, "tag:fast"),
    Field("label", Kind.TEXT, "Label, with its value.", _labels, "label:rack=r7"),
    Field("region", Kind.TEXT, "Region of its location.", _region, "region:eu*"),
    Field("zone", Kind.TEXT, "Zone of its location.", _zone, "zone:eu-1a"),
    Field("version", Kind.TEXT, "Version.", lambda agent: agent.version, "version:2*"),
    Field("health", Kind.SHARE, "Health, from 0 to 1.", lambda agent: agent.health_score, "health:<0.7"),
    Field("load", Kind.SHARE, "Share of its capacity that it uses.", load_of, "load:>=0.8"),
)  # fmt: skip

#: The grammar. A word without a field is a part of the id, the type, a capability or a tag, in any case of its letters.
AGENTS: Grammar[AgentRecord] = Grammar("agent", _FIELDS, has_word=_has_word)
