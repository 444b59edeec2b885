"""Strategies are switched while tasks run, with two distributors as processes: nothing is lost, and both follow."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import pairwise
from pathlib import Path

import pytest

from coord import queries
from tests.processes import CellProcesses, cell_processes
from tests.waiting import wait_until

#: Each is set for the cell, and the one after it for the type of the tasks.
STRATEGIES = ("round_robin", "predictive", "power_of_two", "consistent_hash", "prequal")


@pytest.fixture
async def at(tmp_path: Path) -> AsyncIterator[CellProcesses]:
    """A server, and no process of the cell yet."""
    async with cell_processes(tmp_path) as built:
        yield built


async def strategies_of(at: CellProcesses, ids: list[str]) -> set[str]:
    """The strategies by which these tasks were placed."""
    records = await queries.get_tasks(at.redis, at.keys, ids)
    return {one.placement["strategy"] for one in records if one is not None and one.placement is not None}


@pytest.mark.guarantee("rules-under-load")
async def test_strategies_are_switched_under_load(at: CellProcesses) -> None:
    """For the cell and for the type of the tasks; a distributor that starts again begins with what is set."""
    await at.worker("registry")
    first = await at.worker("distributor", "d1")
    await at.worker("distributor", "d2")
    for number in range(3):
        await at.agent(f"a{number}", 4)
    admin, ids = at.client.admin, await at.submit(300, 0.01)
    for of_cell, of_type in pairwise(STRATEGIES):
        await admin.set_strategy(of_cell, by="test")  # type: ignore[arg-type]
        ids += await at.submit(100, 0.01)
        await admin.set_strategy(of_type, task_type="echo")  # type: ignore[arg-type]
        await admin.set_modifier("rare_skills_first", True, task_type="echo")
        ids += await at.submit(100, 0.01)
        await admin.set_strategy(None, task_type="echo")
    first.kill()
    await admin.set_strategy("random", task_type="echo")
    await at.worker("distributor", "d1")
    await at.all_end(len(ids))
    await at.assert_in_order(ids)

    async def follows() -> bool:
        """Both distributors admit some of these."""
        some = await at.submit(40)
        ids.extend(some)
        await at.all_end(len(ids))
        return await strategies_of(at, some) == {"random"}

    await wait_until(follows, "both distributors use what is set")
    await at.assert_in_order(ids)
    changes = await admin.setting_changes(100)
    assert len(changes) == 3 * len(STRATEGIES[1:]) + 2, "the modifier changed once"
    assert {one.by for one in changes} == {"test", f"client {at.client.caller}"}
    assert await admin.type_settings() == {"echo": {"strategy": "random", "rare_skills_first": "on"}}
