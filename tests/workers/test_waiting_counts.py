"""The waiting tasks by reason, on a cell at work: right, zero when nothing waits, and counted by one distributor."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Mapping
from typing import Any

import msgspec
import pytest

from coord import Client
from coord.models.agents import AgentStatus, Location
from coord.models.explanations import WaitingCounts, WaitingReason
from coord.models.facts import AgentStatusChanged, TaskCancelRequested
from coord.models.tasks import Requirements, TaskState
from coord.streams import Append, append
from tests.running import RunningCell
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_count, distributor, fleet, vanish, working
from workers import waiting_counts
from workers.distributor import TICKS
from workers.transitions import scripts

R = WaitingReason


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts are made often; and the queues of a cell need several calls."""
    monkeypatch.setitem(TICKS, "count_waiting", 0.05)
    monkeypatch.setattr(scripts, "COUNTER_SILENCE_MS", 400)
    monkeypatch.setattr(waiting_counts, "CHUNK", 3)
    monkeypatch.setattr(waiting_counts, "JUDGED_AT_ONCE", 2)


@pytest.fixture
async def client(cell: RunningCell) -> AsyncIterator[Client]:
    """A client of the cell."""
    async with Client(cell.url, settings=cell.settings) as client:
        yield client


def some(counts: WaitingCounts) -> dict[WaitingReason, int]:
    """The reasons for which tasks wait."""
    return {reason: number for reason, number in counts.reasons.items() if number}


async def await_counts(client: Client, wanted: Mapping[WaitingReason, int]) -> WaitingCounts:
    """Wait until these are the numbers; they add up, and are those of all pools together."""

    async def are_right() -> WaitingCounts | None:
        found = await client.waiting_counts()
        if found is None or found.uncounted:
            return None
        assert sum(found.reasons.values()) == found.total
        return found if some(found) == dict(wanted) else None

    found = await wait_until(are_right, f"tasks wait for {wanted}")
    assert found is not None
    return found


async def field(cell: RunningCell, name: str) -> str:
    """A field of the record of counts."""
    found = await cell.redis.hget(cell.keys.of("waiting"), name)
    assert isinstance(found, bytes)
    return found.decode()


async def submit(caller: Caller, count: int = 1, options: Mapping[str, Any] | None = None, **wanted: object) -> None:
    """Submit tasks with these requirements."""
    await caller.submit(count, requirements=msgspec.convert(wanted, Requirements), **(options or {}))


async def fill_cell(cell: RunningCell, caller: Caller) -> dict[WaitingReason, int]:
    """Let tasks wait for many reasons, also named ones; return how many for each."""
    agents = await fleet(cell, 2, tags=("eu",))
    draining = AgentStatusChanged("a1", AgentStatus.DRAINING)
    await append(cell.redis, cell.keys, [Append("in:registry", draining, "a1")])
    await caller.submit(1, requirements=Requirements(agent_id=agents[0].agent_id))
    await await_count(cell, TaskState.ASSIGNED, 1)
    await submit(caller, 2, {"delay": 3_600})
    await submit(caller, 3, agent_type="monitor")
    await submit(caller, 4, capabilities=["ocr"])
    await submit(caller, 1, {"location": Location(region="eu")}, capabilities=["ocr"])
    for zone in range(7):
        await submit(caller, 1, labels={"zone": f"mars-{zone}"})
    await submit(caller, 5, {"affinity_key": "k"}, tags=["eu"])
    await submit(caller, 6, tags=["eu"])
    await submit(caller, 2, agent_id="a1")
    await submit(caller, 1, agent_id="nobody")
    return {
        R.SCHEDULED: 2,
        R.NO_AGENT_TYPE: 3,
        R.NO_CAPABILITY: 5,
        R.NO_LABEL: 7,
        R.NAMED_AGENT_ABSENT: 1,
        R.ALL_DRAINING: 2,
        R.ALL_FULL: 11,
    }


async def test_every_task_is_counted_once_by_its_reason(cell: RunningCell, caller: Caller, client: Client) -> None:
    """Over pools and named queues; the numbers are those that ``coord pools`` shows. Afterwards all are zero."""
    found = await await_counts(client, await fill_cell(cell, caller))
    backlog = await client.backlog()
    assert backlog.waiting is not None
    assert some(backlog.waiting) == some(found)
    by_reason = dict.fromkeys(WaitingReason, 0)
    for pool in backlog.pools:
        assert pool.reason is not None
        by_reason[pool.reason] += pool.length
    by_reason[R.SCHEDULED] = sum(row.scheduled for row in backlog.priorities)
    assert by_reason == found.reasons
    async for key in cell.redis.scan_iter(match=cell.keys.task("*")):
        request = TaskCancelRequested(key.decode().rpartition(":")[2])
        await append(cell.redis, cell.keys, [Append("in:requests", request, "c")])
    assert (await await_counts(client, {})).total == 0


