"""Any order of facts, repeated and late ones too: after each step the books balance and no capacity is exceeded."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from coord.models.cell import Memory
from coord.models.tasks import Priority
from tests.ledger import assert_keys_end, assert_ledger
from tests.scripts.cell import Cell
from workers.transitions import Call, CancelRequest, Submission

AGENTS = ["a1", "a2", "a3"]
TASKS = [f"t{n}" for n in range(12)]
POOLS = ["p1", "p2"]
CAPACITY = 2
STEPS = 120


class Walk:
    """Random steps in one cell; remembers leases and calls, so that late and repeated ones come up."""

    def __init__(self, cell: Cell, seed: int) -> None:
        self.cell = cell
        self.random = random.Random(seed)
        self.incarnations = dict.fromkeys(AGENTS, 0)
        self.leases: list[tuple[str, str]] = []
        self.repeatable: list[Call[Any]] = []
        self.steps: list[Callable[[], Awaitable[object]]] = [
            self.register, self.heartbeat, self.leave, self.tick_liveness, self.submit, self.submit, self.submit,
            self.dispatch, self.dispatch, self.dispatch, self.dispatch, self.claim, self.claim, self.report,
            self.report, self.report, self.cancel, self.run_alarms, self.run_alarms, self.reclaim, self.repeat,
            self.later, self.relieve,
        ]  # fmt: skip

    async def step(self) -> str:
        """One random step; its name."""
        step = self.random.choice(self.steps)
        await step()
        return step.__name__

    async def register(self) -> None:
        """The same process again, or a new one."""
        agent = self.random.choice(AGENTS)
        self.incarnations[agent] += self.random.random() < 0.3
        incarnation = f"i{self.incarnations[agent]}"
        one = await self.cell.registration(agent, incarnation=incarnation, capacity=CAPACITY, interval_ms=5_000)
        await self.run(self.cell.scripts.register([one]))

    async def heartbeat(self) -> None:
        """Of the current process, an old one, or one that is not known yet."""
        agent = self.random.choice(AGENTS)
        await self.cell.heartbeat(
            agent, incarnation=f"i{self.incarnations[agent] + self.random.choice([0, 0, 0, -1, 1])}"
        )

    async def leave(self) -> None:
        """Deregister, or say otherwise that it does not work now."""
        agent = self.random.choice(AGENTS)
        if self.random.random() < 0.3:
            await self.cell.deregister(agent, incarnation="")
        else:
            status = self.random.choice(["active", "active", "busy", "draining", "stale"])
            await self.cell.change_status(agent, status, incarnation="")

    async def tick_liveness(self) -> None:
        """A tick, often some time after the last one."""
        for _ in range(self.random.choice([1, 1, 10])):
            self.cell.now += self.random.choice([0, 500, 2_000])
            await self.cell.run(self.cell.scripts.tick_liveness())

    async def submit(self) -> None:
        """New, known, conflicting, delayed, with a deadline, too many; up to three in a batch, of one task perhaps."""
        batch = [await self.submission() for _ in range(self.random.randint(1, 3))]
        pools = {one.pool: b"{}" for one in batch}
        await self.run(self.cell.scripts.admit(batch, pools, nearly_full=self.random.random() < 0.1))

    async def submission(self) -> Submission:
        """Any submission."""
        choose = self.random.choice
        options = {name: ms for name, ms in (("timeout", 3_000), ("max_attempts", 2)) if self.random.random() < 0.3}
        if self.random.random() < 0.2:
            options["deadline"] = self.cell.now + choose([1_000, 20_000])
        run_at = self.cell.now + choose([0, 1_000]) if self.random.random() < 0.3 else None
        return await self.cell.submission(
            choose(TASKS), priority=choose(list(Priority)), pool=choose(POOLS), digest=choose(["d1", "d1", "d2"]),
            run_at=run_at, caller="c1", notify=choose([True, False]), body=b"x" * self.random.randrange(50), **options,
        )  # fmt: skip

    async def dispatch(self) -> None:
        """Up to four placements in one call, some on a stale plan."""
        plan = [
            await self.cell.placement(
                self.random.choice(AGENTS),
                pool=self.random.choice(POOLS),
                rev=self.random.choice([None, None, None, 1]),
            )
            for _ in range(self.random.randint(1, 4))
        ]
        await self.cell.run(self.cell.scripts.dispatch(plan))
        for task in TASKS:
            lease = (await self.cell.fields(task, "lease"))[0]
            if lease and (task, lease) not in self.leases:
                self.leases.append((task, lease))

    async def claim(self) -> None:
        """An agent deletes an inbox entry."""
        held = [task for task in TASKS if (await self.cell.fields(task, "state"))[0] == "assigned"]
        if held:
            await self.cell.claim(self.random.choice(held))

    async def report(self) -> None:
        """Up to four in a batch, of one lease perhaps, under leases of now or of long ago."""
        batch = []
        for _ in range(self.random.randint(1, 4) if self.leases else 0):
            recent = self.leases[-6:] if self.random.random() < 0.8 else self.leases
            task, lease = self.random.choice(recent)
            kind = self.random.choice(["started", "progressed", "completed", "failed", "released"])
            batch.append(await self.cell.reported(kind, task, lease, data=b"1", retryable=self.random.random() < 0.7))
        if batch:
            await self.run(self.cell.scripts.settle(batch))

    async def cancel(self) -> None:
        """Of any two tasks, which may be the same."""
        batch = []
        for _ in range(2):
            entry = await self.cell.append("in:requests")
            batch.append(CancelRequest(entry, self.random.choice(TASKS), "c2", "why"))
        await self.run(self.cell.scripts.cancel(batch))

    async def run_alarms(self) -> None:
        """What is due, often some time later."""
        self.cell.now += self.random.choice([0, 500, 5_000, 61_000])
        await self.cell.run_alarms()

    async def relieve(self) -> None:
        """The server is nearly full: some ended tasks give up what they hold."""
        memory = Memory(10**9, 10**9)
        await self.cell.run(self.cell.scripts.relieve(self.random.choice([1, 2, 500]), memory=memory))

    async def reclaim(self) -> None:
        """What two agents, or one of them twice, had in some term."""
        batch = [await self.cell.loss(self.random.choice(AGENTS), self.random.randint(1, 4)) for _ in range(2)]
        await self.run(self.cell.scripts.reclaim(batch))

    async def repeat(self) -> None:
        """A call of before, again: its answer was lost."""
        if self.repeatable:
            await self.cell.run(self.random.choice(self.repeatable))

    async def later(self) -> None:
        """Time passes."""
        self.cell.now += self.random.choice([1, 100, 3_000])

    async def run(self, call: Call[Any]) -> None:
        """Run a call that may be repeated later."""
        self.repeatable.append(call)
        await self.cell.run(call)


@pytest.mark.parametrize("seed", range(8))
async def test_the_books_balance_after_any_step(cell: Cell, seed: int) -> None:
    """⚠ Exact counters, no over-assignment, nothing lost and nothing in two places, whatever comes in which order."""
    cell.change_settings(max_backlog_tasks=8, max_releases=2, terminal_entries=5, refused_entries=3)
    cell.trimmed = True
    walk = Walk(cell, seed)
    done: list[str] = []
    for _ in range(STEPS):
        done.append(await walk.step())
        try:
            await assert_ledger(cell.redis, cell.keys, trimmed=True)
            for agent in AGENTS:
                assert await cell.load(agent) <= CAPACITY
        except AssertionError as error:
            raise AssertionError(f"seed {seed}, after {done[-6:]}: {error}") from error
    await assert_keys_end(cell.redis, cell.keys)
