"""One run of a scenario under one strategy, on a virtual clock.

As in a distributor, agents that meet the same requirements are a group with a strategy of its own, which holds those
that have room; the group whose first task has waited longest is served first. What ends is learned at once.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Mapping
from random import Random

from msgspec import Struct

from coord.models.agents import FleetAgent
from coord.placement import STRATEGIES, Learned, Rules, Strategy, create_strategy
from coord.simulation.scenario import Change, Job, Scenario, SimulatedAgent

#: Seconds between two times at which what was learned of idle agents decays, as in a distributor.
ADVANCE_S = 0.25
#: Seconds between two times at which the demand for capabilities is determined.
DEMAND_S = 1.0


class Run(Struct, frozen=True):
    """What happened to the tasks of a scenario, in the order of their arrival."""

    starts: tuple[float, ...]  #: seconds
    ends: tuple[float, ...]
    agents: tuple[str, ...]  #: the agent of each task
    placed: tuple[int, ...]  #: the tasks in the order of their placement
    exponent: float = 0.0  #: the load exponent that was learned


class Active(Struct):
    """A task on an agent."""

    index: int
    job: Job
    left: float
    load_at_start: int


class Worker:
    """An agent and what it does."""

    def __init__(self, agent: SimulatedAgent) -> None:
        self.agent = agent
        self.row = FleetAgent(
            agent_id=agent.agent_id,
            agent_type="worker",
            capabilities=agent.capabilities,
            capacity=agent.capacity,
            weight=agent.weight,
            location=agent.location,
        )
        self.active: list[Active] = []
        self.groups: list[Group] = []
        self.factor = 1.0
        self.at = 0.0  # when ``left`` of its tasks was true
        self.stamp = 0  # of its next end; those of before are outdated
        self.is_present = True

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


class Group:
    """The agents that meet the same requirements, and the tasks that wait for one of them."""

    def __init__(self, capabilities: frozenset[str], strategy: Strategy) -> None:
        self.capabilities = capabilities
        self.strategy = strategy
        self.waiting: deque[int] = deque()
        self.taken = 0


def simulate(
    scenario: Scenario,
    rules: Rules,
    seed: int,
    strategies: Mapping[str, type[Strategy]] = STRATEGIES,
) -> Run:
    """Run a scenario.

    Args:
        scenario: the fleet and its tasks.
        rules: the strategy and the modifiers; ``ejection`` has no effect, because no attempt fails here.
        seed: of the strategies.
        strategies: name -> class.

    Raises:
        ValueError: no agent may ever do one of the tasks.
    """
    return _Simulation(scenario, rules, seed, strategies).run()


class _Simulation:
    def __init__(self, scenario: Scenario, rules: Rules, seed: int, strategies: Mapping[str, type[Strategy]]) -> None:
        self.scenario = scenario
        self.learned = Learned()
        self.workers = {agent.agent_id: Worker(agent) for agent in scenario.agents}
        self.groups: dict[frozenset[str], Group] = {}
        self.owners: dict[str, int] = {}  # capability -> agents that have it
        for agent in scenario.agents:
            for name in agent.capabilities:
                self.owners[name] = self.owners.get(name, 0) + 1
        random = Random(seed)
        for job in scenario.jobs:
            if job.capabilities not in self.groups:
                strategy = create_strategy(rules, strategies, random, self.learned)
                self._add_group(Group(job.capabilities, strategy))
        self.ends: list[tuple[float, str, int]] = []
        count = len(scenario.jobs)
        self.starts, self.ended_at, self.agent_of = [0.0] * count, [0.0] * count, [""] * count
        self.placed: list[int] = []
        self.advance_at = self.demand_at = 0.0

    def _add_group(self, group: Group) -> None:
        self.groups[group.capabilities] = group
        members = [worker for worker in self.workers.values() if group.capabilities <= worker.agent.capabilities]
        if not members:
            raise ValueError(f"no agent has the capabilities {', '.join(sorted(group.capabilities))}")
        for worker in members:
            worker.groups.append(group)
            group.strategy.offer(worker.row)

    def run(self) -> Run:
        jobs, changes = self.scenario.jobs, deque(self.scenario.changes)
        index = 0
        while index < len(jobs) or self.ends:
            arrives = jobs[index].arrived if index < len(jobs) else float("inf")
            ends = self.ends[0][0] if self.ends else float("inf")
            if changes and changes[0].at <= min(arrives, ends):
                now = changes[0].at
                self._apply(changes.popleft())
            elif ends <= arrives:
                now, agent_id, stamp = heapq.heappop(self.ends)
                if self.workers[agent_id].stamp != stamp:
                    continue
                self._end(self.workers[agent_id], now)
            else:
                now = arrives
                self.groups[jobs[index].capabilities].waiting.append(index)
                index += 1
            self._advance(now)
            self._place(now)
            if index == len(jobs) and not self.ends and changes:
                changes = self._return_next(changes)
        if len(self.placed) < len(jobs):
            raise ValueError("tasks still wait at the end, because agents that may do them are gone")
        return Run(
            tuple(self.starts), tuple(self.ended_at), tuple(self.agent_of), tuple(self.placed), self.learned.exponent
        )

    def _return_next(self, changes: deque[Change]) -> deque[Change]:
        """Apply the changes that are left: an agent that returns may do what still waits."""
        for change in changes:
            self._apply(change)
            self._place(change.at)
        return deque()

    def _advance(self, now: float) -> None:
        """Let what was learned decay, as the view of a distributor does."""
        if now >= self.advance_at:
            self.learned.advance(now)
            self.advance_at = now + ADVANCE_S
        if now >= self.demand_at:
            demand = self.learned.demand
            for group in self.groups.values():
                demand.add(group.capabilities, group.taken)
                group.taken = 0
            demand.update({name: self.owners.get(name, 0) for name in demand.capabilities}, now)
            self.demand_at = now + DEMAND_S

    def _place(self, now: float) -> None:
        jobs = self.scenario.jobs
        while True:
            ready = [group for group in self.groups.values() if group.waiting and group.strategy.has_room]
            if not ready:
                return
            group = min(ready, key=lambda group: group.waiting[0])
            index = group.waiting[0]
            agent_id = group.strategy.choose(jobs[index].task)
            if agent_id is None:
                return
            group.waiting.popleft()
            group.taken += 1
            worker = self.workers[agent_id]
            worker.work_until(now)
            self.starts[index], self.agent_of[index] = now, agent_id
            self.placed.append(index)
            worker.active.append(Active(index, jobs[index], jobs[index].work, len(worker.active)))
            self._changed(worker)

    def _end(self, worker: Worker, now: float) -> None:
        worker.work_until(now)
        found = worker.next_end()
        assert found is not None
        active = found[1]
        worker.active.remove(active)
        self.ended_at[active.index] = now
        service_s = now - self.starts[active.index]
        self.learned.succeeded(worker.row.agent_id, active.job.task.task_type, service_s, active.load_at_start, now)
        self._changed(worker)

    def _apply(self, change: Change) -> None:
        worker = self.workers[change.agent_id]
        worker.work_until(max(worker.at, change.at))
        worker.factor, worker.is_present = change.factor, change.is_present
        self._changed(worker)

    def _changed(self, worker: Worker) -> None:
        """Determine the next end again, and let the strategies know of the load."""
        worker.stamp += 1
        row = worker.row
        row.load = len(worker.active)
        if (found := worker.next_end()) is not None:
            heapq.heappush(self.ends, (found[0], row.agent_id, worker.stamp))
        for group in worker.groups:
            if worker.is_present and row.load < row.capacity:
                group.strategy.offer(row)
            else:
                group.strategy.withdraw(row.agent_id)
