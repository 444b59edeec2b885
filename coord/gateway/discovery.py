"""Handlers and schemas of discovery: find agents by any mix of properties, by a service, by a capability."""

from __future__ import annotations

from typing import Annotated, Any

from msgspec import Meta, Struct

from coord.gateway.routes import Call
from coord.gateway.schemas import AgentSchema, Label, iso_or_none, now
from coord.models.agents import AgentStatus, AgentType
from coord.models.facts import Names
from coord.models.tasks import Text
from coord.queries import AgentPage

#: Maximum number of agents in a response: the default, and the limit of the limit.
MOST_AGENTS = 1_000


class AgentQuery(Struct, frozen=True):
    """The properties that the agents must have; unknown keys are ignored."""

    agent_type: Label | None = None  #: one that does not exist finds nothing
    status: Label | None = None  #: the same
    capabilities: Names = ()
    services: Names = ()
    tags: Names = ()
    labels: Annotated[dict[Text, Label], Meta(max_length=62)] = {}
    chain_id: Label | int | None = None  #: a label of this name
    island_id: Label | int | None = None  #: the same
    min_health_score: Annotated[float, Meta(ge=0, le=1)] | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_AGENTS)] = MOST_AGENTS
    cursor: Label | None = None

    def all_labels(self) -> dict[str, str]:
        """Return the labels, with those that have fields of their own."""
        extra = {"chain_id": self.chain_id, "island_id": self.island_id}
        return self.labels | {name: str(value) for name, value in extra.items() if value is not None}


class DiscoverAgents(AgentQuery, frozen=True):
    """POST /agents/discover: the query itself, or wrapped as ``{"query": {…}}``."""

    query: AgentQuery | None = None


class AgentsDiscovered(Struct, frozen=True, kw_only=True):
    """POST /agents/discover."""

    status: str = "success"
    query: AgentQuery
    agents: list[AgentSchema]
    count: int
    next: str | None  #: cursor of the next page
    timestamp: str


class AgentsOfService(Struct, frozen=True, kw_only=True):
    """GET /agents/service/{service}."""

    status: str = "success"
    service: str
    agents: list[AgentSchema]
    count: int
    next: str | None
    timestamp: str


class AgentsOfCapability(Struct, frozen=True, kw_only=True):
    """GET /agents/capability/{capability}."""

    status: str = "success"
    capability: str
    agents: list[AgentSchema]
    count: int
    next: str | None
    timestamp: str


class AgentsListed(Struct, frozen=True, kw_only=True):
    """GET /agents."""

    status: str = "success"
    agents: list[AgentSchema]
    count: int
    next: str | None
    timestamp: str


class RegistryCounts(Struct, frozen=True, kw_only=True):
    """The agents in numbers."""

    total_agents: int
    status_counts: dict[str, int]  #: without those that are zero
    type_counts: dict[str, int]  #: the same
    service_count: int  #: different services that any agent has
    capability_count: int
    last_cleanup: str | None  #: when the record of an agent that left was last removed


class RegistryCounted(Struct, frozen=True, kw_only=True):
    """GET /registry/stats."""

    status: str = "success"
    stats: RegistryCounts
    timestamp: str


class PageQuery(Struct, frozen=True):
    """A page of a list."""

    limit: Annotated[int, Meta(ge=1, le=MOST_AGENTS)] = MOST_AGENTS
    cursor: Label | None = None


async def registry_stats(call: Call[None, None]) -> RegistryCounted:
    """Return the agents in numbers."""
    found = await call.backend.registry_stats()
    counts = RegistryCounts(
        total_agents=found.total,
        status_counts={name.value: count for name, count in found.by_status.items() if count},
        type_counts={name.value: count for name, count in found.by_type.items() if count},
        service_count=found.services,
        capability_count=found.capabilities,
        last_cleanup=iso_or_none(found.forgotten_at),
    )
    return RegistryCounted(stats=counts, timestamp=now())


async def list_agents(call: Call[None, AgentQuery]) -> AgentsListed:
    """Return the agents that have all properties, the healthiest first."""
    page = await _find(call, call.query)
    agents = [AgentSchema.of(record) for record in page.agents]
    return AgentsListed(agents=agents, count=len(agents), next=page.next, timestamp=now())


async def discover(call: Call[DiscoverAgents, None]) -> AgentsDiscovered:
    """Return the agents that have all properties, the healthiest first."""
    body = call.body
    wanted = body.query or AgentQuery(**{name: getattr(body, name) for name in AgentQuery.__struct_fields__})
    page = await _find(call, wanted)
    agents = [AgentSchema.of(record) for record in page.agents]
    return AgentsDiscovered(query=wanted, agents=agents, count=len(agents), next=page.next, timestamp=now())


async def _find(call: Call[Any, Any], wanted: AgentQuery) -> AgentPage:
    """Return a page of agents; a type or status that does not exist finds nothing."""
    if wanted.agent_type not in {None, *AgentType} or wanted.status not in {None, *AgentStatus}:
        return AgentPage((), None)
    return await call.backend.discover(
        agent_type=wanted.agent_type,
        status=wanted.status,
        capabilities=wanted.capabilities,
        services=wanted.services,
        tags=wanted.tags,
        labels=wanted.all_labels(),
        min_health=wanted.min_health_score,
        limit=wanted.limit,
        cursor=wanted.cursor,
    )


async def with_service(call: Call[None, PageQuery]) -> AgentsOfService:
    """Return the agents with a service that may get work now, the healthiest first."""
    service, query = call.params["service"], call.query
    page = await call.backend.discover(services=(service,), placeable=True, limit=query.limit, cursor=query.cursor)
    agents = [AgentSchema.of(record) for record in page.agents]
    return AgentsOfService(service=service, agents=agents, count=len(agents), next=page.next, timestamp=now())


async def with_capability(call: Call[None, PageQuery]) -> AgentsOfCapability:
    """Return the agents with a capability that may get work now, the healthiest first."""
    capability, query = call.params["capability"], call.query
    page = await call.backend.discover(
        capabilities=(capability,), placeable=True, limit=query.limit, cursor=query.cursor
    )
    agents = [AgentSchema.of(record) for record in page.agents]
    return AgentsOfCapability(capability=capability, agents=agents, count=len(agents), next=page.next, timestamp=now())
