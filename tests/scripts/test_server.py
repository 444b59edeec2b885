"""Scripts and the server: its memory, its forgetting of scripts, round trips of several calls."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.exceptions import NoScriptError, OutOfMemoryError, ResponseError

from tests.scripts.cell import Cell
from workers.transitions import Call, CancelRequest, DeadLetterEntry, LeaseLoss


@pytest.fixture
async def full(cell: Cell) -> AsyncIterator[Cell]:
    """A cell with one agent and tasks in several states, on a server that is then out of memory."""
    await cell.register(capacity=9)
    for name in ("t1", "t2", "t3"):
        await cell.assign(name)
    await cell.submit("t4", run_at=cell.now + 1)
    yield cell
    await cell.redis.config_set("maxmemory", "0")


async def fill(cell: Cell) -> None:
    """From here on the server is out of memory."""
    await cell.redis.config_set("maxmemory", "1")


async def test_a_full_server_drains(full: Cell) -> None:
    """⚠ Reports, losses, alarms, cancels and refusals go on without memory, or a full server never drains."""
    calls = [
        full.scripts.settle([await full.reported("completed", "t1", data=b"1", caller="a1")]),
        full.scripts.admit([await full.submission("t9")], {"p1": b"{}"}, nearly_full=True),
        full.scripts.reclaim([await full.loss(term=0)]),
    ]
    entry = await full.append("in:requests")
    await fill(full)
    for call, word in zip(calls, ["OK", "REFUSED", "OK"], strict=True):
        assert await full.word(call) == word
    assert await full.word(full.scripts.cancel([CancelRequest(entry, "t2", "c1", "")])) == "STOPPING"
    full.now += 10_000
    assert sorted(await full.run_alarms()) == ["CANCELLED", "QUEUED"]
    assert await full.is_consumed("in:reports")
    assert await full.is_consumed("in:tasks:normal")


async def test_a_full_server_gives_nobody_up_and_buries_what_is_bad(full: Cell) -> None:
    """⚠ The observed clock stands, as heartbeats are refused; a bad entry does not block its batch; losses are read."""
    tick, lease = full.scripts.tick_liveness(), await full.lease("t1")
    observed = (await full.run(tick)).observed
    bad = await full.append("in:messages:low")
    letter = DeadLetterEntry(
        "in:messages:low", bad, b"x", b"", whole=True, caller="c1", by=b"", code="fact_invalid", reason="bad"
    )
    lost = LeaseLoss(await full.append("in:losses", "lease.lost"), "a1", "t1", lease)
    await fill(full)
    full.now += 2_000
    assert (await full.run(tick)).observed == observed
    assert await full.run(full.scripts.dead_letter("router", [letter])) == 1
    assert await full.word(full.scripts.reclaim_lease([lost])) == "OK"
    await full.redis.config_set("maxmemory", "0")
    full.now += 2_000
    assert (await full.run(tick)).observed == observed + 2_000


async def test_what_takes_more_memory_waits(full: Cell) -> None:
    """Registering, assigning and delivering are refused whole: nothing changed, the entry stays pending."""
    placement = await full.placement()
    calls: list[Call[Any]] = [
        full.scripts.register([await full.registration("a2")]),
        full.scripts.deliver([await full.delivery()]),
        full.scripts.dispatch([placement]),
    ]
    before = await full.dump()
    await fill(full)
    for call in calls:
        with pytest.raises((OutOfMemoryError, ResponseError), match=r"OOM|memory"):
            await full.scripts.run(call)
    assert await full.dump() == before
    assert len(await full.left("in:registry")) == len(await full.left("in:messages:normal")) == 1


async def test_a_script_cannot_make_a_global(cell: Cell) -> None:
    """The server protects its globals: a leak is an error there, and not only in our own test."""
    with pytest.raises(ResponseError):
        await cell.redis.eval("leak = 1", 0)


async def test_scripts_that_the_server_forgot(cell: Cell) -> None:
    """After a restart or a flush every call raises ``NoScriptError`` and changes nothing; loading mends it."""
    await cell.redis.script_flush()
    registration = await cell.registration()
    with pytest.raises(NoScriptError):
        await cell.scripts.run(cell.scripts.register([registration]))
    await cell.scripts.load()
    assert await cell.word(cell.scripts.register([registration])) == "REGISTERED"


async def test_a_round_trip_of_several_calls(cell: Cell) -> None:
    """Carried out in order, each answer in its place: a task that is admitted is assigned in the same round trip."""
    await cell.register()
    admit = cell.scripts.admit([await cell.submission()], {"p1": b"{}"}, nearly_full=False)
    admitted, assigned = await cell.scripts.run(admit, cell.scripts.dispatch([await cell.placement()]))
    assert (admitted.words, assigned.words) == (["QUEUED"], ["ASSIGNED"])
    assert await cell.scripts.run() == []


async def test_an_error_in_one_call_is_raised_though_others_were_carried_out(cell: Cell) -> None:
    """Whoever catches it re-reads what is pending."""
    cell.broken = True
    await cell.redis.set(cell.keys.of("clock"), "x")
    with pytest.raises(ResponseError, match="WRONGTYPE"):
        await cell.scripts.run(cell.scripts.tick_liveness(), cell.scripts.worker_heartbeat("registry", "r1", {}, []))
    assert await cell.redis.exists(cell.keys.worker("registry", "r1"))
