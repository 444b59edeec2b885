"""``tick_liveness``: the observed clock, and whom it gives up."""

from __future__ import annotations

import pytest

from coord.models.tasks import Lane
from tests.scripts.cell import DAY, START, Cell
from workers.transitions import Departure, LivenessTick


async def tick_liveness(cell: Cell, after: int = 0, *, most: int = 256) -> LivenessTick:
    """Tick ``after`` ms later."""
    cell.now += after
    answer: LivenessTick = await cell.run(cell.scripts.tick_liveness(most))
    return answer


async def run_clock(cell: Cell, ms: int) -> None:
    """Let the observed clock run in steps that count in full."""
    for _ in range(ms // 2_000):
        await tick_liveness(cell, 2_000)


@pytest.mark.on_fakeredis
async def test_the_clock_advances_by_two_seconds_at_most(cell: Cell) -> None:
    """A tick adds the time since the last one, whoever made it, and never more than 2 s."""
    assert (await tick_liveness(cell)).observed == START
    assert (await tick_liveness(cell, 500)).observed == START + 500
    assert (await tick_liveness(cell, 3_600_000)).observed == START + 2_500
    assert (await tick_liveness(cell)).observed == START + 2_500


async def test_a_coordinator_that_was_away_kills_nobody(cell: Cell) -> None:
    """⚠ After an hour without any tick, one tick costs an agent 2 s of its patience, not an hour."""
    await cell.register(interval_ms=5_000)
    await tick_liveness(cell)
    assert (await tick_liveness(cell, 3_600_000)).stale == 0
    agent = await cell.agent()
    assert (agent.status, agent.health_score) == ("active", 1.0)


async def test_the_clock_begins_with_the_first_sign_of_life(cell: Cell) -> None:
    """An agent that registers before any tick has its patience from then on."""
    await cell.register(interval_ms=5_000)
    answer = await tick_liveness(cell, 3_600_000)
    assert (answer.observed, answer.stale) == (START + 2_000, 0)


async def test_the_clock_stands_while_older_beats_wait(cell: Cell) -> None:
    """⚠ While a sign of life from before the last tick is unread, nobody grows older; then the clock goes on."""
    await cell.register(interval_ms=5_000)
    await tick_liveness(cell)
    waiting = await cell.append("in:beats", at=cell.now - 1)
    for _ in range(20):
        answer = await tick_liveness(cell, 2_000)
        assert (answer.observed, answer.stale) == (START, 0)

    await cell.redis.xdel(cell.keys.of("in:beats"), waiting)
    assert (await tick_liveness(cell, 1_000)).observed == START + 2_000  # the time that it waited, 2 s of it at most


async def test_between_ticks_the_clock_advances_by_two_seconds_at_most(cell: Cell) -> None:
    """⚠ A sign of life long after the last tick is dated by what the clock may yet reach, not by the server's."""
    await tick_liveness(cell)
    cell.now += 3_600_000
    await cell.register(interval_ms=5_000)
    assert await cell.redis.zscore(cell.keys.of("agents:expiry"), "a1") == START + 2_000 + 15_000


async def test_the_clock_never_passes_a_sign_of_life_that_waits(cell: Cell) -> None:
    """⚠ What waited because no registry was there to read it must not find its agent given up already."""
    await tick_liveness(cell)
    await cell.append("in:registry", at=cell.now + 400)
    assert (await tick_liveness(cell, 1_000)).observed == START + 400
    assert (await tick_liveness(cell, 1_000)).observed == START + 400, "and it still waits"


async def test_three_missed_beats_and_an_agent_is_stale(cell: Cell) -> None:
    """It leaves ``agents:active``, its term ends, its tasks are announced as lost, its data stays."""
    await cell.register(interval_ms=5_000)
    await cell.assign()
    await run_clock(cell, 14_000)
    agent = await cell.agent()
    assert (agent.status, agent.term) == ("active", 1)
    rev = agent.rev

    answer = await tick_liveness(cell, 1_000)
    assert (answer.stale, answer.lost) == (1, ("a1",))

    agent = await cell.agent()
    assert (agent.status, agent.term, agent.health_score, agent.load) == ("stale", 2, 0.0, 1)
    assert agent.rev == rev + 1
    assert await cell.redis.zscore(cell.keys.of("agents:departed"), "a1") == cell.now
    assert await cell.redis.scard(cell.keys.of("agents:active")) == 0
    assert [one["data"] for one in await cell.stream("in:losses")] == ['{"agent_id":"a1","term":1}']
    assert (await cell.logged("agents"))[-1] == "agent.lost"
    assert (await tick_liveness(cell)).stale == 0


async def test_without_an_interval_an_agent_has_five_minutes(cell: Cell) -> None:
    """Silence of 300 s ends an agent that declared no interval; its health does not decay before."""
    await cell.register()
    await run_clock(cell, 298_000)
    agent = await cell.agent()
    assert (agent.status, agent.health_score, agent.rev) == ("active", 1.0, 1)
    assert (await tick_liveness(cell, 2_000)).stale == 1


async def test_health_decays_between_beats(cell: Cell) -> None:
    """The tick stores a health that moved by 0.05 and raises rev; one that moved less raises nothing."""
    await cell.register(interval_ms=10_000)
    await run_clock(cell, 10_000)
    agent = await cell.agent()
    assert (agent.rev, agent.health_score) == (1, 1.0)

    await tick_liveness(cell, 1_900)
    agent = await cell.agent()
    assert agent.rev == 1

    await tick_liveness(cell, 100)
    agent = await cell.agent()
    assert (agent.rev, agent.health_score) == (2, 0.95)
    assert (await cell.logged("agents"))[-1] == "agent.health_moved"


async def test_a_loss_is_announced_until_nothing_is_in_flight(cell: Cell) -> None:
    """Should the announcement get lost, the tick makes it again every five seconds, naming the term that ended."""
    await cell.register()
    await cell.assign()
    await cell.deregister()
    assert (await tick_liveness(cell, 4_000)).repeated == 0
    assert (await tick_liveness(cell, 1_000)).repeated == 1
    assert (await tick_liveness(cell, 1_000)).repeated == 0
    assert (await tick_liveness(cell, 4_000)).repeated == 1, "and again"
    data = [one["data"] for one in await cell.stream("in:losses")]
    assert data == ['{"agent_id":"a1","term":1}'] * 3

    assert await cell.reclaim() == "OK"
    assert (await tick_liveness(cell, 10_000)).repeated == 0
    assert await cell.redis.zcard(cell.keys.of("agents:lost")) == 0


async def test_a_loss_is_not_announced_of_an_agent_that_is_back_at_work(cell: Cell) -> None:
    """Once the old term's tasks are taken back, those of the new term are nobody's loss."""
    await cell.register(incarnation="i1")
    await cell.assign("t1")
    await cell.register(incarnation="i2")
    await cell.assign("t2")
    assert await cell.reclaim(term=1) == "OK"
    assert await cell.load() == 1
    assert (await tick_liveness(cell, 60_000)).repeated == 0


@pytest.mark.parametrize(("forget_after_ms", "kept_ms"), [(3_600_000, 3_600_000), (0, 0), (60 * DAY, 30 * DAY)])
async def test_an_agent_may_leave_to_be_forgotten_sooner(cell: Cell, forget_after_ms: int, kept_ms: int) -> None:
    """One with a generated id does not come back; never later than others."""
    await cell.register()
    leaving = Departure(await cell.append("in:registry", "agent.deregistered"), "", "a1", "i1", forget_after_ms)
    assert await cell.word(cell.scripts.deregister([leaving])) == "OK"
    if kept_ms:
        assert (await tick_liveness(cell, kept_ms - 1)).forgotten == 0
    assert (await tick_liveness(cell, 1)).forgotten == 1
    assert not await cell.redis.exists(cell.keys.agent("a1"))


@pytest.mark.guarantee("requirements-at-dispatch")
async def test_a_plan_on_an_agent_that_was_removed_does_not_fit_the_next_one(cell: Cell) -> None:
    """⚠ A distributor froze meanwhile. The agent that registers with the same id may lack what the task requires."""
    await cell.register()
    await cell.submit()
    for _ in range(2):
        leaving = Departure(await cell.append("in:registry", "agent.deregistered"), "", "a1", "i1", 0)
        assert await cell.word(cell.scripts.deregister([leaving])) == "OK"
        assert (await tick_liveness(cell, 1)).forgotten == 1
        await cell.register(digest="d2", facets="type:worker")
    assert [await cell.dispatch(rev=rev) for rev in (1, 2, 3, 4)] == ["CHANGED"] * 4
    assert await cell.dispatch(rev=5) == "ASSIGNED"


async def test_departed_agents_are_forgotten(cell: Cell) -> None:
    """After 30 days nothing is left of an agent: record, index, every lane of its inbox."""
    await cell.register(interval_ms=5_000)
    for lane in Lane:
        assert await cell.deliver(f"m-{lane}", lane=lane) == "DELIVERED"
    await cell.deregister()
    assert (await tick_liveness(cell, 30 * DAY - 1)).forgotten == 0

    assert (await tick_liveness(cell, 1)).forgotten == 1

    assert not await cell.redis.exists(cell.keys.agent("a1"))
    left = await cell.dump()
    assert not [name for name in left if name.startswith(("agent:", "agents:", "inbox:"))]
    assert (await cell.logged("agents"))[-1] == "agent.forgotten"


@pytest.mark.guarantee("dead-agent")
async def test_a_registry_that_lags_does_not_stop_the_clock(cell: Cell) -> None:
    """⚠ Under load some heartbeat is always waiting: a dead agent is given up all the same, a little later."""
    await cell.register("a1", interval_ms=1_000)
    await tick_liveness(cell)
    waiting: list[str] = []
    lost_after = 0
    while not lost_after:
        cell.now += 500
        waiting.append(await cell.append("in:beats", "agent.heartbeat"))
        if len(waiting) > 2:  # each heartbeat waits for a second
            handled = waiting.pop(0)
            await cell.redis.xack(cell.keys.of("in:beats"), "registry", handled)
            await cell.redis.xdel(cell.keys.of("in:beats"), handled)
        if (await tick_liveness(cell)).stale:
            lost_after = cell.now - START
        assert cell.now - START < 60_000, "the clock stands still"
    assert 3_000 <= lost_after <= 5_500


@pytest.mark.guarantee("dead-agent")
async def test_a_clock_that_is_set_back_does_not_stop_the_clock(cell: Cell) -> None:
    """⚠ The server's time goes back by an hour: a dead agent is given up within its patience."""
    await cell.register("a1", interval_ms=1_000)
    await tick_liveness(cell)
    cell.now -= 3_600_000
    assert (await tick_liveness(cell)).stale == 0
    await run_clock(cell, 4_000)
    assert (await cell.agent()).status == "stale"


@pytest.mark.guarantee("live-records-stay")
async def test_an_agent_that_is_here_is_not_forgotten(cell: Cell) -> None:
    """⚠ The index of departed agents may name one that is back (a fail-over rewound it): its record says so."""
    await cell.register()
    await cell.redis.zadd(cell.keys.of("agents:departed"), {"a1": START - 60 * DAY})
    assert (await tick_liveness(cell)).forgotten == 0
    assert (await cell.agent()).status == "active"
    assert await cell.redis.zcard(cell.keys.of("agents:departed")) == 0


@pytest.mark.guarantee("live-records-stay")
async def test_an_agent_that_still_has_tasks_is_not_forgotten(cell: Cell) -> None:
    """⚠ Its loss is announced again instead, under its own term: without the record nobody could take them back."""
    await cell.register()
    await cell.assign()
    await cell.deregister()
    await cell.redis.xtrim(cell.keys.of("in:losses"), maxlen=0)
    await cell.redis.delete(cell.keys.of("agents:lost"))
    cell.now += 31 * DAY
    await tick_liveness(cell)
    assert await cell.redis.exists(cell.keys.agent("a1")) == 1
    await tick_liveness(cell)
    assert {one["data"] for one in await cell.stream("in:losses")} == {'{"agent_id":"a1","term":1}'}
    assert await cell.reclaim() == "OK"
    assert (await tick_liveness(cell)).forgotten == 1


async def test_many_are_handled_a_bounded_number_at_a_time(cell: Cell) -> None:
    """The tick takes ``most`` agents, the next one goes on."""
    await cell.run(cell.scripts.register([await cell.registration(f"a{n}", interval_ms=1_000) for n in range(30)]))
    await tick_liveness(cell)
    assert (await tick_liveness(cell, 2_000, most=20)).stale == 0
    assert (await tick_liveness(cell, 2_000, most=20)).stale == 20
    assert (await tick_liveness(cell, most=20)).stale == 10


async def test_ticking_twice_at_one_moment_changes_nothing(cell: Cell) -> None:
    """Any number of registries tick one clock."""
    await cell.register(interval_ms=5_000)
    await cell.assign()
    await run_clock(cell, 22_000)
    before = await cell.dump()
    await tick_liveness(cell)
    assert await cell.dump() == before


async def test_a_broken_record_does_not_stop_the_tick(cell: Cell) -> None:
    """⚠ An agent whose record is of a wrong type is passed over; the others turn stale and are counted."""
    await cell.run(cell.scripts.register([await cell.registration(f"a{n}", interval_ms=1_000) for n in range(3)]))
    await tick_liveness(cell)
    kept = await cell.redis.hgetall(cell.keys.agent("a1"))
    await cell.redis.set(cell.keys.agent("a1"), "x")
    await tick_liveness(cell, 2_000)
    assert (await tick_liveness(cell, 2_000)).stale == 2
    await cell.redis.delete(cell.keys.agent("a1"))
    await cell.redis.hset(cell.keys.agent("a1"), mapping=kept)


async def test_the_server_tells_the_time(cell: Cell) -> None:
    """Without a time from a test, scripts take the server's."""
    cell.scripts.now = None
    seconds, micros = await cell.redis.time()
    answer: LivenessTick = await cell.run(cell.scripts.tick_liveness())
    assert abs(answer.observed - (seconds * 1_000 + micros // 1_000)) < 60_000


@pytest.mark.on_fakeredis
async def test_reported_loads_are_shown_together_once_a_second(cell: Cell) -> None:
    """One event for all agents; a step of 5 % or another number of tasks is shown, a smaller change is not."""
    for agent_id in ("a1", "a2", "a3"):
        await cell.register(agent_id, interval_ms=5_000)
    await cell.heartbeat("a1", cpu=0.5, memory=0.25, active_connections=2, pending_tasks=1)
    await cell.heartbeat("a2")
    await tick_liveness(cell)
    at = cell.now
    assert await shown(cell) == {"a1": f"0.5 0.25 3 {at}", "a2": f"- - 0 {at}"}
    await cell.heartbeat("a1", cpu=0.56, memory=0.25, active_connections=2, pending_tasks=1)
    await tick_liveness(cell, 999)
    assert await shown(cell) == {}
    await cell.heartbeat("a1", cpu=0.54, memory=0.25, active_connections=2, pending_tasks=1)
    await tick_liveness(cell, 1)
    assert await shown(cell) == {"a1": f"0.56 0.25 3 {at}"}
    await cell.heartbeat("a1", cpu=0.54, memory=0.25, active_connections=2, pending_tasks=2)
    await cell.heartbeat("a2", cpu=0.01)
    await tick_liveness(cell, 1_000)
    assert {agent_id: report.rpartition(" ")[0] for agent_id, report in (await shown(cell)).items()} == {
        "a1": "0.54 0.25 4",
        "a2": "0.01 - 0",
    }


async def test_a_load_that_does_not_change_is_shown_again(cell: Cell) -> None:
    """With every second heartbeat: a view must tell an unchanged load from one that is no longer reported."""
    await cell.register(interval_ms=5_000)
    await cell.heartbeat(cpu=0.5)
    await tick_liveness(cell)
    await shown(cell)
    was_shown: list[bool] = []
    for _ in range(7):
        await cell.heartbeat(cpu=0.5)
        await tick_liveness(cell, 5_000)
        was_shown.append(bool(await shown(cell)))
    assert was_shown == [False, False, True, False, True, False, True]


async def test_one_event_shows_a_limited_number_of_reports(cell: Cell) -> None:
    """The rest follows a second later; an agent that was forgotten meanwhile is left out."""
    for agent_id in ("a1", "a2", "a3"):
        await cell.register(agent_id)
        await cell.heartbeat(agent_id, cpu=0.5)
    call = cell.scripts.tick_liveness()
    call.limits["reports"] = 2
    await cell.run(call)
    first = await shown(cell)
    assert len(first) == 2
    (left,) = {"a1", "a2", "a3"} - set(first)
    await cell.redis.delete(cell.keys.agent(next(iter(first))))
    cell.broken = True
    await tick_liveness(cell, 1_000)
    assert list(await shown(cell)) == [left]
    await cell.heartbeat(left, cpu=0.9)
    await cell.redis.hdel(cell.keys.agent(left), "shown")
    await tick_liveness(cell, 1_000)
    assert await shown(cell) == {}


async def shown(cell: Cell) -> dict[str, str]:
    """Return the reports in the only new event of ``log:reports`` by agent, and remove it; empty: there is none."""
    entries = await cell.stream("log:reports")
    await cell.redis.delete(cell.keys.of("log:reports"))
    if not entries:
        return {}
    (entry,) = entries
    assert entry["type"] == "agents.reported"
    words = entry["reports"].split()
    return {words[at]: " ".join(words[at + 1 : at + 5]) for at in range(0, len(words), 5)}
