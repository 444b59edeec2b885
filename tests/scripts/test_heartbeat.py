"""``heartbeat``: signs of life, and the health that follows from them."""

from __future__ import annotations

import pytest

from tests.scripts.cell import START, Cell
from workers.transitions import Heartbeat


async def tick(cell: Cell, ms: int) -> None:
    """Let the observed clock run by ``ms`` in steps that count in full."""
    for step in [2_000] * (ms // 2_000) + ([ms % 2_000] if ms % 2_000 else []):
        cell.now += step
        await cell.run(cell.scripts.tick_liveness())


@pytest.mark.on_fakeredis
async def test_a_beat_is_a_sign_of_life(cell: Cell) -> None:
    """The agent is expected again within its patience from now on; metrics and leases are recorded."""
    await cell.register(interval_ms=5_000)
    await tick(cell, 4_000)

    assert await cell.heartbeat(leases=3, cpu=0.25, active_connections=7.0, caller="c1") == "OK"

    agent = await cell.agent()
    assert agent.load_metrics == {"cpu": 0.25, "active_connections": 7.0}
    assert (agent.leases, agent.last_heartbeat, agent.rev) == (3, START + 4_000, 1)
    assert await cell.redis.zscore(cell.keys.of("agents:expiry"), "a1") == START + 19_000
    assert await cell.last_answer() == "ok"
    assert await cell.is_consumed("in:beats")


async def test_a_beat_without_metrics_keeps_those_before(cell: Cell) -> None:
    """Metrics and the number of leases are merged into what was told before."""
    await cell.register()
    await cell.heartbeat(leases=2, cpu=0.5)
    await cell.heartbeat()

    agent = await cell.agent()
    assert (agent.load_metrics, agent.leases) == ({"cpu": 0.5}, 2)


async def test_an_unknown_agent_is_told_to_register(cell: Cell) -> None:
    """A heartbeat of nobody makes no record; the agent is answered under its own id when it gave no caller."""
    assert await cell.heartbeat("ghost") == "UNKNOWN"
    assert await cell.last_answer("ghost") == "unknown_agent"
    assert not await cell.redis.exists(cell.keys.agent("ghost"))
    assert await cell.is_consumed("in:beats")


async def test_an_agent_that_left_has_to_register_again(cell: Cell) -> None:
    """A heartbeat does not bring back who deregistered."""
    await cell.register()
    await cell.deregister()
    assert await cell.heartbeat(caller="c1") == "UNKNOWN"
    assert await cell.last_answer() == "unknown_agent"


async def test_a_beat_of_a_replaced_process_is_answered_superseded(cell: Cell) -> None:
    """A zombie's beats keep nobody alive and tell it to stop."""
    await cell.register(incarnation="i1")
    await cell.register(incarnation="i2")
    before = await cell.dump()

    assert await cell.heartbeat(incarnation="i1") == "SUPERSEDED"

    assert await cell.last_answer("a1") == "superseded"
    assert await cell.dump() == before


async def test_a_beat_ahead_of_its_registration_is_not_superseded(cell: Cell) -> None:
    """A new process whose heartbeat is handled before its registration is asked to register, not told to stop."""
    await cell.register(incarnation="i1")
    assert await cell.heartbeat(incarnation="i2") == "UNKNOWN"
    assert await cell.last_answer("a1") == "unknown_agent"
    assert await cell.register(incarnation="i2") == "REGISTERED"
    assert await cell.heartbeat(incarnation="i2") == "OK"


async def test_a_caller_without_incarnation_may_beat(cell: Cell) -> None:
    """A shell script that knows no incarnation keeps its agent alive."""
    await cell.register()
    assert await cell.heartbeat(incarnation="") == "OK"


async def test_the_same_beat_twice_counts_once(cell: Cell) -> None:
    """A script that ran twice for one entry has one effect."""
    await cell.register(interval_ms=5_000)
    await cell.heartbeat(cpu=0.9)
    before = await cell.dump()
    latest = await cell.redis.hget(cell.keys.agent("a1"), "beat_id")
    assert latest is not None

    again = cell.scripts.heartbeat(
        [Heartbeat(latest.decode(), "", "a1", "i1", None, False, False, {"metric:cpu": 0.1})]
    )
    assert await cell.word(again) == "GONE"
    assert await cell.dump() == before


async def test_a_stale_agent_comes_back_with_a_beat(cell: Cell) -> None:
    """A heartbeat after the silence makes it placeable again, with a higher rev; its term rose when it was given up."""
    await cell.register(interval_ms=5_000)
    await tick(cell, 16_000)
    lost = await cell.agent()
    assert (lost.status, lost.health_score) == ("stale", 0.0)

    assert await cell.heartbeat() == "OK"

    agent = await cell.agent()
    assert (agent.status, agent.term) == ("active", 2)
    assert agent.rev == lost.rev + 1
    assert agent.health_score == 1.0, "what it missed while it was away is not held against it"
    assert await cell.redis.sismember(cell.keys.of("agents:active"), "a1")
    assert await cell.redis.zcard(cell.keys.of("agents:departed")) == 0
    assert (await cell.logged("agents"))[-2:] == ["agent.lost", "agent.returned"]
    answer = (await cell.stream("replies:a1"))[-1]
    assert (answer["ok"], answer["data"]) == ("1", '{"returned":true}'), "it learns that it was lost"
    assert await cell.heartbeat() == "OK"
    assert (await cell.stream("replies:a1"))[-1] == answer, "once"


async def test_a_registration_that_brings_a_stale_agent_back_says_so(cell: Cell) -> None:
    """As after an outage of its network, when it registers before its next heartbeat. Any other is answered plainly."""
    await cell.register(interval_ms=5_000, caller="c1")
    await tick(cell, 16_000)
    for _ in range(2):
        await cell.register(interval_ms=5_000, caller="c1")
    await tick(cell, 16_000)
    assert (await cell.agent()).status == "stale"
    await cell.register(interval_ms=5_000, caller="c1", incarnation="i2")
    answers = await cell.stream("replies:c1")
    assert [(one["ok"], one.get("data", "")) for one in answers] == [
        ("1", ""), ("1", '{"returned":true}'), ("1", ""), ("1", ""),
    ]  # fmt: skip


@pytest.mark.parametrize("returns_by", ["heartbeat", "registration"])
async def test_a_stale_agent_comes_back_as_what_it_was(cell: Cell, returns_by: str) -> None:
    """One that was drained before it fell silent is draining when it is back: nobody has resumed it."""
    await cell.register(interval_ms=5_000)
    await cell.change_status(status="draining")
    await tick(cell, 16_000)
    assert (await cell.agent()).status == "stale"

    await (cell.heartbeat() if returns_by == "heartbeat" else cell.register(interval_ms=5_000))

    assert (await cell.agent()).status == "draining"
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


@pytest.mark.parametrize("status", ["busy", "maintenance", "error", "draining"])
async def test_a_beat_never_overrides_a_status(cell: Cell, status: str) -> None:
    """What an agent or an operator has set stays until someone sets it otherwise."""
    await cell.register(interval_ms=5_000)
    await cell.change_status(status=status)
    await cell.heartbeat()

    agent = await cell.agent()
    assert agent.status == status
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0


async def test_rev_rises_when_health_moves_by_five_hundredths(cell: Cell) -> None:
    """The load penalty moves health by 0.1: stored, rev raised, logged. A load that moves nothing raises nothing."""
    await cell.register(interval_ms=5_000)
    await cell.heartbeat(cpu=0.5, memory=0.5)
    calm = await cell.agent()
    await cell.heartbeat(cpu=0.7, memory=0.7)
    warm = await cell.agent()
    await cell.heartbeat(cpu=0.75, memory=0.75)
    same = await cell.agent()

    assert (calm.rev, calm.health_score) == (1, 1.0)
    assert (warm.rev, warm.health_score) == (2, 0.9)
    assert same.rev == 2
    assert await cell.logged("agents") == ["agent.registered", "agent.health_moved"]


@pytest.mark.parametrize(("load", "health"), [(0.6, 1.0), (0.61, 0.9), (0.8, 0.9), (0.81, 0.7)])
async def test_a_load_costs_health_above_its_bounds(cell: Cell, load: float, health: float) -> None:
    """Above 0.6 a tenth, above 0.8 three; not at them."""
    await cell.register(interval_ms=5_000)
    await cell.heartbeat(cpu=load, memory=load)
    assert (await cell.agent()).health_score == health


async def test_a_beat_on_its_way_costs_no_health(cell: Cell) -> None:
    """An agent that beats on time keeps health 1 and its rev, also just after each heartbeat was due."""
    await cell.register(interval_ms=2_000)
    for _ in range(15):
        await tick(cell, 1_900)
        await tick(cell, 200)
        agent = await cell.agent()
        assert agent.health_score > 0.95
        await cell.heartbeat()

    agent = await cell.agent()
    assert (agent.rev, agent.health_score) == (1, 1.0)
    beats = await cell.redis.hget(cell.keys.agent("a1"), "beats")
    assert len(beats.split(b",")) == 10


async def test_a_large_batch_with_a_broken_record(cell: Cell) -> None:
    """⚠ 256 heartbeats in one call; the one whose record is of a wrong type fails alone and is not consumed."""
    names = [f"a{n}" for n in range(255)]
    await cell.run(cell.scripts.register([await cell.registration(name) for name in names]))
    await cell.redis.set(cell.keys.agent("bad"), "x")
    metrics = {f"metric:m{n}": 0.5 for n in range(10)}
    beats = [
        Heartbeat(await cell.append("in:beats"), "", name, "i1", 1, False, False, metrics) for name in ["bad", *names]
    ]

    words = await cell.run(cell.scripts.heartbeat(beats))

    assert words[1:] == ["OK"] * 255
    assert words[0].startswith("ERROR ")
    assert await cell.left("in:beats") == [beats[0].entry]
    await cell.redis.delete(cell.keys.agent("bad"))
