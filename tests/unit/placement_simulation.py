"""A small simulation of a fleet on a virtual clock, with one distributor: how good the choices of a strategy are.

Tasks arrive at random and wait in one queue. Whenever a task waits and an agent has room, the strategy chooses. An
agent works on its tasks at once; if they share its CPU, all of them slow down. Everything is seeded.
"""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass, field
from math import exp
from random import Random

from coord.models.agents import FleetAgent
from coord.placement import Learned, Strategy, TaskContext

#: Share of the tasks, at the start, that do not count: nothing is learned yet.
WARM_UP = 0.25


@dataclass(frozen=True)
class Regime:
    """A fleet and its work."""

    speeds: tuple[tuple[float, ...], ...]  # of each agent, for each task type
    slots: int = 4
    load: float = 0.8  # of what the fleet can do if the types of tasks are placed without regard to them
    shared_cpu: bool = False  # the slots of an agent share one CPU
    tail: float = 0.0  # sigma of log-normal work; 0: exponential
    slowed: tuple[float, float, float] | None = None  # agent 0 has this speed, from one share of the tasks to another
    churn: float = 0.0  # probability at each arrival that an agent leaves or returns
    tasks: int = 2_000


@dataclass
class Job:
    """A task."""

    kind: int
    arrived: float
    work: float
    placed: float = 0.0
    left: float = 0.0
    load_at_start: int = 0


@dataclass
class Worker:
    """An agent and what it does."""

    row: FleetAgent
    speeds: tuple[float, ...]
    jobs: list[Job] = field(default_factory=list)
    at: float = 0.0  # when ``left`` of its jobs was true
    stamp: int = 0  # of its next completion; those of before are outdated
    present: bool = True


def arrivals(regime: Regime, seed: int) -> list[Job]:
    """The tasks, the same for every strategy."""
    random = Random(seed)
    kinds = len(regime.speeds[0])
    parallel = 1 if regime.shared_cpu else regime.slots
    rate = regime.load * parallel * sum(kinds / sum(1 / speed for speed in speeds) for speeds in regime.speeds)
    found: list[Job] = []
    now = 0.0
    for _ in range(regime.tasks):
        now += random.expovariate(rate)
        sigma = regime.tail
        work = exp(random.gauss(-sigma * sigma / 2, sigma)) if sigma else random.expovariate(1.0)
        found.append(Job(random.randrange(kinds), now, max(work, 1e-3)))
    return found


def simulate(regime: Regime, strategy_class: type[Strategy], seed: int) -> list[float]:
    """Return the response times of the tasks after the warm-up, in the order of their arrival."""
    return Simulation(regime, strategy_class, seed).run()


