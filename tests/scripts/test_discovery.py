"""Discovery from the index sets: what it finds is what the records say, and paging under change loses nobody."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any
from unittest.mock import patch

import msgspec
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from coord import codec, queries
from coord.config import Settings
from coord.connection import connect_worker
from coord.embedded import EmbeddedServer
from coord.errors import CursorInvalid
from coord.keys import encode_facet
from coord.models.agents import AgentFilter, AgentRecord, AgentStatus, AgentType
from coord.queries import discovery
from tests.ledger import assert_ledger
from tests.scripts.cell import Cell
from workers.transitions import DrainRequest, Heartbeat, Pruning

AGENTS = [f"a{number}" for number in range(6)]
VALUES = ["x", "y z:{", "ü"]
LITTLE = effort(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
LISTS = st.lists(st.sampled_from(VALUES), unique=True, max_size=2)
STEPS = st.tuples(
    st.sampled_from(
        ["register", "register", "restart", "status", "beat", "deaf", "drain", "leave", "silence", "prune"]
    ),
    st.sampled_from(AGENTS),
    LISTS,
    LISTS,
    st.sampled_from([status.value for status in AgentStatus]),
    st.sampled_from([0.0, 0.7, 0.9]),
)
FILTERS = st.builds(
    AgentFilter,
    agent_type=st.sampled_from([None, AgentType.WORKER, AgentType.MONITOR]),
    status=st.sampled_from([None, *AgentStatus]),
    capabilities=LISTS.map(tuple),
    services=LISTS.map(tuple),
    labels=st.sampled_from([{}, {"zone": "x"}]),
    min_health=st.sampled_from([None, 0.0, 0.5, 1.0]),
    placeable=st.booleans(),
    departed=st.booleans(),
)


async def register(cell: Cell, agent_id: str, capabilities: list[str], services: list[str] = [], **options: Any) -> str:  # noqa: B006
    """Register an agent with all its facets."""
    agent_type = options.pop("agent_type", "worker")
    labels = {"zone": capabilities[0]} if capabilities else {}
    facets = [f"type:{agent_type}"]
    facets += [f"capability:{encode_facet(one)}" for one in capabilities]
    facets += [f"service:{encode_facet(one)}" for one in services]
    facets += [f"label:{encode_facet(f'{name}={value}')}" for name, value in labels.items()]
    return await cell.register(
        agent_id,
        facets=" ".join(facets),
        digest=" ".join(facets),
        capabilities=codec.encode(capabilities).decode(),
        services=codec.encode(services).decode(),
        labels=codec.encode(labels).decode(),
        agent_type=agent_type,
        interval_ms=1_000,
        **options,
    )


async def change(
    cell: Cell, step: tuple[str, str, list[str], list[str], str, float], incarnations: dict[str, int]
) -> None:
    """Do one step of a random history."""
    kind, agent_id, capabilities, services, status, load = step
    if kind in {"register", "restart"}:
        incarnations[agent_id] += kind == "restart"
        options = {"agent_type": "monitor" if services else "worker", "incarnation": f"i{incarnations[agent_id]}"}
        await register(cell, agent_id, capabilities, services, **options)
    elif kind == "status":
        await cell.change_status(agent_id, status, incarnation="", cpu=load)
    elif kind == "beat":
        await cell.heartbeat(agent_id, incarnation="", cpu=load, memory=load)
    elif kind == "deaf":
        entry = await cell.append("in:beats", "agent.heartbeat")
        await cell.run(cell.scripts.heartbeat([Heartbeat(entry, "", agent_id, "", None, load > 0, False, {})]))
    elif kind == "drain":
        entry = await cell.append("in:control:registry")
        imposes = {0.0: "", 0.7: "draining", 0.9: "maintenance"}[load]
        await cell.run(cell.scripts.drain([DrainRequest(entry, "", agent_id, imposes)]))
    elif kind == "leave":
        await cell.deregister(agent_id, incarnation="")
    elif kind == "silence":
        for _ in range(int(load * 4)):
            cell.now += 1_000
            await cell.run(cell.scripts.tick_liveness())
    else:
        entry = await cell.append("in:control:registry")
        await cell.run(cell.scripts.prune([Pruning(entry, "", 0)]))


def meets(agent: AgentRecord, wanted: AgentFilter, active: set[str]) -> bool:
    """Return True if a record meets a filter."""
    is_shown = wanted.departed or wanted.status is AgentStatus.INACTIVE or agent.status is not AgentStatus.INACTIVE
    return (
        (is_shown if not wanted.min_health else agent.status is not AgentStatus.INACTIVE)
        and wanted.agent_type in {None, agent.agent_type}
        and wanted.status in {None, agent.status}
        and set(wanted.capabilities) <= set(agent.capabilities)
        and set(wanted.services) <= set(agent.services)
        and wanted.labels.items() <= agent.labels.items()
        and (wanted.min_health or 0) <= agent.health_score
        and (not wanted.placeable or agent.agent_id in active)
    )


def rank(agent: AgentRecord) -> tuple[float, str]:
    """Return the place of an agent in the order of discovery."""
    return (1.0 if agent.status is AgentStatus.INACTIVE else -agent.health_score), agent.agent_id


async def pages(cell: Cell, wanted: AgentFilter, limit: int) -> list[AgentRecord]:
    """Page through all that is found."""
    found: list[AgentRecord] = []
    cursor = None
    while True:
        page = await queries.discover_agents(cell.redis, cell.keys, wanted, limit=limit, cursor=cursor)
        assert len(page.agents) <= limit
        found += page.agents
        cursor = page.next
        if cursor is None:
            return found


def with_cell(server: EmbeddedServer, work: Callable[[Cell], Awaitable[None]]) -> None:
    """Run one example of a property in a cell of its own, on the real server."""

    async def run() -> None:
        redis = connect_worker(server.url, Settings())
        await redis.flushall()
        cell = Cell(redis, Settings(namespace="discovery"))
        await cell.begin()
        try:
            await work(cell)
        finally:
            await redis.aclose()

    asyncio.run(run())


@pytest.mark.guarantee("discovery")
@LITTLE
@given(
    history=st.lists(STEPS, min_size=8, max_size=30),
    wanted=st.lists(FILTERS, min_size=3, max_size=3),
    walks=st.booleans(),
)
def test_what_is_found_is_what_the_records_say(
    valkey_server: EmbeddedServer, history: list[Any], wanted: list[AgentFilter], walks: bool
) -> None:
    """After any history every index is exact, and every filter finds the agents that meet it, in order.

    Through re-registrations with other properties, new processes, statuses, silence, departure and removal; from the
    intersection of the sets, or (``walks``) from the order by health.
    """

    async def work(cell: Cell) -> None:
        incarnations = dict.fromkeys(AGENTS, 1)
        for step in history:
            await change(cell, step, incarnations)
        await assert_ledger(cell.redis, cell.keys)
        records = await queries.list_agents(cell.redis, cell.keys)
        active = {raw.decode() for raw in await cell.redis.smembers(cell.keys.of("agents:active"))}
        assert active == {one.agent_id for one in records if one.status is AgentStatus.ACTIVE and not one.deaf}
        stats = await queries.get_registry_stats(cell.redis, cell.keys)
        assert stats.total == len(records)
        assert {name: count for name, count in stats.by_status.items() if count} == Counter(
            one.status for one in records
        )
        assert {name: count for name, count in stats.by_type.items() if count} == Counter(
            one.agent_type for one in records
        )
        assert stats.services == len({name for one in records for name in one.services})
        assert stats.capabilities == len({name for one in records for name in one.capabilities})
        for one in [AgentFilter(), *wanted]:
            expected = sorted((agent for agent in records if meets(agent, one, active)), key=rank)
            with patch.multiple(discovery, SMALL=-1 if walks else 1_000, MOST=3):
                found = await pages(cell, one, limit=2)
            assert [agent.agent_id for agent in found] == [agent.agent_id for agent in expected], one

    with_cell(valkey_server, work)


@pytest.mark.guarantee("discovery")
@LITTLE
@given(
    changes=st.lists(st.lists(STEPS, max_size=3), min_size=6, max_size=6), limit=st.integers(1, 3), walks=st.booleans()
)
def test_an_agent_that_does_not_change_is_in_exactly_one_page(
    valkey_server: EmbeddedServer, changes: list[list[Any]], limit: int, walks: bool
) -> None:
    """⚠ Between two pages others come, leave, turn stale and change their health, also those beside the cursor."""
    still = {f"{agent_id}.still": load for agent_id, load in zip(AGENTS, [0.0, 0.7, 0.9] * 2, strict=True)}

    async def work(cell: Cell) -> None:
        incarnations = dict.fromkeys(AGENTS, 1)
        for agent_id, load in still.items():
            await register(cell, agent_id, ["x"], cpu=0.0)
            await cell.heartbeat(agent_id, cpu=load)
        for agent_id in AGENTS:
            await register(cell, agent_id, ["x"])
        found: list[str] = []
        cursor, turn = None, iter(changes)
        with patch.multiple(discovery, SMALL=-1 if walks else 1_000, MOST=3):
            while True:
                page = await queries.discover_agents(
                    cell.redis, cell.keys, AgentFilter(capabilities=("x",)), limit=limit, cursor=cursor
                )
                found += [agent.agent_id for agent in page.agents]
                cursor = page.next
                if cursor is None:
                    break
                for step in next(turn, []):
                    if step[0] not in {"silence", "prune"}:  # with these, the others would change too
                        await change(cell, step, incarnations)
        assert sorted(agent_id for agent_id in found if agent_id in still) == sorted(still)

    with_cell(valkey_server, work)


async def test_the_healthiest_come_first_and_those_that_left_last(cell: Cell) -> None:
    """Equals by id; agents that left only if they are wanted."""
    for agent_id, cpu in {"b": 0.0, "a": 0.0, "hot": 0.9, "gone": 0.0}.items():
        await register(cell, agent_id, ["x"])
        await cell.heartbeat(agent_id, cpu=cpu)
    await cell.deregister("gone")
    everyone, present = AgentFilter(departed=True), AgentFilter()
    assert [agent.agent_id for agent in await pages(cell, everyone, 2)] == ["a", "b", "hot", "gone"]
    assert [agent.agent_id for agent in await pages(cell, present, 2)] == ["a", "b", "hot"]
    left = AgentFilter(status=AgentStatus.INACTIVE)
    assert [agent.agent_id for agent in await pages(cell, left, 2)] == ["gone"]
    healthy = msgspec.structs.replace(everyone, min_health=0.8)
    assert [agent.agent_id for agent in await pages(cell, healthy, 2)] == ["a", "b"]


@pytest.mark.parametrize("cursor", ["", "0", "1-1", "1.2.3:a", "x:a", "-0.500:"])
async def test_a_cursor_of_another_list_is_refused(cell: Cell, cursor: str) -> None:
    """With what to do."""
    with pytest.raises(CursorInvalid, match="leave it out to start at the beginning"):
        await queries.discover_agents(cell.redis, cell.keys, AgentFilter(), cursor=cursor)


async def test_agents_of_an_earlier_version_are_found_after_a_tick(cell: Cell) -> None:
    """It did not keep the order by health: each tick adds some that are missing there."""
    for agent_id in ("a", "b", "gone"):
        await register(cell, agent_id, ["x"])
    await cell.deregister("gone")
    await cell.redis.delete(cell.keys.of("agents:health"))
    assert await pages(cell, AgentFilter(capabilities=("x",)), 9) == []
    await cell.run(cell.scripts.tick_liveness(2))
    await cell.run(cell.scripts.tick_liveness(2))
    assert [agent.agent_id for agent in await pages(cell, AgentFilter(departed=True), 9)] == ["a", "b", "gone"]
