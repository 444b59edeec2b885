"""``scripts/bench placement``: what a placement costs in the distributor's own path, without a server.

A ``View`` and a ``Planner`` do what they do in a distributor: plan a batch, apply its answer, and take over what
changed meanwhile. Between two batches tasks end and teach their times, agents report their load, loads are read again,
rows change, and an agent leaves and returns. The server is an object in memory that knows the true loads. Time is CPU
time of the thread.

What a placement costs again and again is one table. What the first plan for a new set of requirements costs, once, is
another: it looks at all agents with the rarest facet, and fills an index.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from msgspec.structs import replace

from coord.models.agents import FleetAgent, LoadReport, Location
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, Rules, SampledStrategy, TaskContext
from coord.placement.learning import Change, Sums
from workers.planner import Planner
from workers.transitions import TaskBatch
from workers.view import View

from .markdown import markdown

#: Goals, in µs per placement, and how many times the cost of 100 agents 10,000 may cost.
ORDERED_US, SAMPLED_US, GROWTH = 25.0, 60.0, 2.0
#: Placements planned at once, as many as end meanwhile.
BATCH = 64
#: Between two batches: reports, rows that change, agents that leave and return, loads that others changed.
REPORTS, ROWS, LEAVES, FOREIGN = 8, 2, 1, 16
#: Runs of which the cheapest counts: other processes on the machine only add to it.
RUNS = 5
CAPACITY = 4
CAPABILITIES = 20
TYPES = 4
SIZES = (100, 1_000, 10_000, 50_000)
ENDLESS = 1_000_000  # tasks waiting in each pool


@dataclass(frozen=True)
class Work:
    """The pools of a measurement."""

    name: str
    pools: int
    groups: int  #: sets of requirements


WORKS = (Work("1 pool", 1, 1), Work("1,000 pools", 1_000, 1), Work("1,000 pools, 20 sets of agents", 1_000, 20))


@dataclass(frozen=True)
class Cost:
    """What one placement costs, in µs."""

    strategy: str
    work: str
    agents: int
    plan_us: float  #: the plan: choosing the pool and the agent, with what a strategy does to take over changes
    all_us: float  #: with the answers and all changes in between


class Cell:
    """A view and a planner, and the true loads.

    Args:
        count: number of agents.
        work: the pools.
    """

    def __init__(self, count: int, work: Work) -> None:
        self.random = Random(7)
        self.count = count
        self.rows = {f"a{number}": self._agent(number) for number in range(count)}
        self.ids = list(self.rows)
        self.loads = {agent_id: row.load for agent_id, row in self.rows.items()}
        self.running = [agent_id for agent_id, load in self.loads.items() for _ in range(load)]
        self.view = View(0.5, "least_connections", self.random)
        self.view.replace({agent_id: replace(row) for agent_id, row in self.rows.items()})
        self.planner = Planner(self.view)
        self.away: list[str] = []
        self.pools: list[str] = []
        for number in range(work.pools):
            needs = (f"c{number % work.groups}",) if work.groups > 1 else ()
            definition = Pool(f"t{number % TYPES}", Requirements(capabilities=needs))
            self.pools.append(f"p{number}")
            self.planner.learn(f"p{number}", definition)
            self.planner.measure(f"p{number}", ENDLESS, float(number))
        for number in range(TYPES):
            self.view.learned.add((self._lesson(agent_id, f"t{number}") for agent_id in self.ids), time.monotonic())

    def _agent(self, number: int) -> FleetAgent:
        random = self.random
        return FleetAgent(
            agent_id=f"a{number}",
            agent_type="worker",
            capabilities=frozenset(f"c{(number + step * step) % CAPABILITIES}" for step in range(5)),
            capacity=CAPACITY,
            weight=random.choice((1.0, 1.0, 2.0, 4.0)),
            load=random.choice((0, 2, 3, 4)),
            cpu=random.random(),
            memory=random.random(),
            location=Location(lat=random.uniform(-60, 60), lon=random.uniform(-180, 180)),
            rev=1,
            report_interval=10.0,
        )

    def _lesson(self, agent_id: str, task_type: str) -> Change:
        return Change(agent_id, task_type, Sums.of([(self.random.lognormvariate(0, 1), self.random.randrange(4))]))

    def first_plans_ns(self, strategy: str) -> list[int]:
        """Return what the first plan for a new set of requirements costs: groups and indexes are made."""
        view = View(0.5, strategy, self.random)
        view.learned = self.view.learned
        view.replace({agent_id: replace(row) for agent_id, row in self.rows.items()})
        gc.collect()
        gc.freeze()
        found: list[int] = []
        for number in range(RUNS):
            pool = Pool("t0", Requirements(capabilities=(f"c{number}",)))
            begin = time.thread_time_ns()
            view.take(view.group_of(pool), TaskContext("t0"))
            found.append(time.thread_time_ns() - begin)
        return found

    def give_contexts(self, pools: Sequence[str]) -> None:
        """Give the tasks of each pool a location and an affinity key."""
        for pool in pools:
            waiting = self.planner.waiting[pool]
            location = Location(lat=self.random.uniform(-60, 60), lon=self.random.uniform(-180, 180))
            key = f"k{self.random.randrange(1_000)}"
            waiting.task = TaskContext(waiting.definition.task_type, location=location, affinity_key=key)

    def batch(self, *, with_context: bool) -> tuple[int, int, int]:
        """Plan one batch; return the placements, and the ns of the plan and of everything."""
        if with_context:
            self.give_contexts(self.pools[:1])
        begin = time.thread_time_ns()
        placements = self.planner.plan(BATCH)
        planned = time.thread_time_ns()
        words, loads = [], {}
        for one in placements:
            load = self.loads[one.agent_id]
            has_room = load < CAPACITY and one.agent_id not in self.away
            words.append("ASSIGNED" if has_room else "FULL")
            if has_room:
                self.loads[one.agent_id] = load + 1
                self.running.append(one.agent_id)
            loads[one.agent_id] = self.loads[one.agent_id]
        served = {one.pool: (ENDLESS, self.random.uniform(0, 1_000)) for one in placements}
        lessons, reports, rows = self._changes()
        answer = time.thread_time_ns()
        self.planner.answered(placements, TaskBatch(words, loads, served, 0, 0))
        self.planner.end_leases([one.lease for one in placements])
        self.view.apply_loads({change.agent_id: self.loads[change.agent_id] for change in lessons})
        self.view.learned.add(lessons, time.monotonic())
        self.view.apply_loads({agent_id: self.loads[agent_id] for agent_id in self.random.sample(self.ids, FOREIGN)})
        self.view.apply_reports(reports)
        self.view.update(rows, rows)
        ended = time.thread_time_ns()
        return len(placements), planned - begin, planned - begin + ended - answer

    def _changes(self) -> tuple[list[Change], list[LoadReport], dict[str, FleetAgent]]:
        """End tasks, and return what is learned, reported and changed."""
        random = self.random
        lessons = []
        for _ in range(min(BATCH, len(self.running))):
            at = random.randrange(len(self.running))
            self.running[at], self.running[-1] = self.running[-1], self.running[at]
            agent_id = self.running.pop()
            self.loads[agent_id] -= 1
            lessons.append(self._lesson(agent_id, f"t{random.randrange(TYPES)}"))
        reports = [
            LoadReport(agent_id, random.random(), random.random(), 0.0, 0)
            for agent_id in random.sample(self.ids, REPORTS)
        ]
        rows: dict[str, FleetAgent] = {}
        for agent_id in self.away:
            rows[agent_id] = replace(self.rows[agent_id], load=self.loads[agent_id])
        self.away = random.sample(self.ids, LEAVES)
        for agent_id in random.sample(self.ids, ROWS):
            rows[agent_id] = replace(
                self.rows[agent_id], load=self.loads[agent_id], health_score=random.uniform(0.6, 1)
            )
        for agent_id in self.away:
            rows[agent_id] = replace(self.rows[agent_id], load=self.loads[agent_id], active=False)
        return lessons, reports, rows


def is_sampled(name: str) -> bool:
    """Return True if a strategy scores a sample of the agents for each task."""
    return issubclass(STRATEGIES[name], SampledStrategy)


def goal_us(name: str) -> float:
    """Return what a placement under a strategy may cost, in µs."""
    return SAMPLED_US if is_sampled(name) else ORDERED_US


def measure(strategies: Sequence[str], sizes: Sequence[int], works: Sequence[Work], placements: int) -> list[Cost]:
    """Measure every strategy on every fleet and every kind of work."""
    found: list[Cost] = []
    for work in works:
        for size in sizes:
            cell = Cell(size, work)
            for name in strategies:
                cell.view.configure(0.5, Rules(name))
                found.append(_cost(cell, name, work, size, placements))
    return found


def _cost(cell: Cell, name: str, work: Work, size: int, placements: int) -> Cost:
    with_context = name in {"geographic", "consistent_hash"}
    if with_context:
        cell.give_contexts(cell.pools)
    done = 0
    while done < placements // 4:  # until groups and indexes are filled
        done += max(1, cell.batch(with_context=with_context)[0])
    for waiting in cell.planner.waiting.values():
        cell.view.bring_up_to_date(waiting.group)
    cell.view.advance()
    gc.collect()
    gc.freeze()  # as a distributor does once it has started
    runs: list[tuple[float, float]] = []
    for _ in range(RUNS):
        done = plan_ns = all_ns = 0
        while done < placements:
            count, plan, everything = cell.batch(with_context=with_context)
            done, plan_ns, all_ns = done + max(1, count), plan_ns + plan, all_ns + everything
        runs.append((plan_ns / done / 1_000, all_ns / done / 1_000))
    plan_us, all_us = (min(values) for values in zip(*runs, strict=True))
    return Cost(name, work.name, size, plan_us, all_us)


def measure_first(strategies: Sequence[str], sizes: Sequence[int]) -> dict[tuple[str, int], float]:
    """Return the ms of the first plan for a new set of requirements: (strategy, agents) -> ms."""
    found: dict[tuple[str, int], float] = {}
    for size in sizes:
        cell = Cell(size, WORKS[0])
        for name in strategies:
            found[name, size] = min(cell.first_plans_ns(name)) / 1_000_000
    return found


def misses(costs: Sequence[Cost]) -> list[str]:
    """Return a sentence for each figure that misses a goal."""
    found = [
        f"{cost.strategy}, {cost.work}, {cost.agents:,} agents: {cost.plan_us:.1f} µs, "
        f"goal {goal_us(cost.strategy):.0f}"
        for cost in costs
        if cost.plan_us > goal_us(cost.strategy)
    ]
    small = {(cost.strategy, cost.work): cost.plan_us for cost in costs if cost.agents == 100}
    for cost in costs:
        before = small.get((cost.strategy, cost.work))
        if cost.agents == 10_000 and before is not None and cost.plan_us > GROWTH * before:
            found.append(
                f"{cost.strategy}, {cost.work}: 10,000 agents cost {cost.plan_us / before:.1f} times what 100 cost, "
                f"goal {GROWTH:.0f}"
            )
    return found


def table(costs: Sequence[Cost], sizes: Sequence[int]) -> str:
    """Return the costs as a Markdown table: the plan, and with answers and changes."""
    of = {(cost.work, cost.strategy, cost.agents): cost for cost in costs}
    rows = [["work", "strategy", "goal", *(f"{size:,}" for size in sizes)]]
    for work, name in dict.fromkeys((cost.work, cost.strategy) for cost in costs):
        cells = [of[work, name, size] for size in sizes]
        rows.append([work, name, f"{goal_us(name):.0f}", *(f"{one.plan_us:.1f} ({one.all_us:.1f})" for one in cells)])
    return markdown(rows, texts=2)


def first_table(first: Mapping[tuple[str, int], float], sizes: Sequence[int]) -> str:
    """Return what the first plan for a new set of requirements costs as a Markdown table."""
    rows = [["strategy", *(f"{size:,}" for size in sizes)]]
    names = dict.fromkeys(strategy for strategy, _ in first)
    return markdown([*rows, *([name, *(f"{first[name, size]:.1f}" for size in sizes)] for name in names)])


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the table and the figures that miss a goal."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench placement",
        description="Measure the µs of CPU that a placement costs a distributor, for every strategy, without a server.",
    )
    parser.add_argument("--quick", action="store_true", help="small sizes: a test of the benchmark, not a measurement")
    parser.add_argument(
        "--strategy", action="append", choices=list(STRATEGIES), help="only this one; may be repeated (default: all)"
    )
    parser.add_argument(
        "--agents",
        action="append",
        type=int,
        choices=SIZES,
        help="only this fleet size; may be repeated (default: all)",
    )
    options = parser.parse_args(arguments)
    sizes = options.agents or (SIZES[:2] if options.quick else SIZES)
    placements = 128 if options.quick else 2_000
    strategies = options.strategy or list(STRATEGIES)
    costs = measure(strategies, sizes, WORKS, placements)
    print("µs of CPU for a placement: the plan (with answers and changes), by the number of agents\n")
    print(table(costs, sizes))
    print(
        "\nms of CPU, once, for a new set of requirements that a quarter of the agents meet, by the number of agents\n"
    )
    print(first_table(measure_first(strategies, sizes), sizes))
    missed = misses(costs)
    print(f"\n{len(missed)} figures miss a goal" + (":" if missed else "."))
    for line in missed:
        print(f"* {line}")
    return 0
