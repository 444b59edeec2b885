"""One run of a scenario under one strategy, on a virtual clock.

The task that is ready for the longest time is placed first. With one distributor, all that happens is known at once.
With several, each event is handled by one of them at random: it learns the true load of the agents that it touches, and
the others learn it some milliseconds later. A task whose agent is full, whatever the distributor believed, goes to the
second best one if the plan took the last slot; if that is full too, the plan is refused. While tasks wait, each
distributor reads old loads, and once a second all share what they have learned.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from math import inf
from random import Random
from typing import NamedTuple

from msgspec import Struct
from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.placement import STRATEGIES, Ejection, Rules, Strategy, TaskContext
from coord.simulation.distributor import Distributor, Ended
from coord.simulation.scenario import Change, Job, Scenario, SimulatedAgent

#: Seconds between two times at which what was learned of idle agents decays, as in a distributor.
ADVANCE_S = 0.25
#: Seconds between two times at which distributors share what they have learned.
SHARE_S = 1.0
#: Seconds after which a load is read again if a task waits for it.
STALE_S = 0.05
#: Seconds after which the other distributors know of a changed load, at least and at most.
DELAY_S = (0.002, 0.005)
#: Seconds more until they use a slot that has become free: the distributor that freed it comes first.
#: At random up to three times as long, so that they do not all use it at once.
ROOM_S = 0.003


class Run(Struct, frozen=True):
    """What happened to the tasks of a scenario, in the order of their arrival."""

    starts: tuple[float, ...]  #: seconds; of the last attempt
    ends: tuple[float, ...]
    agents: tuple[str, ...]  #: the agent of each task
    placed: tuple[int, ...]  #: the tasks in the order of their placement
    exponent: float = 0.0  #: the load exponent that was learned
    lost: frozenset[int] = frozenset()  #: tasks that failed for good
    refused: int = 0  #: placements that were refused, because the agent was not as the distributor believed


class Active(Struct):
    """A task on an agent."""

    index: int
    job: Job
    left: float
    load_at_start: int
    distributor: Distributor
    fails: bool = False


class News(NamedTuple):
    """A load of which a distributor learns."""

    at: float
    number: int  #: of the distributor
    agent_id: str
    stamp: int  #: of the agent; the load is ignored if a later one is known
    load: int
    has_waited: bool = False  #: the slot that became free is used now, if it is still free


class Worker:
    """An agent and what it does."""

    def __init__(self, agent: SimulatedAgent) -> None:
        self.agent = agent
        self.active: list[Active] = []
        self.factor = 1.0
        self.at = 0.0  # when ``left`` of its tasks was true
        self.stamp = 0  # of its next end; those of before are outdated
        self.is_present = True

    def row(self) -> FleetAgent:
        """Return its row in the view of a distributor."""
        agent = self.agent
        return FleetAgent(
            agent_id=agent.agent_id,
            agent_type="worker",
            capabilities=agent.capabilities,
            capacity=agent.capacity,
            weight=agent.weight,
            location=agent.location,
        )

    @property
    def has_room(self) -> bool:
        """True if it takes another task."""
        return self.is_present and len(self.active) < self.agent.capacity

    def speed(self, active: Active) -> float:
        """Return the speed of one of its tasks now."""
        slowed = float(max(1, len(self.active)) ** self.agent.load_exponent)
        return self.agent.speed_for(active.job.task.task_type) * self.factor / slowed

    def work_until(self, now: float) -> None:
        """Let it work."""
        for active in self.active:
            active.left -= (now - self.at) * self.speed(active)
        self.at = now

    def next_end(self) -> tuple[float, Active] | None:
        """Return when its next task ends, and which."""
        ends = [(self.at + max(0.0, active.left) / self.speed(active), active.index) for active in self.active]
        if not ends:
            return None
        at, index = min(ends)
        return at, next(active for active in self.active if active.index == index)


def simulate(
    scenario: Scenario,
    rules: Rules,
    seed: int,
    strategies: Mapping[str, type[Strategy]] = STRATEGIES,
    distributors: int = 1,
) -> Run:
    """Run a scenario.

    Args:
        scenario: the fleet and its tasks.
        rules: the strategy and the modifiers.
        seed: of the strategies.
        strategies: name -> class.
        distributors: number of distributors.

    Raises:
        ValueError: no agent may ever do one of the tasks.
    """
    return _Simulation(scenario, rules, seed, strategies, distributors).run()


class _Simulation:
    def __init__(
        self,
        scenario: Scenario,
        rules: Rules,
        seed: int,
        strategies: Mapping[str, type[Strategy]],
        distributors: int,
    ) -> None:
        self.scenario = scenario
        self.rules = rules
        self.workers = {agent.agent_id: Worker(agent) for agent in scenario.agents}
        rows = [worker.row() for worker in self.workers.values()]
        self.chance = Random(f"chance {seed}")  # who gets an event, what fails, and how long a retry waits
        self.distributors = [
            Distributor(rows, rules, strategies, Random(seed + 1_000_003 * number)) for number in range(distributors)
        ]
        self.waiting: dict[tuple[frozenset[str], str], deque[tuple[float, int]]] = {}  # pool -> ready at, task
        for job in scenario.jobs:
            pool = (job.capabilities, job.task.task_type)
            if pool not in self.waiting:
                self.waiting[pool] = deque()
                for distributor in self.distributors:
                    distributor.group_of(job)
        self.ends: list[tuple[float, str, int]] = []
        self.retries: list[tuple[float, int]] = []
        self.looks: list[tuple[float, int]] = []  # when a distributor reads old loads, because tasks wait
        self.news: list[News] = []
        self.delay = Random(f"delay {seed}")
        count = len(scenario.jobs)
        self.starts, self.ended_at, self.agent_of = [0.0] * count, [0.0] * count, [""] * count
        self.failed_at: dict[int, list[str]] = {}  # task -> agents of its failed attempts
        self.placed: list[int] = []
        self.lost: set[int] = set()
        self.refused = 0
        self.advance_at = self.share_at = 0.0

    def run(self) -> Run:
        jobs, changes = self.scenario.jobs, deque(self.scenario.changes)
        index = 0
        while index < len(jobs) or self.ends or self.retries or self.looks:
            arrives = jobs[index].arrived if index < len(jobs) else inf
            ends = self.ends[0][0] if self.ends else inf
            returns = self.retries[0][0] if self.retries else inf
            looks = self.looks[0][0] if self.looks else inf
            if self.news and self.news[0][0] < min(arrives, ends, returns, looks, changes[0].at if changes else inf):
                self._hear()
                continue
            at = self._handler()
            if changes and changes[0].at <= min(arrives, ends, returns, looks):
                now = changes[0].at
                self._apply(changes.popleft())
            elif looks < min(arrives, ends, returns):
                now, at = heapq.heappop(self.looks)
                self._look(self.distributors[at], now)
            elif ends <= min(arrives, returns):
                now, agent_id, stamp = heapq.heappop(self.ends)
                if self.workers[agent_id].stamp != stamp:
                    continue
                self._end(self.workers[agent_id], now, self.distributors[at])
            elif returns < arrives:
                now, again = heapq.heappop(self.retries)
                self._wait(again, now)
            else:
                now = arrives
                self._wait(index, now)
                index += 1
            self._advance(now)
            self._place(now, at)
            if index == len(jobs) and not self.ends and not self.retries and changes:
                changes = self._return_next(changes)
        if any(self.waiting.values()):
            raise ValueError("tasks still wait at the end, because agents that may do them are gone")
        return Run(
            tuple(self.starts),
            tuple(self.ended_at),
            tuple(self.agent_of),
            tuple(self.placed),
            self.distributors[0].learned.exponent,
            frozenset(self.lost),
            self.refused,
        )

    def _handler(self) -> int:
        """Return the number of the distributor that handles the next event."""
        count = len(self.distributors)
        return int(self.chance.random() * count) if count > 1 else 0

    def _return_next(self, changes: deque[Change]) -> deque[Change]:
        """Apply the changes that are left: an agent that returns may do what still waits."""
        for change in changes:
            self._apply(change)
            self._place(change.at, 0)
        return deque()

    def _advance(self, now: float) -> None:
        """Let what was learned decay, and be shared, as in a distributor."""
        if now >= self.advance_at:
            for distributor in self.distributors:
                distributor.advance(now)
            self.advance_at = now + ADVANCE_S
        if len(self.distributors) > 1 and now >= self.share_at:
            self._share(now)
            self.share_at = now + SHARE_S

    def _share(self, now: float) -> None:
        """Let the distributors learn what the others know."""
        for distributor in self.distributors:
            late, distributor.late = distributor.late, []
            for ended in late:
                self._learn(distributor, ended, now)
        for distributor in self.distributors:
            changes = distributor.learned.take_changes()
            for other in self.distributors:
                if other is distributor:
                    continue
                other.learned.merge(changes, now)
                for change in changes:
                    tried = change.sums.tried
                    failures = round(change.sums.attempts * change.sums.failed / tried) if tried > 0 else 0
                    if change.sums.attempts and change.expected_ms is None:
                        self._spread(
                            other,
                            other.judge(change.agent_id, change.task_type, change.sums.attempts, failures, now),
                            now,
                        )

    def _learn(self, distributor: Distributor, ended: Ended, now: float) -> None:
        self._spread(distributor, distributor.learn(ended, now), now)

    def _spread(self, by: Distributor, ejection: Ejection | None, now: float) -> None:
        """Let the others adopt an ejection: it is in the agent's record, which they follow."""
        if ejection is not None:
            for other in self.distributors:
                if other is not by:
                    other.adopt(ejection, now)

    def _wait(self, index: int, now: float) -> None:
        job = self.scenario.jobs[index]
        self.waiting[job.capabilities, job.task.task_type].append((now, index))

    def _tell(self, worker: Worker, by: Distributor, now: float) -> None:
        """Let the other distributors know of a load in a moment."""
        agent_id, load = worker.agent.agent_id, len(worker.active)
        for number, distributor in enumerate(self.distributors):
            if distributor is not by:
                at = now + self.delay.uniform(*DELAY_S)
                heapq.heappush(self.news, News(at, number, agent_id, worker.stamp, load))

    def _hear(self) -> None:
        """Let a distributor take over a load, unless it knows a newer one, and place what waits."""
        news = heapq.heappop(self.news)
        now, number, agent_id, stamp, load, has_waited = news
        distributor, worker = self.distributors[number], self.workers[agent_id]
        if stamp <= distributor.stamps[agent_id]:
            return
        if not has_waited and distributor.rows[agent_id].load > load:
            heapq.heappush(self.news, news._replace(at=now + ROOM_S * self.delay.uniform(1, 3), has_waited=True))
            return
        distributor.stamps[agent_id] = stamp
        distributor.read(agent_id, load, now, is_present=worker.is_present)
        self._advance(now)
        self._place(now, number)

    def _look(self, distributor: Distributor, now: float) -> None:
        """Read the loads that this distributor has not read for a while."""
        for agent_id, worker in self.workers.items():
            if distributor.read_at[agent_id] < now - STALE_S / 2:
                self._read(distributor, worker, now)

    def _place(self, now: float, number: int) -> None:
        """Let a distributor place all tasks that it has room for."""
        distributor = self.distributors[number]
        while True:
            heads = [queue[0] for queue in self.waiting.values() if queue]
            ready = [head for head in heads if distributor.group_of(self.scenario.jobs[head[1]]).strategy.has_room]
            if not ready:
                break
            index = min(ready)[1]
            job = self.scenario.jobs[index]
            group = distributor.group_of(job)
            context = self._context(index, job)
            agent_id = group.strategy.choose(context)
            if agent_id is None:
                break
            worker = self.workers[agent_id]
            if not worker.has_room:
                agent_id = distributor.alternative(group, agent_id, context)
                self._read(distributor, worker, now)
                if agent_id is None:
                    self.refused += 1
                    continue
                worker = self.workers[agent_id]
                if not worker.has_room:
                    self.refused += 1
                    self._read(distributor, worker, now)
                    continue
            load = distributor.rows[agent_id].load
            self.waiting[job.capabilities, job.task.task_type].popleft()
            group.taken += 1
            worker.work_until(now)
            self.starts[index], self.agent_of[index] = now, agent_id
            self.placed.append(index)
            active = Active(index, job, job.work, load, distributor)
            agent = worker.agent
            if agent.failure_rate and self.chance.random() < agent.failure_rate:
                active.fails, active.left = True, agent.failure_s * agent.speed_for(job.task.task_type)
            worker.active.append(active)
            self._changed(worker)
            self._read(distributor, worker, now)
            self._tell(worker, distributor, now)
        if len(self.distributors) > 1 and heads and all(one != number for _, one in self.looks):
            heapq.heappush(self.looks, (now + STALE_S, number))

    def _context(self, index: int, job: Job) -> TaskContext:
        if index not in self.failed_at or not self.rules.avoid_failed_agent:
            return job.task
        return replace(job.task, avoid=job.task.avoid.union(self.failed_at[index][-1:]))

    def _end(self, worker: Worker, now: float, settled_by: Distributor) -> None:
        worker.work_until(now)
        found = worker.next_end()
        assert found is not None
        active = found[1]
        worker.active.remove(active)
        index, agent_id, task = active.index, worker.agent.agent_id, active.job.task
        self.ended_at[index] = now
        if active.fails:
            self._fail(index, agent_id, now)
        took = None if active.fails else now - self.starts[index]
        ended = (agent_id, task.task_type, took, active.load_at_start, task.expected_ms)
        if active.distributor is settled_by:
            self._learn(settled_by, ended, now)
        else:
            active.distributor.late.append(ended)
        self._changed(worker)
        self._read(settled_by, worker, now)
        self._tell(worker, settled_by, now)

    def _fail(self, index: int, agent_id: str, now: float) -> None:
        """Retry a task after a delay, or lose it."""
        failed_at = self.failed_at.setdefault(index, [])
        failed_at.append(agent_id)
        if len(failed_at) >= self.scenario.max_attempts:
            self.lost.add(index)
        else:
            limit = self.scenario.backoff_s * 2 ** (len(failed_at) - 1)
            heapq.heappush(self.retries, (now + self.chance.random() * limit, index))

    def _apply(self, change: Change) -> None:
        worker = self.workers[change.agent_id]
        worker.work_until(max(worker.at, change.at))
        worker.factor, worker.is_present = change.factor, change.is_present
        self._changed(worker)
        for distributor in self.distributors:
            self._read(distributor, worker, change.at)

    def _read(self, distributor: Distributor, worker: Worker, now: float) -> None:
        distributor.stamps[worker.agent.agent_id] = worker.stamp
        distributor.read(worker.agent.agent_id, len(worker.active), now, is_present=worker.is_present)

    def _changed(self, worker: Worker) -> None:
        """Determine the next end again."""
        worker.stamp += 1
        if (found := worker.next_end()) is not None:
            heapq.heappush(self.ends, (found[0], worker.agent.agent_id, worker.stamp))
