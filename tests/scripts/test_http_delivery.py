"""``register`` and ``heartbeat`` of agents that speak only HTTP: one gets work once it polls, or has an endpoint."""

from __future__ import annotations

from typing import Any

import pytest

from tests.scripts.cell import Cell

INTERVAL = 5_000
#: Missed heartbeats, after which an agent that polls no longer gets nothing new.
PATIENCE = 3


async def register(cell: Cell, delivery: str, **options: Any) -> str:
    """Register a1 over HTTP, without an incarnation."""
    return await cell.register(incarnation="", interval_ms=INTERVAL, delivery=delivery, **options)


async def poll(cell: Cell) -> None:
    """Send the heartbeat of a poll."""
    assert await cell.heartbeat(incarnation="", polled=True) == "OK"


async def wait(cell: Cell, intervals: int, *, beats: bool) -> None:
    """Let the observed clock run, with or without heartbeats."""
    for _ in range(intervals):
        for _ in range(INTERVAL // 1_000):
            cell.now += 1_000
            await cell.run(cell.scripts.tick_liveness())
        if beats:
            assert await cell.heartbeat(incarnation="") == "OK"


async def is_placeable(cell: Cell) -> bool:
    """Return True if dispatch may give it work."""
    return bool(await cell.redis.sismember(cell.keys.of("agents:active"), "a1"))


async def is_pushed(cell: Cell) -> bool:
    """Return True if its tasks are pushed to it."""
    return bool(await cell.redis.sismember(cell.keys.of("agents:pushed"), "a1"))


async def test_an_agent_that_has_not_polled_is_listed_and_gets_nothing(cell: Cell) -> None:
    """⚠ It is active, deaf as its record says, and not placeable; a heartbeat alone changes nothing."""
    assert await register(cell, "poll") == "REGISTERED"
    await wait(cell, 1, beats=True)
    agent = await cell.agent()
    assert (agent.status, agent.deaf, agent.deaf_reason, agent.delivery) == ("active", True, "unpolled", "poll")
    assert agent.health_score == 1, "it is not ill"
    assert not await is_placeable(cell)


@pytest.mark.guarantee("http-agents-read")
async def test_the_first_poll_makes_it_placeable_and_the_end_of_polls_ends_it(cell: Cell) -> None:
    """⚠ Heartbeats without polls are not enough: after its patience it gets nothing new, until it polls again."""
    await register(cell, "poll")
    before = await cell.agent()
    await poll(cell)
    agent = await cell.agent()
    assert (agent.deaf, agent.deaf_reason, agent.rev) == (False, "", before.rev + 1)
    assert await is_placeable(cell)

    await wait(cell, PATIENCE - 1, beats=True)
    assert await is_placeable(cell)
    await wait(cell, 1, beats=True)
    assert not await is_placeable(cell)
    assert (await cell.stream("log:agents"))[-1]["reason"] == "unpolled"

    await poll(cell)
    assert await is_placeable(cell)
    assert await cell.logged("agents") == [
        "agent.registered", "agent.hears", "agent.deaf", "agent.hears",
    ]  # fmt: skip


async def test_what_it_has_not_acknowledged_goes_back_and_what_it_holds_stays(cell: Cell) -> None:
    """One that stops polling and sends heartbeats keeps the task that it works on; one that is silent loses it too."""
    await register(cell, "poll", capacity=5)
    await poll(cell)
    await cell.assign("t1", claimed=True)
    await cell.assign("t2", claimed=False)
    await wait(cell, PATIENCE, beats=True)
    await cell.run_alarms()
    assert (await cell.task("t1")).state == "assigned"
    assert (await cell.task("t2")).state == "scheduled"

    await wait(cell, PATIENCE, beats=False)
    agent = await cell.agent()
    assert agent.status == "stale"
    assert "agent.lost" in await cell.logged("agents")


async def test_an_endpoint_is_pushed_to_until_the_agent_polls(cell: Cell) -> None:
    """Registering again does not bring the pushes back while it polls; it does when it has stopped polling."""
    await register(cell, "push")
    agent = await cell.agent()
    assert (agent.deaf, agent.delivery) == (False, "push")
    assert await is_placeable(cell)
    assert await is_pushed(cell)

    await poll(cell)
    assert not await is_pushed(cell)
    assert (await cell.agent()).delivery == "poll"
    assert await register(cell, "push") == "REFRESHED"
    assert (await cell.agent()).delivery == "poll"

    await wait(cell, PATIENCE, beats=True)
    await register(cell, "push")
    agent = await cell.agent()
    assert (agent.delivery, agent.deaf) == ("push", False)
    assert await is_pushed(cell)
    assert await is_placeable(cell)


async def test_the_set_of_pushed_agents_follows_those_who_leave_and_come_back(cell: Cell) -> None:
    """It loses those that leave or become processes that read from Redis, and gets back those that return."""
    await register(cell, "push")
    await cell.deregister(incarnation="")
    assert not await is_pushed(cell)
    await register(cell, "push")
    assert await is_pushed(cell)
    await cell.register(incarnation="i1")
    assert not await is_pushed(cell)
    assert (await cell.agent()).delivery == ""


async def test_http_does_not_take_the_inbox_of_a_process_that_reads_it(cell: Cell) -> None:
    """A registration over HTTP updates what it declares, and a poll is a heartbeat; both leave its reading alone."""
    await cell.register(incarnation="i1", interval_ms=INTERVAL)
    await register(cell, "poll", capacity=7)
    await poll(cell)
    agent = await cell.agent()
    assert (agent.capacity, agent.delivery, agent.deaf) == (7, "", False)
    assert await is_placeable(cell)

    await cell.deregister(incarnation="i1")
    await register(cell, "poll")
    agent = await cell.agent()
    assert (agent.deaf_reason, agent.incarnation) == ("unpolled", "")
    assert await cell.heartbeat(incarnation="i1") == "SUPERSEDED"


async def test_a_stale_agent_returns_with_its_poll(cell: Cell) -> None:
    """A poll is a sign of life: it returns, placeable."""
    await register(cell, "poll")
    await poll(cell)
    await wait(cell, PATIENCE + 1, beats=False)
    assert (await cell.agent()).status == "stale"
    await poll(cell)
    assert (await cell.agent()).status == "active"
    assert await is_placeable(cell)
