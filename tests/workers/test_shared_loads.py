"""Several distributors know the loads that any of them changes; a single one writes and reads nothing for it."""

from __future__ import annotations

from typing import Any

import pytest
from msgspec.structs import replace

from coord import queries
from coord.config import Settings
from coord.models.tasks import TaskState
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import Caller, await_count, distributor, fleet

#: Milliseconds from the start of a worker within which it has sent its first heartbeat, on a busy machine as well.
BEGINNING_MS = 2_000


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Workers notice soon that another one came or went."""
    return replace(settings, presence_ttl_s=3.0)


def loads_of(worker: RunningWorker) -> dict[str, int]:
    """The loads in one distributor's view."""
    return {agent_id: state.agent.load for agent_id, state in distributor(worker).view.agents.items()}


async def all_have_met(cell: RunningCell, count: int) -> bool:
    """Whether each distributor's last heartbeat came after the first one of each; before, it may think it is alone."""
    found: list[Any] = await cell.redis.zrange(cell.keys.of("workers:distributor"), 0, -1)
    names = [name.decode() for name in found]
    records = [await cell.redis.hgetall(cell.keys.worker("distributor", name)) for name in names]
    if len(records) < count or not all(records):
        return False
    return (
        min(int(one[b"progress_at"]) for one in records)
        > max(int(one[b"started_at"]) for one in records) + BEGINNING_MS
    )


async def length(cell: RunningCell) -> int:
    """How many loads were shared and are kept."""
    return int(await cell.redis.xlen(cell.keys.of("log:loads")))


async def test_every_distributor_knows_what_any_of_them_places_and_settles(cell: RunningCell, caller: Caller) -> None:
    """All views show the same loads after tasks were placed, and after they ended."""
    for _ in range(3):
        await cell.add("distributor")
    distributors = cell.of_kind("distributor")
    agents = await fleet(cell, 3, capacity=8)

    async def all_know(total: int) -> bool:
        true = await queries.get_loads(cell.redis, cell.keys, ["a0", "a1", "a2"])
        return sum(true.values()) == total and all(loads_of(worker) == true for worker in distributors)

    await wait_until(lambda: all_know(0), "all know the fleet")
    await wait_until(lambda: all_have_met(cell, 4), "each has sent a heartbeat since all are there")
    await wait_until(lambda: all(distributor(one).cell.scripts.is_sharing for one in distributors), "all share")
    await caller.submit(12)
    await wait_until(lambda: all_know(12), "all know what was placed")
    for agent in agents:
        await agent.work_once()
    await await_count(cell, TaskState.COMPLETED, 12)
    await wait_until(lambda: all_know(0), "all know what has ended")


async def test_a_single_distributor_shares_nothing(cell: RunningCell, caller: Caller) -> None:
    """Neither before another one comes nor after it has gone."""
    (first,) = cell.of_kind("distributor")
    (agent,) = await fleet(cell, 1, capacity=100)

    async def work(total: int) -> None:
        await caller.submit(5)
        await agent.await_inbox(5)
        await agent.work_once()
        await await_count(cell, TaskState.COMPLETED, total)

    await wait_until(lambda: not distributor(first).cell.scripts.is_sharing, "it knows that it is alone")
    await work(5)
    assert await length(cell) == 0
    second = await cell.add("distributor")
    await wait_until(lambda: distributor(first).cell.scripts.is_sharing, "the first one shares")
    await work(10)
    shared = await length(cell)
    assert shared > 0
    await second.stop()
    await wait_until(lambda: not distributor(first).cell.scripts.is_sharing, "it shares no more")
    shared = await length(cell)
    await work(15)
    assert await length(cell) == shared


async def test_a_distributor_shares_as_soon_as_another_one_does(
    cell: RunningCell, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It need not wait for its next heartbeat: an entry of another distributor is enough."""
    (first,) = cell.of_kind("distributor")
    await wait_until(lambda: not distributor(first).cell.scripts.is_sharing, "it knows that it is alone")
    monkeypatch.setattr(distributor(first), "know_siblings", lambda _: None)
    await fleet(cell, 1)
    await wait_until(lambda: loads_of(first) == {"a0": 0}, "the fleet is known")
    assert not distributor(first).cell.scripts.is_sharing
    await cell.redis.xadd(cell.keys.of("log:loads"), {"by": "another", "loads": "a0 1"})
    await wait_until(lambda: loads_of(first) == {"a0": 1}, "its load is known")
    assert distributor(first).cell.scripts.is_sharing


async def test_a_log_that_was_emptied_does_not_stop_the_sharing(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As after a fail-over that lost it; entries that cannot be read are skipped."""
    second = await cell.add("distributor")
    workers = [*cell.of_kind("distributor")]
    for worker in workers:
        monkeypatch.setattr(distributor(worker), "know_siblings", lambda _: None)
    await fleet(cell, 1, capacity=8)
    await wait_until(lambda: all(loads_of(worker) == {"a0": 0} for worker in workers), "the fleet is known")
    log = cell.keys.of("log:loads")
    await cell.redis.xadd(log, {"by": "another", "loads": "a0 7"})
    await wait_until(lambda: loads_of(second) == {"a0": 7}, "the load is known")
    await cell.redis.delete(log)
    await cell.redis.xadd(log, {"by": "another", "loads": "what?"})
    await cell.redis.xadd(log, {"type": "foreign"})
    await caller.submit(3)
    await wait_until(lambda: all(loads_of(worker) == {"a0": 3} for worker in workers), "the true load is known")
