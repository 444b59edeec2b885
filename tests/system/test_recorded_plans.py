"""`coord trace plans` and `coord simulate replay`: a real cell records its plans; a replay chooses the same agents."""

from __future__ import annotations

from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import msgspec
import pytest
from msgspec.structs import replace

from coord import queries
from coord.models.tasks import TaskRecord
from coord.placement import STRATEGIES
from coord.simulation import Replayed, read_plans, replay, write_plans
from tests.processes import CellProcesses, cell_processes
from tests.waiting import wait_until

#: Each is set while tasks run.
SWITCHED = ("random", "predictive", "consistent_hash", "geographic", "prequal")
TASKS = 250  #: submitted under each
KILLED_AT = 1  #: under this one, a distributor is killed


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def submit(at: CellProcesses, count: int) -> list[str]:
    """Submit tasks; one in three has a place and a key."""
    specs = [
        {
            "task_type": "echo",
            "payload": {"s": 0.0, "until": str(at.folder)},
            "requirements": {"capabilities": ["echo"]},
            **({} if number % 3 else {"location": {"zone": f"z{number % 2}"}, "affinity_key": f"k{number % 7}"}),
        }
        for number in range(count)
    ]
    return [handle.task_id for handle in await at.client.submit_many(specs)]


async def test_a_thousand_choices_are_replayed(at: CellProcesses, tmp_path: Path) -> None:
    """Strategies are switched live, agents come, and one of two distributors is killed and starts again."""
    await at.worker("registry")
    first = await at.worker("distributor", "d1")
    await at.worker("distributor", "d2")
    for number in range(3):
        await at.agent(f"a{number}", 4)
    admin = at.client.admin
    ids = await submit(at, 50)
    assert await at.start("on", "-m", "coord.cli", "settings", "set", "record_plans", "on").ended() == 0

    async def is_used(strategy: str) -> bool:
        """Some of these tasks are placed by a distributor that follows the setting."""
        some = await submit(at, TASKS)
        ids.extend(some)
        await at.all_end(len(ids))
        records = await queries.get_tasks(at.redis, at.keys, some)
        return any(one is not None and (one.placement or {}).get("strategy") == strategy for one in records)

    async def is_recorded() -> bool:
        """Both distributors follow the setting: until then a strategy may be used and not be recorded."""
        ids.extend(await submit(at, TASKS))
        await at.all_end(len(ids))
        return replay(await at.client.plans(0), STRATEGIES).distributors == 2

    async def are_appended(strategies: tuple[str, ...]) -> bool:
        """The choices of these strategies can be read; a distributor that is killed earlier takes its own with it."""
        return set(strategies) <= set(replay(await at.client.plans(0), STRATEGIES).of_strategies)

    await wait_until(is_recorded, "both distributors record their plans", 60)
    for number, strategy in enumerate(SWITCHED):
        await admin.set_strategy(strategy, by="test")  # type: ignore[arg-type]
        await wait_until(partial(is_used, strategy), f"tasks are placed by {strategy}")
        if number == KILLED_AT:
            await wait_until(partial(are_appended, SWITCHED[:number]), "the choices before are appended")
            first.kill()
            await at.agent("a3", 8)
            await at.worker("distributor", "d1")

    # What the killed one had not appended is lost.
    wanted = {strategy for number, strategy in enumerate(SWITCHED) if number != KILLED_AT}

    async def whole() -> Replayed | None:
        """Everything is appended a quarter of a second after it was planned; the new distributor may plan late."""
        found = replay(await at.client.plans(0), STRATEGIES)
        if found.decisions >= 1_000 and wanted <= set(found.of_strategies) and found.distributors == 3:
            return found
        ids.extend(await submit(at, TASKS))
        await at.all_end(len(ids))
        return None

    found = await wait_until(whole, "a thousand choices of three distributors are recorded", 60)
    assert found is not None
    assert found.first is None, found.first
    assert found.equal == found.decisions
    await admin.set_setting("record_plans", False)
    changes = await admin.setting_changes(100)
    assert [(one.value, one.before) for one in changes if one.name == "record_plans"] == [("off", "on"), ("on", None)]

    path = tmp_path / "plans.jsonl"
    assert await at.start("export", "-m", "coord.cli", "trace", "plans", "-o", str(path)).ended() == 0
    command = ("-m", "coord.cli", "simulate", "replay", str(path))
    equal = at.start("replay", *command)
    assert await equal.ended() == 0, equal.told()
    assert "choices are equal" in equal.told()

    plans = read_plans(path.read_bytes())
    entries = []
    for entry in plans.entries:
        steps = msgspec.json.decode(entry.steps)
        changed = [[step[0], step[1] + 1] if step[0] == "seed" else step for step in steps]
        entries.append(replace(entry, steps=msgspec.Raw(msgspec.json.encode(changed))))
    path.write_bytes(write_plans(replace(plans, entries=tuple(entries))))
    different = at.start("replay again", *command)
    assert await different.ended() == 1
    assert "first difference" in different.told()
    await at.assert_in_order(ids)


async def test_full_scores_are_in_the_record_of_a_task(at: CellProcesses) -> None:
    """While the setting is on: the agents that were best, with every term; the one that got the task is first."""
    await at.worker("registry")
    await at.worker("distributor")
    for number in range(4):
        await at.agent(f"a{number}", 4)
    ended = 0

    async def placed(*, fully: bool) -> TaskRecord | None:
        """A task that was placed when the distributor knew all agents, and followed the setting."""
        nonlocal ended
        (task_id,) = await submit(at, 1)
        ended += 1
        await at.all_end(ended)
        found = await at.client.task(task_id)
        why = found.placement or {}
        return found if why.get("eligible") == 4 and ("candidates" in why) is fully else None

    short = await wait_until(lambda: placed(fully=False), "a task is placed among all agents")
    await at.client.admin.set_setting("full_scores", True)
    full = await wait_until(lambda: placed(fully=True), "another one")
    assert short is not None
    assert full is not None
    assert short.placement is not None
    assert (short.placement["strategy"], short.placement["eligible"]) == ("least_connections", 4)
    assert full.placement is not None
    best = full.placement["candidates"]
    assert len(best) == 3
    assert best[0]["agent_id"] == full.agent_id
    for one in best:
        terms = one["terms"]
        assert one["score"] == (terms["in_flight"] + terms["outside_load"] + 1) / terms["weight"]
    explained = at.start("explain", "-m", "coord.cli", "tasks", "explain", full.task_id)
    assert await explained.ended() == 0
    assert "in_flight" in explained.told()
    assert str(full.placement["seed"]) in explained.told()
