"""What distributors have learned is shared in a log; ``test_capped_streams`` checks that it is capped by bytes too."""

from __future__ import annotations

from typing import Any

import msgspec

from coord import queries
from tests.scripts.cell import Cell
from workers.transitions import EjectionNotice


async def test_an_entry_names_its_process(cell: Cell) -> None:
    """The data is stored as it was given, and nothing else changes."""
    assert await cell.word(cell.scripts.learn("d1", b'[[["a1","t",[1]]]]')) == "OK"
    (entry,) = await cell.stream("log:learned")
    assert entry == {"type": "agents.learned", "by": "d1", "data": '[[["a1","t",[1]]]]'}


async def test_the_log_is_capped_by_entries(cell: Cell) -> None:
    """The oldest entries are trimmed, whatever their size."""
    cell.change_settings(log_entries=100)
    for n in range(400):
        await cell.run(cell.scripts.learn("d1", b"%d" % n))
    entries = await cell.stream("log:learned")
    assert 100 <= len(entries) <= 200
    assert entries[-1]["data"] == "399"


def notice(agent_id: str = "a1", task_type: str = "t", ms: int = 30_000, in_a_row: int = 1) -> EjectionNotice:
    """An ejection of an agent."""
    return EjectionNotice(agent_id, task_type, ms, "0.95", "0.02", in_a_row)


async def ejected(cell: Cell, agent_id: str = "a1") -> list[dict[str, Any]]:
    """The ejections in an agent's record."""
    raw = await cell.redis.hget(cell.keys.agent(agent_id), "ejected")
    found: list[dict[str, Any]] = msgspec.json.decode(raw) if raw else []
    return found


async def eject(cell: Cell, *notices: EjectionNotice) -> list[str]:
    """The words for some ejections."""
    words: list[str] = await cell.run(cell.scripts.learn("d1", b"", notices))
    return words[1:]


async def test_an_ejection_is_recorded_and_logged(cell: Cell) -> None:
    """In the agent's record, where restarted distributors and explanations find it; nothing goes to ``log:learned``."""
    await cell.register("a1")
    assert await eject(cell, notice()) == ["OK"]
    assert await ejected(cell) == [
        {
            "task_type": "t",
            "until": cell.now + 30_000,
            "for_ms": 30_000,
            "failure_rate": 0.95,
            "others_rate": 0.02,
            "in_a_row": 1,
        }
    ]
    event = (await cell.stream("log:agents"))[-1]
    assert event["type"] == "agent.ejected"
    assert (event["agent_id"], event["task_type"], event["for_ms"]) == ("a1", "t", "30000")
    assert await cell.stream("log:learned") == []
    fleet = await queries.get_fleet(cell.redis, cell.keys)
    assert fleet["a1"].term == 1


async def test_what_two_distributors_decide_is_recorded_once(cell: Cell) -> None:
    """The first one counts, and only one event says so; the next ejection follows when it is over."""
    await cell.register("a1")
    assert await eject(cell, notice(), notice(ms=29_000)) == ["OK", "KNOWN"]
    assert [event["type"] for event in await cell.stream("log:agents")].count("agent.ejected") == 1
    cell.now += 30_000
    assert await eject(cell, notice(ms=60_000, in_a_row=2)) == ["OK"]
    (found,) = await ejected(cell)
    assert (found["for_ms"], found["in_a_row"]) == (60_000, 2)


async def test_types_are_apart_and_an_early_end_is_recorded(cell: Cell) -> None:
    """Other types stay; what is over is dropped; an agent without ejections has no such field."""
    await cell.register("a1")
    assert await eject(cell, notice(), notice(task_type="u", ms=90_000)) == ["OK", "OK"]
    assert await eject(cell, notice(ms=0), notice(ms=0)) == ["OK", "KNOWN"]
    assert [one["task_type"] for one in await ejected(cell)] == ["u"]
    assert (await cell.stream("log:agents"))[-1]["type"] == "agent.readmitted"
    assert await eject(cell, notice(task_type="u", ms=0)) == ["OK"]
    assert not await cell.redis.hexists(cell.keys.agent("a1"), "ejected")


async def test_ejections_are_bounded_and_of_known_agents(cell: Cell) -> None:
    """An agent that is gone gets no record back; the newest types of one agent are kept; a broken field is replaced."""
    await cell.register("a1")
    await cell.redis.hset(cell.keys.agent("a1"), "ejected", "what?")
    words = await eject(cell, notice("gone"), *(notice(task_type=f"t{n}") for n in range(30)))
    assert words == ["UNKNOWN", *["OK"] * 30]
    assert not await cell.redis.exists(cell.keys.agent("gone"))
    assert [one["task_type"] for one in await ejected(cell)] == [f"t{n}" for n in range(29, 9, -1)]


async def test_health_is_lower_during_an_ejection(cell: Cell) -> None:
    """A little, so that the agent may still get other types of task; a new process starts without it."""
    await cell.register("a1", interval_ms=5_000)
    await eject(cell, notice())
    await cell.heartbeat("a1")
    assert await cell.redis.hget(cell.keys.agent("a1"), "health_score") == b"0.900"
    cell.now += 5_000
    await cell.register("a1", incarnation="i2", interval_ms=5_000)
    assert await ejected(cell) == []
    assert await cell.redis.hget(cell.keys.agent("a1"), "health_score") == b"1.000"


async def test_health_recovers_when_the_ejection_is_over(cell: Cell) -> None:
    """With the next heartbeat."""
    await cell.register("a1")
    await eject(cell, notice())
    for passed, health in ((0, b"0.900"), (29_999, b"0.900"), (1, b"1.000")):
        cell.now += passed
        await cell.heartbeat("a1")
        assert await cell.redis.hget(cell.keys.agent("a1"), "health_score") == health


async def test_readers_see_an_ejection_until_it_is_over(cell: Cell) -> None:
    """One that seems to end far ahead is over: the server's clock was set back. The clock of tests is years ahead."""
    await cell.register("a1")
    await eject(cell, notice())
    assert (await queries.get_fleet(cell.redis, cell.keys))["a1"].ejected == ()
    await eject(cell, notice(ms=0))
    cell.scripts.now = None
    await eject(cell, notice())
    (record,) = await queries.get_agents(cell.redis, cell.keys, ["a1"])
    (fleet,) = (await queries.get_fleet(cell.redis, cell.keys)).values()
    pieces = [agents async for agents in queries.scan_fleet(cell.redis, cell.keys)]
    assert record is not None
    for found in (record, fleet, pieces[0][0]):
        (one,) = found.ejected
        assert (one.task_type, one.for_ms, one.failure_rate, one.others_rate) == ("t", 30_000, 0.95, 0.02)
    assert 0 < fleet.ejected[0].until - fleet.read_at <= 30_000
    await cell.redis.hset(cell.keys.agent("a1"), "ejected", "what?")
    assert (await queries.get_fleet(cell.redis, cell.keys))["a1"].ejected == ()