async def test_another_distributor_counts_when_the_first_is_gone(
    cell: RunningCell, caller: Caller, client: Client
) -> None:
    """One of three counts. Killed, it is replaced by one that has counted nothing before, and the numbers are right."""
    for _ in range(2):
        await cell.add("distributor")
    wanted = await fill_cell(cell, caller)
    await await_counts(client, wanted)
    by = await field(cell, "by")
    (counting,) = [one for one in cell.of_kind("distributor") if distributor(one).learner.id == by]
    await vanish(counting)
    await submit(caller, 3, agent_type="monitor")
    found = await await_counts(client, {**wanted, R.NO_AGENT_TYPE: 6})
    assert found.age < 60_000
    assert await field(cell, "by") != by


@pytest.mark.parametrize("distributors", [1, 2])
async def test_a_placement_says_why_its_task_has_waited(
    cell: RunningCell, caller: Caller, client: Client, distributors: int
) -> None:
    """Whichever distributor places it: one of them counts, and each judges. Explain names the reason."""
    for _ in range(distributors - 1):
        await cell.add("distributor")
    await fleet(cell, 1)
    await submit(caller, 8, capabilities=["ocr"])
    await submit(caller, 1, {"affinity_key": "k"}, capabilities=["ocr"])
    await await_counts(client, {R.NO_CAPABILITY: 9})

    def are_judged() -> bool:
        pools = [distributor(one).planner.waiting.values() for one in cell.of_kind("distributor")]
        return all(one.reason is R.NO_CAPABILITY for waiting in pools for one in waiting) and all(pools)

    await wait_until(are_judged, "every distributor has judged the pools")
    await fleet(cell, 1, capabilities=("ocr",), capacity=9)
    await await_count(cell, TaskState.ASSIGNED, 9)
    page = await client.list_tasks("state:assigned")
    assert len(page.tasks) == 9
    for one in page.tasks:
        placed = (await client.explain(one.task_id)).placed
        assert placed is not None
        assert placed.waiting_reason is R.NO_CAPABILITY


async def test_tasks_that_move_are_never_lost_from_the_sum(cell: RunningCell, caller: Caller, client: Client) -> None:
    """While tasks are submitted and done, whatever was not counted is shown; at rest the numbers are right again."""
    agents = await fleet(cell, 2, capacity=3)
    await submit(caller, 2, capabilities=["ocr"])
    seen: list[WaitingCounts] = []

    async def look() -> None:
        while True:
            found = await client.waiting_counts()
            if found is not None:
                seen.append(found)
            await asyncio.sleep(0)

    looking = asyncio.create_task(look())
    async with working(agents):
        for _ in range(20):
            await caller.submit(20)
        await await_count(cell, TaskState.COMPLETED, 400)
    await await_counts(client, {R.NO_CAPABILITY: 2})
    looking.cancel()
    await asyncio.wait([looking])
    assert all(sum(one.reasons.values()) + one.uncounted == one.total for one in seen)
    assert seen


async def test_a_long_count_is_repeated_less_often(
    cell: RunningCell, caller: Caller, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time decides; meanwhile the distributor goes on, and the numbers say how old they are."""
    await submit(caller, 1, capabilities=["ocr"])
    first = await await_counts(client, {R.NO_AGENT_REGISTERED: 1})
    monkeypatch.setattr(waiting_counts, "PAUSE", 1e9)
    (worker,) = cell.of_kind("distributor")
    counter = distributor(worker).counter

    async def is_pausing() -> bool:
        found = await client.waiting_counts()
        assert found is not None
        return found.counted_at > first.counted_at and counter._next_at - time.monotonic() > 1_000

    await wait_until(is_pausing, "a count was made, and the next one is far")
    found = await client.waiting_counts()
    assert found is not None
    await submit(caller, 1, capabilities=["ocr"])
    seen_at = int(await field(cell, "seen_at"))

    async def is_seen() -> bool:
        return int(await field(cell, "seen_at")) > seen_at + 100

    await wait_until(is_seen, "it shows that it goes on")
    later = await client.waiting_counts()
    assert later is not None
    assert (later.counted_at, later.total) == (found.counted_at, 1)
    assert later.age >= 100