class Simulation:
    """One run."""

    def __init__(self, regime: Regime, strategy_class: type[Strategy], seed: int) -> None:
        self.regime = regime
        self.learned = Learned()
        self.strategy = strategy_class(Random(seed), self.learned)
        self.random = Random(seed + 1)
        self.jobs = arrivals(regime, seed)
        self.workers = {
            f"a{number}": Worker(FleetAgent(agent_id=f"a{number}", agent_type="worker", capacity=regime.slots), speeds)
            for number, speeds in enumerate(regime.speeds)
        }
        self.normal = self.workers["a0"].speeds
        self.waiting: deque[Job] = deque()
        self.ends: list[tuple[float, str, int]] = []
        self.responses: dict[int, float] = {}
        self.placed: list[str] = []  # the agent of each task, in the order of placement
        self.next_advance = 0.0

    def run(self) -> list[float]:
        """Run until all tasks are done."""
        for worker in self.workers.values():
            self.strategy.offer(worker.row)
        index = 0
        while index < len(self.jobs) or self.ends:
            arrives = self.jobs[index].arrived if index < len(self.jobs) else float("inf")
            if self.ends and self.ends[0][0] <= arrives:
                now, agent_id, stamp = heapq.heappop(self.ends)
                worker = self.workers[agent_id]
                if worker.stamp != stamp:
                    continue
                self._finish(worker, now)
            else:
                now = arrives
                self.waiting.append(self.jobs[index])
                self._change(index, now)
                index += 1
            if now >= self.next_advance:
                self.learned.advance(now)
                self.next_advance = now + 0.25
            self._place(now)
        first = int(WARM_UP * len(self.jobs))
        return [self.responses[id(job)] for job in self.jobs[first:]]

    def _place(self, now: float) -> None:
        while self.waiting:
            job = self.waiting[0]
            agent_id = self.strategy.choose(TaskContext(f"t{job.kind}"))
            if agent_id is None:
                return
            self.waiting.popleft()
            worker = self.workers[agent_id]
            assert worker.present
            assert len(worker.jobs) < self.regime.slots
            self._work(worker, now)
            job.placed, job.left, job.load_at_start = now, job.work, len(worker.jobs)
            worker.jobs.append(job)
            self.placed.append(agent_id)
            self._changed(worker)

    def _finish(self, worker: Worker, now: float) -> None:
        self._work(worker, now)
        job = min(worker.jobs, key=lambda one: one.left / worker.speeds[one.kind])
        worker.jobs.remove(job)
        self.responses[id(job)] = now - job.arrived
        self.learned.succeeded(worker.row.agent_id, f"t{job.kind}", now - job.placed, job.load_at_start, now)
        self._changed(worker)

    def _work(self, worker: Worker, now: float) -> None:
        """Let the agent work until now."""
        done = (now - worker.at) / self._share(worker)
        for job in worker.jobs:
            job.left -= done * worker.speeds[job.kind]
        worker.at = now

    def _share(self, worker: Worker) -> int:
        return max(1, len(worker.jobs)) if self.regime.shared_cpu else 1

    def _changed(self, worker: Worker) -> None:
        """Determine the next completion again, and tell the strategy."""
        worker.stamp += 1
        row = worker.row
        row.load = len(worker.jobs)
        if worker.jobs:
            left = min(job.left / worker.speeds[job.kind] for job in worker.jobs)
            ends_at = worker.at + max(0.0, left) * self._share(worker)
            heapq.heappush(self.ends, (ends_at, row.agent_id, worker.stamp))
        if worker.present and row.load < row.capacity:
            self.strategy.offer(row)
        else:
            self.strategy.withdraw(row.agent_id)

    def _change(self, index: int, now: float) -> None:
        """Let an agent slow down or recover, leave or return."""
        if self.regime.slowed is not None:
            speed, begins, ends = self.regime.slowed
            share = index / len(self.jobs)
            worker = self.workers["a0"]
            speeds = (speed,) * len(self.normal) if begins <= share < ends else self.normal
            if speeds != worker.speeds:
                self._work(worker, now)
                worker.speeds = speeds
                self._changed(worker)
        if self.regime.churn and self.random.random() < self.regime.churn:
            worker = self.workers[self.random.choice(sorted(self.workers))]
            worker.present = not worker.present or sum(one.present for one in self.workers.values()) <= 12
            self._work(worker, now)
            self._changed(worker)


def oracle(regime: Regime, seed: int) -> float:
    """Return the mean response of the better of two greedy oracles, for independent slots.

    One gives each task to the slot that is free first (the fastest of several), the other to the slot where it ends
    first. Both know all times beforehand. Neither is the optimum.
    """
    means: list[float] = []
    for by_end in (False, True):
        free = [[0.0] * regime.slots for _ in regime.speeds]  # heaps
        responses: list[float] = []
        for job in arrivals(regime, seed):
            starts = [max(job.arrived, slots[0]) for slots in free]
            ends = [start + job.work / speeds[job.kind] for start, speeds in zip(starts, regime.speeds, strict=True)]
            keys = list(zip(ends if by_end else starts, ends, strict=True))
            chosen = keys.index(min(keys))
            heapq.heapreplace(free[chosen], ends[chosen])
            responses.append(ends[chosen] - job.arrived)
        means.append(mean(responses[int(WARM_UP * len(responses)) :]))
    return min(means)


def mean(values: list[float]) -> float:
    """The arithmetic mean."""
    return sum(values) / len(values)


def percentile(values: list[float], share: float) -> float:
    """The value that this share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


#: 16 agents, the fastest 8 times as fast as the slowest.
MIXED = tuple((1.0 * 8 ** (number / 15),) for number in range(16))
#: 16 agents that are all alike.
ALIKE = ((1.0,),) * 16
#: 16 agents, each 8 times as fast for one of two types.
TWO_TYPES = (((8.0, 1.0),) * 8) + (((1.0, 8.0),) * 8)

REGIMES: dict[str, Regime] = {
    "alike": Regime(ALIKE),
    "speeds of 1x to 8x": Regime(MIXED, tasks=4_000),
    "speeds, 1 slot": Regime(MIXED, slots=1, load=0.5),
    "speeds, 32 slots": Regime(MIXED, slots=32, tasks=5_000),
    "two types": Regime(TWO_TYPES),
    "heavy tails": Regime(MIXED, tail=1.5),
    "a shared CPU": Regime(ALIKE, shared_cpu=True),
    "speeds and a shared CPU": Regime(MIXED, shared_cpu=True, tasks=4_000),
    "one agent slows down": Regime(((4.0,),) * 16, slowed=(0.4, 0.4, 0.7)),
    "churn": Regime(MIXED, churn=0.02, load=0.6),
}
