"""Four distributors as processes: each knows what the others do, so that few of their plans are refused."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.processes import CellProcesses, cell_processes
from tests.waiting import wait_until
from tests.workers.raw import entries

#: Refused plans for each task. A guard only: how many are refused depends on the machine, so this bound is far above
#: what is usual. Whether loads are applied is tested in tests/workers, second agents in tests/scripts and tests/unit.
MOST_REFUSED = 0.15
TASKS, CALLERS, TASK_S = 600, 26, 0.1


async def _call(at: CellProcesses, left: list[None], ids: list[str]) -> None:
    """Submit a task and wait for its result, again and again, until enough callers have done enough."""
    while left:
        left.pop()
        payload = {"s": TASK_S}
        handle = await at.client.submit("echo", payload, requirements={"capabilities": ["echo"]})
        ids.append(handle.task_id)
        await handle.result(timeout=60)


async def _counter(at: CellProcesses, name: str) -> int:
    return int(await at.redis.hget(at.keys.of("counters"), name) or 0)


@pytest.mark.timeout(240)
async def test_four_distributors_refuse_few_plans(tmp_path: Path) -> None:
    """⚠ At four fifths of the capacity. All four share their loads, each task ends once, and refused plans are few."""
    async with cell_processes(tmp_path) as at:
        await at.worker("registry")
        for number in range(4):
            await at.worker("distributor", f"d{number}")
        for number in range(4):
            await at.agent(f"a{number}", capacity=8)
        ids: list[str] = []

        async def all_share() -> bool:
            await asyncio.gather(*[_call(at, [None] * 2, ids) for _ in range(8)])
            log = await entries(at.redis, at.keys.of("log:loads"))
            return len({fields[b"by"] for _, fields in log}) == 4

        await wait_until(all_share, "all four share their loads")
        before, begun = await _counter(at, "plans_refused"), len(ids)
        left = [None] * TASKS
        await asyncio.gather(*[_call(at, left, ids) for _ in range(CALLERS)])
        refused = await _counter(at, "plans_refused") - before
        assert refused / (len(ids) - begun) < MOST_REFUSED
        await at.assert_in_order(ids)
