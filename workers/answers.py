"""What the coordinator answers itself: messages to the receiver ``coordinator``.

A message of type ``discovery`` is answered with a page of the agents that meet the filter in its payload, the
healthiest first. The router finds them in the indexes of discovery; the script ``deliver`` sends the answer.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec
from msgspec import Struct

from coord import codec
from coord.errors import CursorInvalid
from coord.models.agents import AgentFilter, AgentStatus, AgentType
from coord.models.facts import MessageSent
from coord.models.messages import COORDINATOR, MessageType
from coord.models.tasks import Fraction, Text
from coord.queries import discover_agents
from workers.service import WorkerContext

#: Agents in an answer: the default, and the limit of the limit.
FOUND, MOST_FOUND = 100, 1_000


class AgentQuery(Struct, frozen=True, forbid_unknown_fields=True):
    """The payload of a ``discovery`` message: the properties that an agent must have, all of them."""

    agent_type: AgentType | None = None
    status: AgentStatus | None = AgentStatus.ACTIVE  #: None: any
    capabilities: tuple[Text, ...] = ()
    services: tuple[Text, ...] = ()
    tags: tuple[Text, ...] = ()
    labels: dict[Text, str] = {}
    min_health: Fraction = 0.0
    limit: int = FOUND
    cursor: str | None = None  #: ``next`` of the answer before

    def __post_init__(self) -> None:
        if not 1 <= self.limit <= MOST_FOUND:
            raise ValueError(f"limit must be 1 to {MOST_FOUND}, not {self.limit}")

    @property
    def filter(self) -> AgentFilter:
        """The agents that are meant."""
        return AgentFilter(
            agent_type=self.agent_type,
            status=self.status,
            capabilities=self.capabilities,
            services=self.services,
            tags=self.tags,
            labels=self.labels,
            min_health=self.min_health,
        )


class Result(NamedTuple):
    """What the coordinator answers to a message: JSON."""

    data: bytes = b""  #: empty: nothing
    failed: bool = False


NO_RESULT = Result()
_decode = msgspec.json.Decoder(AgentQuery).decode


async def answer_for(cell: WorkerContext, fact: MessageSent) -> Result:
    """Return the answer to a message to the coordinator."""
    if fact.message_type is not MessageType.DISCOVERY:
        why = f"the receiver '{COORDINATOR}' takes only messages of type discovery, not {fact.message_type.value}"
        return _failure("message_type_invalid", f"{why}; send others to an agent")
    try:
        query = _decode(fact.payload)
    except codec.BAD_JSON as error:
        return _failure("fact_invalid", f"payload: {error}; docs/protocol.md lists the fields of the filter")
    try:
        page = await discover_agents(cell.redis, cell.keys, query.filter, limit=query.limit, cursor=query.cursor)
    except CursorInvalid as error:
        return _failure(error.code, f"payload: {error}")
    found: list[dict[str, Any]] = [
        {
            "agent_id": record.agent_id,
            "agent_type": record.agent_type,
            "status": record.status,
            "capabilities": record.capabilities,
            "services": record.services,
            "tags": record.tags,
            "labels": record.labels,
            "endpoints": record.endpoints,
            "version": record.version,
            "capacity": record.capacity,
            "load": record.load,
            "health_score": record.health_score,
        }
        for record in page.agents
    ]
    return Result(codec.encode({"agents": found, "next": page.next}))


def _failure(code: str, message: str) -> Result:
    return Result(codec.encode({"code": code, "message": message}), failed=True)
