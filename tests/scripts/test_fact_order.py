"""Facts of one agent that several registries handle: the last one of each kind counts, whichever is quicker."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as effort
from hypothesis import strategies as st

from coord.embedded import EmbeddedServer
from coord.models.agents import AgentRecord
from tests.ledger import assert_ledger
from tests.scripts.cell import Cell
from tests.scripts.test_discovery import with_cell
from workers.transitions import Call, Departure, Heartbeat, StatusChange

FACTS = st.lists(
    st.one_of(
        st.tuples(st.just("register"), st.sampled_from(["x", "y", "z"])),
        st.tuples(st.just("status"), st.sampled_from(["active", "busy", "maintenance", "error"])),
        st.tuples(st.just("beat"), st.sampled_from([0.1, 0.5, 0.9])),
    ),
    min_size=2,
    max_size=7,
)


async def handled(cell: Cell, facts: list[tuple[str, Any]], order: list[int]) -> AgentRecord:
    """Append the facts in their order, let registries handle them in another one; the record."""
    await cell.register(capabilities='["x"]', facets="capability:x")
    calls: list[Call[Any]] = []
    for kind, value in facts:
        cell.now += 1
        if kind == "register":
            one = await cell.registration(capabilities=f'["{value}"]', facets=f"capability:{value}", digest=value)
            calls.append(cell.scripts.register([one]))
        elif kind == "status":
            entry = await cell.append("in:registry")
            calls.append(cell.scripts.change_status([StatusChange(entry, "", "a1", "i1", value, {})]))
        else:
            entry = await cell.append("in:beats")
            calls.append(
                cell.scripts.heartbeat([Heartbeat(entry, "", "a1", "i1", None, False, False, {"metric:cpu": value})])
            )
    for place in order:
        await cell.run(calls[place])
    await assert_ledger(cell.redis, cell.keys)
    return await cell.agent()


@pytest.mark.guarantee("latest-facts")
@effort(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(facts=FACTS, data=st.data())
def test_the_latest_fact_of_each_kind_counts_in_any_order(
    valkey_server: EmbeddedServer, facts: list[tuple[str, Any]], data: st.DataObject
) -> None:
    """⚠ What an agent declares, its status and its load are those of its last facts, and the indexes follow."""
    order = data.draw(st.permutations(range(len(facts))))
    found: list[AgentRecord] = []

    async def in_order(cell: Cell) -> None:
        found.append(await handled(cell, facts, list(range(len(facts)))))

    async def mixed(cell: Cell) -> None:
        found.append(await handled(cell, facts, order))

    with_cell(valkey_server, in_order)
    with_cell(valkey_server, mixed)
    first, second = found
    assert (first.capabilities, first.status, first.load_metrics) == (
        second.capabilities,
        second.status,
        second.load_metrics,
    )


@pytest.mark.guarantee("latest-facts")
async def test_an_earlier_status_counts_after_a_refresh_and_an_earlier_departure_does_not(cell: Cell) -> None:
    """⚠ Another registry was quicker with the refresh: the agent is busy as it said, and it has not left."""
    await cell.register()
    entries = [await cell.append("in:registry") for _ in range(3)]
    refresh = await cell.registration()
    await cell.run(cell.scripts.register([refresh]))
    busy, gone, inactive = entries
    assert await cell.word(cell.scripts.change_status([StatusChange(busy, "", "a1", "i1", "busy", {})])) == "OK"
    assert await cell.word(cell.scripts.deregister([Departure(gone, "", "a1", "i1")])) == "STALE"
    leaves = StatusChange(inactive, "", "a1", "i1", "inactive", {})
    assert await cell.word(cell.scripts.change_status([leaves])) == "STALE"
    assert (await cell.agent()).status == "busy"
