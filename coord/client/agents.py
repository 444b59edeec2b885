"""What a client reads of agents: records, discovery, and watching."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Iterable, Mapping
from contextlib import aclosing
from enum import StrEnum
from typing import TypeVar

from coord import queries
from coord.arguments import as_dict, as_list
from coord.client.connection import ClientConnection
from coord.client.watching import watch_agents
from coord.connection import reading
from coord.errors import AgentNotFound, FactInvalid
from coord.models.agents import AgentChange, AgentFilter, AgentRecord, AgentStatus, AgentType
from coord.models.ids import check_id
from coord.suggestions import not_one_of

E = TypeVar("E", bound=StrEnum)
#: Agents in one page of ``discover_all``.
PAGE = 100


class AgentReads:
    """The methods of a client that read agents."""

    connection: ClientConnection

    async def agents(self) -> list[AgentRecord]:
        """Read the records of all agents, by id, also of those that left."""
        with reading():
            return await queries.list_agents(self.connection.redis, self.connection.keys)

    async def agent(self, agent_id: str) -> AgentRecord:
        """Read the record of an agent; raises ``AgentNotFound``."""
        with reading():
            record = await queries.get_agent(
                self.connection.redis, self.connection.keys, check_id(agent_id, "agent_id")
            )
        if record is None:
            raise AgentNotFound(f"Agent '{agent_id}' not found")
        return record

    async def registry_stats(self) -> queries.RegistryStats:
        """Count the agents by status and type, and the services and capabilities that they have; one round trip."""
        with reading():
            return await queries.get_registry_stats(self.connection.redis, self.connection.keys)

    async def discover(
        self,
        *,
        agent_type: AgentType | str | None = None,
        status: AgentStatus | str | None = None,
        capabilities: Iterable[str] = (),
        services: Iterable[str] = (),
        tags: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        min_health: float | None = None,
        placeable: bool = False,
        departed: bool = False,
        limit: int = 100,
        cursor: str | None = None,
    ) -> queries.AgentPage:
        """Find the agents that meet all of the filter, the healthiest first; those of the same health by id.

        It reads index sets, so it takes a few milliseconds with 10,000 agents. An agent whose health does not change
        meanwhile is in exactly one page; one whose health rises or falls past the cursor may be missed, or come again.
        ``discover_all`` has neither.

        Args:
            agent_type: only agents of this type.
            status: only agents with this status.
            capabilities: only agents that have all of these.
            services: the same.
            tags: the same.
            labels: the same, with these values.
            min_health: only agents with at least this ``health_score``, 0 to 1.
            placeable: only agents that may get work now: active, and not deaf.
            departed: also agents that left; without it they are found only by ``status="inactive"``.
            limit: maximum number of agents, at least 1.
            cursor: continue after a page, from its ``next``.

        Raises:
            CursorInvalid: the cursor is not from a list of agents.
            FactInvalid: an argument does not fit.
        """
        wanted = _filter(
            agent_type=agent_type,
            status=status,
            capabilities=capabilities,
            services=services,
            tags=tags,
            labels=labels,
            min_health=min_health,
            placeable=placeable,
            departed=departed,
        )
        if limit < 1:
            raise FactInvalid(f"limit must be a whole number of 1 or more, got {limit!r}")
        connection = self.connection
        with reading():
            return await queries.discover_agents(connection.redis, connection.keys, wanted, limit=limit, cursor=cursor)

    async def discover_all(
        self,
        *,
        agent_type: AgentType | str | None = None,
        status: AgentStatus | str | None = None,
        capabilities: Iterable[str] = (),
        services: Iterable[str] = (),
        tags: Iterable[str] = (),
        labels: Mapping[str, str] | None = None,
        min_health: float | None = None,
        placeable: bool = False,
        departed: bool = False,
    ) -> AsyncGenerator[AgentRecord]:
        """Iterate over all agents that meet the filter of ``discover``, in its order, each once.

        At the end it looks again for agents whose health has risen past the position meanwhile, and yields them last.
        Use ``contextlib.aclosing`` if you leave the loop early.
        """
        wanted = _filter(
            agent_type=agent_type,
            status=status,
            capabilities=capabilities,
            services=services,
            tags=tags,
            labels=labels,
            min_health=min_health,
            placeable=placeable,
            departed=departed,
        )
        connection = self.connection
        seen: set[str] = set()
        for _ in range(2):
            cursor = None
            while True:
                with reading():
                    found = await queries.find_agent_ids(
                        connection.redis, connection.keys, wanted, limit=PAGE, cursor=cursor
                    )
                    fresh = [agent_id for agent_id in found.ids if agent_id not in seen]
                    records = await queries.get_agents(connection.redis, connection.keys, fresh) if fresh else []
                seen.update(fresh)
                for record in records:
                    if record is not None:
                        yield record
                cursor = found.next
                if cursor is None:
                    break

    async def watch_agents(
        self, *, since: str | None = None, on_outage: Callable[[str], None] = lambda _message: None
    ) -> AsyncGenerator[AgentChange]:
        """Iterate over the agents that are present, and then over each change of an agent; no change is missed.

        First comes a ``snapshot`` for each agent, then ``ready``, then the events of the log of agents as they happen,
        each with the record as it is now. If the log was trimmed or reset before it was read, a ``resync`` comes and
        the snapshot again: forget what you know. Loads and heartbeats alone are no changes.

        Use ``contextlib.aclosing`` if you leave the loop early.

        Args:
            since: the ``cursor`` of a change: continue after it, without a snapshot if the log still has what follows.
            on_outage: called with a message when Redis is unavailable and when it is back.

        Raises:
            CursorInvalid: ``since`` is not the cursor of a change.
            ServerUnavailable: Redis is unavailable at the beginning.
        """
        connection = self.connection
        watching = watch_agents(
            connection.redis,
            connection.keys,
            since=since,
            block_ms=connection.settings.read_block_ms,
            on_outage=on_outage,
        )
        with reading():
            async with aclosing(watching) as changes:
                async for change in changes:
                    yield change


def _filter(
    *,
    agent_type: object,
    status: object,
    capabilities: object,
    services: object,
    tags: object,
    labels: object,
    min_health: object,
    placeable: bool,
    departed: bool,
) -> AgentFilter:
    if min_health is not None and not (isinstance(min_health, int | float) and 0 <= min_health <= 1):
        raise FactInvalid(f"min_health must be a number from 0 to 1, got {min_health!r}")
    return AgentFilter(
        agent_type=None if agent_type is None else _one_of("agent_type", agent_type, AgentType),
        status=None if status is None else _one_of("status", status, AgentStatus),
        capabilities=_names("capabilities", capabilities),
        services=_names("services", services),
        tags=_names("tags", tags),
        labels={name: _text(value, f"labels.{name}") for name, value in as_dict(labels, "labels").items()},
        min_health=min_health,
        placeable=placeable,
        departed=departed,
    )


def _one_of(field: str, value: object, kind: type[E]) -> E:
    try:
        return kind(str(value))
    except ValueError:
        raise FactInvalid(not_one_of(field, value, [one.value for one in kind])) from None


def _names(field: str, values: object) -> tuple[str, ...]:
    if isinstance(values, str):
        raise FactInvalid(f"{field}: expected a list of strings, got {values!r}; write [{values!r}]")
    return tuple(as_list(values, str, field))


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise FactInvalid(f"{field}: expected a string, got {value!r}")
    return value
