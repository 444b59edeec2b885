"""Recorded plans: what a distributor's view records is replayed with equal choices, and a change of it is found."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from random import Random
from typing import Any

import msgspec
import pytest
from msgspec.structs import replace

from coord.errors import ConfigError
from coord.models.agents import FleetAgent, LoadReport, Location
from coord.models.plans import PLANS_VERSION, PlanEntry, Plans, PlansHeader
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, Ejection, OrderedStrategy, RecordedEntry, Recorder, Rules, TaskContext
from coord.placement.learning import Change, Sums
from coord.placement.plan_format import Begun, decode_steps
from coord.simulation import Replayed, read_plans, replay, write_plans
from coord.simulation.replay import Counts, Segment
from tests.living import run_coord
from workers.view import View

#: typer 0.21 imports names from click that click 8.5 calls deprecated.
pytestmark = pytest.mark.filterwarnings("ignore:.*will be removed in Click 9.0:DeprecationWarning")

TYPES = ("ocr", "train")
SKILLS = ("cpu", "gpu", "tpu")
POOLS = tuple(
    Pool(task_type, Requirements(capabilities=capabilities))
    for task_type in TYPES
    for capabilities in ((), *((name,) for name in SKILLS))
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
            capabilities=frozenset(random.sample(SKILLS, random.randint(1, 3))),
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
            group = self.view.group_of(pool)
            if (agent := self.view.take(group, self.task(pool))) is not None:
                group.taken += 1
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


@pytest.mark.parametrize("full_scores", [False, True])
@pytest.mark.parametrize("strategy", ["least_response_time", "predictive", "prequal"])
def test_what_was_learned_is_the_same_to_the_last_digit(strategy: str, full_scores: bool) -> None:
    """The estimates as well, which are made when a strategy reads them: a replay reads them at the same time."""
    recording = recorded(Rules(strategy), full_scores=full_scores)
    recording.plan(5)
    entries = recording.plans.entries
    steps = decode_steps(entries[0].steps)
    begun = steps.pop(0)
    assert isinstance(begun, Begun)
    segment = Segment(begun, STRATEGIES, Counts())
    segment.run(entries[0], steps)
    for entry in entries[1:]:
        segment.run(entry, decode_steps(entry.steps))
    assert segment.learned.state == recording.view.learned.state


def test_a_changed_seed_is_found() -> None:
    """The first difference names both agents; the choices whose seed is right stay equal."""
    plans = recorded(Rules("random")).plans
    found = replayed(changed(plans, "seed", lambda step: [step[0] + 1]))
    assert found.first is not None
    assert found.equal < found.decisions
    first = found.first
    assert (first.by, first.strategy) == ("d1", "random")
    assert first.recorded != first.replayed
    assert first.text == f"recorded {first.recorded}, replayed {first.replayed}"


@pytest.mark.parametrize(
    ("strategy", "kind", "change"),
    [
        ("least_connections", "offer", lambda step: [step[0], step[1], 3 - step[2]]),
        ("weighted_round_robin", "agent", lambda step: [step[0], step[1] | {"weight": 1 + step[0]}]),
        ("predictive", "learn", lambda step: [step[0], []]),
        ("capability_based", "demand", lambda step: [step[0], {"tpu": 500.0}, {"tpu": 1}]),
        ("geographic", "task", lambda step: [{"task_type": step[0].get("task_type", ""), "affinity_key": "k"}]),
        ("consistent_hash", "task", lambda _: [{"affinity_key": "k"}]),
    ],
)
def test_a_changed_view_is_found(strategy: str, kind: str, change: Callable[[list[Any]], Any]) -> None:
    """Loads, properties of agents, learned times, demand, and what is known of a task."""
    found = replayed(changed(recorded(Rules(strategy), agents=40).plans, kind, change))
    assert found.first is not None
    assert found.equal < found.decisions


def test_the_scores_of_both_agents_are_shown() -> None:
    """With every term: the load of an agent that was chosen although it had more tasks than another."""
    plans = recorded(Rules("least_connections")).plans
    first = replayed(changed(plans, "offer", lambda step: [step[0], step[1], 3 - step[2]])).first
    assert first is not None
    scores = {one.agent_id: one for one in first.candidates}
    assert set(scores) == {first.recorded, first.replayed}
    assert first.recorded is not None
    assert first.replayed is not None
    assert scores[first.replayed].score <= scores[first.recorded].score
    for one in first.candidates:
        terms = one.terms
        assert one.score == (terms["in_flight"] + terms["outside_load"] + 1) / (terms["weight"] or 1e-6)


def test_an_agent_that_does_not_meet_the_requirements_is_found() -> None:
    """Strategies do not see requirements, so the replay checks them."""
    found = replayed(changed(recorded(Rules("random")).plans, "agent", lambda step: [step[0], step[1] | _NO_SKILLS]))
    assert found.ineligible > 0
    assert found.first is not None
    assert found.first.text.endswith("was offered, but does not meet the requirements: no_capability")


_NO_SKILLS: dict[str, Any] = {"capabilities": []}


def test_a_replay_begins_at_the_first_snapshot_that_is_whole() -> None:
    """The log was trimmed in the middle of a segment; an entry is missing in another one."""
    recording = recorded(Rules("power_of_two"))
    recording.view.configure(0.5, Rules("prequal"))
    recording.begin()
    recording.run()
    entries = recording.plans.entries
    last = [one for one in entries if one.segment == 1]
    whole = replayed(recording.plans)
    assert (whole.segments, whole.equal) == (2, whole.decisions)
    assert set(whole.of_strategies) == {"power_of_two", "prequal"}

    trimmed = replayed(replace(recording.plans, entries=entries[7:]))
    assert trimmed.first is None
    assert (trimmed.segments, trimmed.skipped) == (1, len(entries) - len(last) - 7)
    assert set(trimmed.of_strategies) == {"prequal"}

    with_gap = replayed(replace(recording.plans, entries=tuple(one for one in entries if one is not last[20])))
    assert with_gap.first is None
    assert (with_gap.segments, with_gap.skipped) == (2, len(last) - 21)
    assert 0 < with_gap.of_strategies["prequal"] < whole.of_strategies["prequal"]


def test_several_distributors_in_one_file_are_replayed_apart() -> None:
    """Their entries alternate; each has its own segments."""
    one, other = (recorded(Rules("predictive"), seed=seed) for seed in (1, 2))
    entries: list[PlanEntry] = []
    for pair in zip(plans_of(one.entries, "d1").entries, plans_of(other.entries, "d2").entries, strict=False):
        entries += pair
    found = replayed(Plans(PlansHeader(PLANS_VERSION, 0, 2), tuple(entries)))
    assert found.first is None
    assert (found.distributors, found.segments) == (2, 2)
    assert found.equal >= 400


def test_an_idle_cell_records_nothing() -> None:
    """The times at which nothing happened are one step; they do not push the choices out of the log."""
    recording = recorded(Rules("predictive"))
    recording.recorder.begin(0.5, recording.view.rules, {})
    recording.view.learned.demand.update({}, 1e9)  # what was in demand is forgotten
    recording.recorder.take()
    for number in range(100):
        recording.view.learned.demand.update({}, 1e9 + number)
        recording.view.learned.advance(1e9 + number)
    recording.recorder.cut()
    assert recording.recorder.take() == []
    recording.view.record(recording.recorder)
    recording.full.clear()
    recording.view.apply_loads(dict.fromkeys(recording.view.agents, 0))
    recording.plan(1)
    kinds = [step[0] for step in msgspec.json.decode(recording.entries[-1].data)]
    assert kinds.count("time") == 1
    assert kinds.count("choose") == 1


def test_nothing_is_recorded_when_it_is_off() -> None:
    """Strategies are themselves, and nothing observes what is learned."""
    recording = Recording(Rules("least_connections")).run(3)
    group = recording.view.group_of(POOLS[0])
    assert isinstance(group.strategy, OrderedStrategy)
    recording.begin()
    assert not isinstance(recording.view.group_of(POOLS[0]).strategy, OrderedStrategy)
    recording.recorder.end()
    recording.view.record(None)
    assert isinstance(recording.view.group_of(POOLS[0]).strategy, OrderedStrategy)
    assert recording.view.learned.observer is None
    assert recording.view.learned.demand.observer is None


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "the file has no recorded plans: it has no header; make one with coord trace plans"),
        (b"{", "line 1 of the file does not fit"),
        (b'{"line":"plans","version":7,"begin":0,"end":1}', "line 1 of the file has version 7; this coord reads"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(data: bytes, words: str) -> None:
    """The message names the line."""
    with pytest.raises(ConfigError, match=words):
        read_plans(data)


def test_a_step_that_does_not_fit_is_refused() -> None:
    """The message names the entry; also if it names an agent that does not exist."""
    plans = recorded(Rules("random")).plans
    for kind, change in (("choose", lambda step: [step[0], 10_000, 0]), ("offer", lambda _: ["x"])):
        with pytest.raises(ConfigError, match=r"entry \d+ of segment 0 of distributor d1 does not fit"):
            replayed(changed(plans, kind, change))


def test_a_strategy_that_is_not_installed_is_named() -> None:
    """The next step is to install its package."""
    with pytest.raises(ConfigError, match="the strategy 'random' of the recorded plans is not installed here"):
        replay(recorded(Rules("random")).plans, {"prequal": STRATEGIES["prequal"]})


def test_the_command_says_whether_all_choices_are_equal(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0 or 1, with the first difference; 2 if nothing can be replayed."""
    monkeypatch.setenv("COLUMNS", "200")
    plans = recorded(Rules("least_connections")).plans
    path = tmp_path / "plans.jsonl"
    path.write_bytes(write_plans(plans))
    number = replayed(plans).decisions
    found = run_coord(capsys, monkeypatch, "simulate", "replay", str(path))
    assert (found.code, found.out) == (0, f"{number:,} of {number:,} choices are equal\n")
    found = run_coord(capsys, monkeypatch, "simulate", "replay", str(path), "--json")
    assert (found.code, found.json["equal"], found.json["first"]) == (0, number, None)

    path.write_bytes(write_plans(changed(plans, "offer", lambda step: [step[0], step[1], 3 - step[2]])))
    found = run_coord(capsys, monkeypatch, "simulate", "replay", str(path))
    assert found.code == 1
    assert "first difference" in found.out
    assert "in_flight" in found.out

    path.write_bytes(write_plans(replace(plans, entries=plans.entries[1:])))
    found = run_coord(capsys, monkeypatch, "simulate", "replay", str(path))
    assert found.code == 2
    assert "has no choices that can be replayed" in found.err
