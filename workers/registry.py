"""The registry: which agents are alive, and what they can do.

Any number of registries share the work. Facts are last-writer-wins by entry id: registrations, statuses and heartbeats
each among themselves. So it does not matter which registry is quicker. (A status or a heartbeat that overtakes its
agent's first registration is answered with ``unknown_agent``, and the agent registers again.)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

from msgspec.structs import replace

from coord import codec, logs
from coord.keys import encode_facet
from coord.models.facts import (
    AgentDeregistered,
    AgentDrained,
    AgentEnrolled,
    AgentHeartbeat,
    AgentLeasesListed,
    AgentMaintenanceBegun,
    AgentRegistered,
    AgentRemoved,
    AgentResumed,
    AgentsPruned,
    AgentStatusChanged,
    AgentTokenRevoked,
    AgentTokenRotated,
    ApiKeyCreated,
    ApiKeyRevoked,
    EntriesPurged,
    EntryReplayed,
    Fact,
)
from workers.service import Failure, ReceivedFact, Service, Tick, ticks_of
from workers.transitions import (
    ApiKeyChange,
    Call,
    Departure,
    DrainRequest,
    Heartbeat,
    LeaseList,
    Pruning,
    Registration,
    StatusChange,
    TokenChange,
    metric_fields,
)

log = logs.get_logger()

#: Lost agents that one line of the log names.
MOST_NAMED = 20
#: fact of an operator -> the status that it imposes on an agent.
IMPOSED: dict[type[Fact], str] = {AgentDrained: "draining", AgentMaintenanceBegun: "maintenance"}


class Registry(Service):
    """Turns agents' facts into their records, and declares agents lost that send no more heartbeats."""

    kind: ClassVar[str] = "registry"

    async def handle(self, batch: list[ReceivedFact[Any]]) -> list[Failure]:
        """Handle a batch in the order of its entries, in one round trip."""
        return await self.handle_in_order(batch, HANDLERS)

    def register(self, batch: list[ReceivedFact[AgentRegistered]]) -> Call[list[str]]:
        """``register`` for a batch of ``AgentRegistered``."""
        capacity = self.cell.settings.default_capacity
        return self.cell.scripts.register([_registration(received, capacity) for received in batch])

    def heartbeat(self, batch: list[ReceivedFact[AgentHeartbeat]]) -> Call[list[str]]:
        """``heartbeat`` for a batch of ``AgentHeartbeat``."""
        heartbeats: list[Heartbeat] = []
        for entry, fact, caller in batch:
            fields = metric_fields(fact.load_metrics)
            heartbeats.append(
                Heartbeat(
                    entry.id, caller, fact.agent_id, fact.incarnation, fact.leases, fact.deaf, fact.polled, fields
                )
            )
        return self.cell.scripts.heartbeat(heartbeats)

    def change_status(self, batch: list[ReceivedFact[AgentStatusChanged]]) -> Call[list[str]]:
        """``change_status`` for a batch of ``AgentStatusChanged``."""
        changes: list[StatusChange] = []
        for entry, fact, caller in batch:
            fields = metric_fields(fact.load_metrics)
            changes.append(StatusChange(entry.id, caller, fact.agent_id, fact.incarnation, fact.status, fields))
        return self.cell.scripts.change_status(changes)

    def deregister(self, batch: list[ReceivedFact[AgentDeregistered]]) -> Call[list[str]]:
        """``deregister`` for a batch of ``AgentDeregistered``."""
        departures: list[Departure] = []
        for entry, fact, caller in batch:
            forget_after_ms = None if fact.forget_after is None else int(fact.forget_after * 1000)
            departures.append(Departure(entry.id, caller, fact.agent_id, fact.incarnation, forget_after_ms))
        return self.cell.scripts.deregister(departures)

    def check_leases(self, batch: list[ReceivedFact[AgentLeasesListed]]) -> Call[list[str]]:
        """``check_leases`` for a batch of ``AgentLeasesListed``."""
        lists: list[LeaseList] = []
        for entry, fact, _ in batch:
            lists.append(LeaseList(entry.id, fact.agent_id, fact.incarnation, fact.ask, fact.leases))
        return self.cell.scripts.check_leases(lists)

    def drain(self, batch: list[ReceivedFact[AgentDrained | AgentMaintenanceBegun | AgentResumed]]) -> Call[list[str]]:
        """``drain`` for a batch of ``AgentDrained``, ``AgentMaintenanceBegun`` and ``AgentResumed``, in their order."""
        requests: list[DrainRequest] = []
        for entry, fact, caller in batch:
            requests.append(DrainRequest(entry.id, caller, fact.agent_id, IMPOSED.get(type(fact), "")))
        return self.cell.scripts.drain(requests)

    def prune(self, batch: list[ReceivedFact[AgentsPruned]]) -> Call[list[str]]:
        """``prune`` for a batch of ``AgentsPruned``."""
        return self.cell.scripts.prune(
            [Pruning(one.id, caller, int(fact.older_than * 1000)) for one, fact, caller in batch]
        )

    def remove(self, batch: list[ReceivedFact[AgentRemoved]]) -> Call[list[str]]:
        """``deregister`` for a batch of ``AgentRemoved``."""
        departures = [Departure(entry.id, caller, fact.agent_id, "") for entry, fact, caller in batch]
        return self.cell.scripts.deregister(departures, by_operator=True)

    def change_token(
        self, batch: list[ReceivedFact[AgentEnrolled | AgentTokenRotated | AgentTokenRevoked]]
    ) -> Call[list[str]]:
        """``change_token`` for a batch of operators' requests about tokens, in their order."""
        changes: list[TokenChange] = []
        for entry, fact, caller in batch:
            if isinstance(fact, AgentEnrolled):
                change = TokenChange(entry.id, caller, fact.agent_id, "enrol", fact.token_sha256)
            elif isinstance(fact, AgentTokenRotated):
                grace_ms = int(fact.grace * 1000)
                change = TokenChange(entry.id, caller, fact.agent_id, "rotate", fact.token_sha256, grace_ms)
            else:
                change = TokenChange(entry.id, caller, fact.agent_id, "revoke")
            changes.append(change)
        return self.cell.scripts.change_token(changes)

    def change_api_key(self, batch: list[ReceivedFact[ApiKeyCreated | ApiKeyRevoked]]) -> Call[list[str]]:
        """``change_api_key`` for a batch of operators' requests about API keys, in their order."""
        changes: list[ApiKeyChange] = []
        for entry, fact, caller in batch:
            if isinstance(fact, ApiKeyRevoked):
                change = ApiKeyChange(entry.id, caller, fact.key_id, "revoke")
            else:
                lifetime_ms = None if fact.lifetime is None else int(fact.lifetime * 1000)
                agent_id = fact.agent_id or ""
                change = ApiKeyChange(
                    entry.id,
                    caller,
                    fact.key_id,
                    "create",
                    fact.key_sha256,
                    fact.role,
                    agent_id,
                    fact.name,
                    lifetime_ms,
                )
            changes.append(change)
        return self.cell.scripts.change_api_key(changes)

    def purge(self, batch: list[ReceivedFact[EntriesPurged]]) -> Call[list[str]]:
        """``purge`` for a batch of ``EntriesPurged``: entries of every stream, also of other kinds of worker."""
        return self.purge_dead("entries", batch)

    async def tick_liveness(self) -> None:
        """Tick the observed clock, and log which agents are lost."""
        (answer,) = await self.cell.scripts.run(self.cell.scripts.tick_liveness())
        if answer.stale:
            log.warning("agents.lost", count=answer.stale, agents=" ".join(answer.lost[:MOST_NAMED]))

    def ticks(self) -> dict[str, Tick]:
        """Return what is done periodically, by name."""
        return ticks_of(self, TICKS)


