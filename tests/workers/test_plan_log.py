"""A distributor records its plans while the setting is on: from a snapshot, with further ones, and within bounds."""

from __future__ import annotations

import pytest
from redis.exceptions import OutOfMemoryError

from coord import queries
from coord.models.facts import SettingSet, StrategySet
from coord.models.plans import Plans
from coord.models.tasks import TaskState
from coord.placement import STRATEGIES
from coord.simulation import Replayed, replay
from tests.running import RunningCell, RunningWorker
from tests.waiting import wait_until
from tests.workers.raw import Caller, RawAgent, await_count, distributor, fleet, working
from workers import plan_log
from workers.plan_log import PlanLog


def log_of(worker: RunningWorker) -> PlanLog:
    """The plan log of a distributor."""
    return distributor(worker).plan_log


async def record(cell: RunningCell, caller: Caller, value: str | None) -> None:
    """Set whether plans are recorded, and wait until every distributor follows."""
    fact = SettingSet("record_plans", value)
    assert (await caller.answer(await caller.tell("in:control:distributor", fact)))["ok"] == "1"
    workers = cell.of_kind("distributor")
    await wait_until(lambda: {log_of(one).is_wanted for one in workers} == {value == "on"}, "all follow")


async def plans_of(cell: RunningCell) -> Plans:
    """Everything that the log holds."""
    return await queries.export_plans(cell.redis, cell.keys, 0, 1 << 50)


async def work(cell: RunningCell, caller: Caller, agents: list[RawAgent], count: int) -> None:
    """Submit tasks, and complete them."""
    before = queries.count_by_state(await queries.get_counters(cell.redis, cell.keys))[TaskState.COMPLETED]
    await caller.submit(count)
    async with working(agents):
        await await_count(cell, TaskState.COMPLETED, before + count)


async def replayed(cell: RunningCell, decisions: int) -> Replayed:
    """The result of a replay, once so many choices are recorded."""

    async def enough() -> Replayed | None:
        found = replay(await plans_of(cell), STRATEGIES)
        return found if found.decisions >= decisions else None

    found = await wait_until(enough, f"{decisions} choices are recorded")
    assert found is not None
    return found


async def has_both(cell: RunningCell) -> bool:
    """Return True once choices by two strategies are recorded; all are equal, and a segment has one set of rules."""
    found = replay(await plans_of(cell), STRATEGIES)
    assert found.first is None
    if found.distributors < 2 or set(found.of_strategies) != {"least_connections", "power_of_two"}:
        return False
    assert found.segments > 2
    return True


async def test_recording_begins_and_ends_while_tasks_run(cell: RunningCell, caller: Caller) -> None:
    """In every distributor, also in one that starts later; what was placed before and after it is not recorded."""
    agents = await fleet(cell, 2, capacity=4)
    await work(cell, caller, agents, 30)
    assert (await plans_of(cell)).entries == ()
    await record(cell, caller, "on")
    distributors = [*cell.of_kind("distributor"), await cell.add("distributor")]
    await wait_until(lambda: all(log_of(one).is_wanted for one in distributors), "both record")
    await work(cell, caller, agents, 30)
    await caller.answer(await caller.tell("in:control:distributor", StrategySet("power_of_two")))
    await work(cell, caller, agents, 30)
    await wait_until(lambda: has_both(cell), "the choices of both strategies are recorded")
    await record(cell, caller, None)
    for one in distributors:
        await log_of(one).flush()
        assert distributor(one).view.recorder is None
    entries = (await plans_of(cell)).entries
    await work(cell, caller, agents, 30)
    for one in distributors:
        await log_of(one).flush()
    assert (await plans_of(cell)).entries == entries


async def test_a_trimmed_log_can_be_replayed(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Snapshots follow each other, so there is one in what is left."""
    monkeypatch.setattr(plan_log, "SEGMENTS", cell.settings.log_bytes // 2_000)
    monkeypatch.setattr(plan_log, "SNAPSHOTS", 1)
    agents = await fleet(cell, 2, capacity=4)
    await record(cell, caller, "on")
    await work(cell, caller, agents, 200)
    await replayed(cell, 200)
    await record(cell, caller, "off")
    await log_of(*cell.of_kind("distributor")).flush()
    plans = await plans_of(cell)
    found = replay(plans, STRATEGIES)
    assert found.first is None
    assert found.segments > 3
    await cell.redis.xtrim(cell.keys.of("log:plans"), maxlen=len(plans.entries) - 2, approximate=False)
    trimmed = replay(await plans_of(cell), STRATEGIES)
    assert trimmed.first is None
    assert trimmed.decisions > 0
    assert trimmed.segments == found.segments - 1
    assert trimmed.skipped > 0


async def test_what_the_server_refuses_is_lost_and_a_segment_begins(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A gap never leads to a wrong replay."""
    (worker,) = cell.of_kind("distributor")
    agents = await fleet(cell, 2, capacity=4)
    await record(cell, caller, "on")
    await work(cell, caller, agents, 20)
    scripts = log_of(worker).cell.scripts
    refused = 0

    def refuse(*_: object) -> None:
        nonlocal refused
        refused += 1
        raise OutOfMemoryError("OOM command not allowed when used memory > 'maxmemory'.")

    with monkeypatch.context() as patched:
        patched.setattr(scripts, "record_plans", refuse)
        await work(cell, caller, agents, 20)
        await wait_until(lambda: refused, "an entry is refused")
    await work(cell, caller, agents, 20)

    async def has_begun_again() -> bool:
        found = replay(await plans_of(cell), STRATEGIES)
        assert found.first is None
        return any(entry.segment > 0 for entry in (await plans_of(cell)).entries)

    await wait_until(has_begun_again, "a new segment is in the log")
    assert not worker.task.done()


async def test_a_snapshot_that_is_too_large_is_not_recorded(
    cell: RunningCell, caller: Caller, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would push all choices out of the log; tasks are placed as always."""
    monkeypatch.setattr(plan_log, "LARGEST", cell.settings.log_bytes // 100)
    agents = await fleet(cell, 2, capacity=4)
    await record(cell, caller, "on")
    await work(cell, caller, agents, 20)
    await log_of(*cell.of_kind("distributor")).flush()
    assert (await plans_of(cell)).entries == ()
