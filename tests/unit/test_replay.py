"""Recorded plans: what a distributor's view records is replayed with equal choices, and a change of it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from coord.models.agents import FleetAgent, LoadReport, Location
from coord.models.plans import PLANS_VERSION, PlanEntry, Plans, PlansHeader
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, Ejection, RecordedEntry, Recorder, Rules, TaskContext
from coord.placement.learning import Change, Sums
from coord.simulation import Replayed, read_plans, replay, write_plans
from workers.view import View

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

TYPES = ("ocr", "train")
POOLS = tuple(
    Pool(task_type, Requirements(capabilities=capabilities))
    for task_type in TYPES
    for capabilities in ((), ("gpu",), ("cpu",))
)


class Recording:
    """A view in which everything happens that happens in a distributor, and its recorder.

    Args:
        rules: of the cell.
        agents: number of agents.
        seed: of what happens.
    """

    def __init__(self, rules: Rules, agents: int = 8, seed: int = 1, *, full_scores: bool = False) -> None:
        self.random = Random(seed)
        self.view = View(0.5, "least_connections", Random(seed))
        self.view.configure(0.5, rules)
        self.view.full_scores = full_scores
        self.view.replace({row.agent_id: row for row in map(self.row, range(agents))})
        self.recorder = Recorder(self.view.learned, Random(seed))
        self.entries: list[RecordedEntry] = []
        self.chosen = 0
        self.full: list[str] = []

    def row(self, number: int) -> FleetAgent:
        """An agent."""
        random = self.random
        return FleetAgent(
            agent_id=f"a{number}",
            agent_type="worker",
            capabilities=frozenset({"cpu", *(("gpu",) if random.random() < 0.5 else ())}),
            capacity=random.randint(1, 4),
            weight=random.choice((0.0, 1.0, 2.5)),
            location=random.choice((None, Location(lat=random.uniform(-60, 60), lon=random.uniform(-90, 90)))),
            cpu=random.choice((None, random.random())),
        )

    def begin(self) -> None:
        """Begin a segment."""
        view = self.view
        self.recorder.begin(view.health_threshold, view.rules, view.type_rules, full_scores=view.full_scores)
        view.record(self.recorder)

    def task(self, pool: Pool) -> TaskContext:
        """A task of a pool; one in two is named."""
        random = self.random
        if random.random() < 0.5:
            return TaskContext(pool.task_type)
        return TaskContext(
            pool.task_type,
            location=random.choice((None, Location(lat=random.uniform(-60, 60), lon=random.uniform(-90, 90)))),
            affinity_key=random.choice((None, f"key {random.randint(0, 9)}")),
            avoid=frozenset(random.sample(sorted(self.view.agents), 2)) if random.random() < 0.3 else frozenset(),
        )

    def plan(self, tasks: int) -> None:
        """Plan some tasks, and make an entry of it."""
        for _ in range(tasks):
            pool = self.random.choice(POOLS)
            if (agent := self.view.take(self.view.group_of(pool), self.task(pool))) is not None:
                self.full.append(agent.agent_id)
        self.recorder.cut()
        self.entries += self.recorder.take()

    def happen(self) -> None:
        """Let something happen to the fleet."""
        random, view = self.random, self.view
        ids = sorted(view.agents)
        ended = [self.full.pop(random.randrange(len(self.full))) for _ in range(min(len(self.full), 6))]
        loads = {random.choice(ids): random.randint(0, 2)}
        view.answered({agent_id: ended.count(agent_id) for agent_id in ended}, loads)
        changes = [
            Change(agent_id, random.choice(TYPES), Sums.of([(random.uniform(0.1, 3), random.randint(0, 3))], failed))
            for agent_id in ended
            for failed in (random.randint(0, 1),)
        ]
        view.learned.add(changes, 1.0)
        match random.randrange(6):
            case 0:
                view.advance()
            case 1:
                view.apply_reports([LoadReport(random.choice(ids), random.random(), None, random.randint(0, 2), 0)])
            case 2 if len(ids) > 6:
                gone = random.choice(ids)
                view.update([gone], {})
                self.full = [agent_id for agent_id in self.full if agent_id != gone]
            case 3:
                new = self.row(random.randrange(len(ids) + 4))
                view.update([new.agent_id], {new.agent_id: new})
            case 4:
                ejection = Ejection(random.choice(ids), random.choice(TYPES), 30.0, 1.0, 0.0, 1)
                view.ejections.adopt(ejection, 1.0)
                view.apply_ejections([ejection.task_type])
            case _:
                view.suspend(random.choice(ids))

    def run(self, rounds: int = 60, tasks: int = 5) -> Recording:
        """Record some rounds."""
        for _ in range(rounds):
            self.plan(tasks)
            self.happen()
        return self

    @property
    def plans(self) -> Plans:
        """What was recorded, as it is read from a file."""
        return plans_of(self.entries)


def plans_of(entries: Iterable[RecordedEntry], by: str = "d1") -> Plans:
    """Entries of one distributor, as they are read from a file."""
    lines = [PlanEntry(PLANS_VERSION, 1, by, one.segment, one.number, msgspec.Raw(one.data)) for one in entries]
    return read_plans(write_plans(Plans(PlansHeader(PLANS_VERSION, 0, 2), tuple(lines))))


def recorded(rules: Rules, **options: Any) -> Recording:
    """A recording that began after something had happened."""
    recording = Recording(rules, **options).run(10)
    recording.begin()
    return recording.run()


def changed(plans: Plans, kind: str, change: Callable[[list[Any]], Any]) -> Plans:
    """The plans with each step of a kind changed; ``change`` gets the fields of a step without its name."""
    entries = []
    for entry in plans.entries:
        steps = msgspec.json.decode(entry.steps)
        for step in steps:
            if step[0] == kind:
                step[1:] = change(step[1:])
        entries.append(replace(entry, steps=msgspec.Raw(msgspec.json.encode(steps))))
    return replace(plans, entries=tuple(entries))


def replayed(plans: Plans) -> Replayed:
    """The result of a replay."""
    return replay(plans, STRATEGIES)


@pytest.mark.parametrize("rare_skills_first", [False, True])
@pytest.mark.parametrize("agents", [8, 120])
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_choice_is_equal(strategy: str, agents: int, rare_skills_first: bool) -> None:
    """Of each strategy, with all or some of the agents drawn, while agents come, go, fail, report and are ejected."""
    recording = recorded(Rules(strategy, rare_skills_first=rare_skills_first), agents=agents)
    found = replayed(recording.plans)
    assert found.first is None
    assert found.decisions == found.equal >= 200
    assert found.of_strategies == {strategy: found.decisions}
    assert (found.segments, found.skipped, found.ineligible) == (1, 0, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_choice_is_equal_with_full_scores(strategy: str) -> None:
    """Reading scores makes estimates of agents; the replay reads them as well."""
    found = replayed(recorded(Rules(strategy), full_scores=True).plans)
    assert found.decisions == found.equal >= 200