def _registration(received: ReceivedFact[AgentRegistered], default_capacity: int) -> Registration:
    entry, fact, caller = received
    capacity = default_capacity if fact.capacity is None else fact.capacity
    interval = fact.heartbeat_interval
    fields: dict[str, str | bytes | int | float] = {
        "agent_type": fact.agent_type.value,
        "capabilities": codec.encode(fact.capabilities),
        "services": codec.encode(fact.services),
        "tags": codec.encode(fact.tags),
        "labels": codec.encode(fact.labels),
        "endpoints": codec.encode(fact.endpoints),
        "metadata": codec.encode(fact.metadata),
        "location": codec.encode(fact.location) if fact.location is not None else b"",
        "version": fact.version,
        "capacity": capacity,
        "weight": fact.weight,
    }
    return Registration(
        entry=entry.id,
        caller=caller,
        agent_id=fact.agent_id,
        incarnation=fact.incarnation,
        interval_ms=None if interval is None else int(interval * 1000),
        delivery=fact.delivery or "",
        digest=codec.digest_of(replace(fact, incarnation="", capacity=capacity)),
        facets=" ".join(_facets(fact)),
        fields=fields,
    )


def _facets(fact: AgentRegistered) -> list[str]:
    values = [("type", fact.agent_type.value)]
    values += [("capability", value) for value in fact.capabilities]
    values += [("service", value) for value in fact.services]
    values += [("tag", value) for value in fact.tags]
    values += [("label", f"{name}={value}") for name, value in fact.labels.items()]
    return [f"{facet}:{encode_facet(value)}" for facet, value in dict.fromkeys(values)]


HANDLERS: dict[type[Fact], Callable[[Registry, list[ReceivedFact[Any]]], Call[list[str]]]] = {
    AgentRegistered: Registry.register,
    AgentStatusChanged: Registry.change_status,
    AgentHeartbeat: Registry.heartbeat,
    AgentDeregistered: Registry.deregister,
    AgentLeasesListed: Registry.check_leases,
    AgentDrained: Registry.drain,
    AgentMaintenanceBegun: Registry.drain,
    AgentResumed: Registry.drain,
    AgentRemoved: Registry.remove,
    AgentsPruned: Registry.prune,
    AgentEnrolled: Registry.change_token,
    AgentTokenRotated: Registry.change_token,
    AgentTokenRevoked: Registry.change_token,
    ApiKeyCreated: Registry.change_api_key,
    ApiKeyRevoked: Registry.change_api_key,
    EntryReplayed: Registry.requeue,
    EntriesPurged: Registry.purge,
}

#: What is done periodically: seconds between two calls.
TICKS = {"tick_liveness": 0.5, "retry_deferred": 0.05}
