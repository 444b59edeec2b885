"""The scores that a strategy shows of the agents that it has considered: complete, with no effect on its choices."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import msgspec
import pytest
from msgspec.structs import replace

from coord.models.agents import FleetAgent, Location
from coord.models.explanations import Candidate
from coord.models.tasks import Pool
from coord.placement import (
    STRATEGIES,
    GuardedStrategy,
    Learned,
    Recorder,
    Rules,
    Strategy,
    TaskContext,
    create_strategy,
    full_scores,
)
from coord.placement.load import LeastConnections
from workers.planner import Planner
from workers.view import View

LOAD = {"in_flight", "outside_load", "weight"}
TIMES = {"service_s", "shrunk_service_s", "failure_rate", "load_exponent", "load_term"}
#: What the score of each strategy is made of.
TERMS = {
    "least_connections": LOAD,
    "round_robin": {"turn", "step"},
    "weighted_round_robin": {"turn", "step"},
    "resource_based": LOAD | {"cpu", "capacity", "placed_since_report"},
    "geographic": LOAD | {"distance_km"},
    "random": LOAD,
    "power_of_two": LOAD,
    "least_response_time": LOAD | TIMES,
    "capability_based": LOAD | {"demand", "capabilities"},
    "predictive": LOAD | TIMES,
    "prequal": LOAD | TIMES | {"is_hot"},
    "consistent_hash": LOAD | {"owns_key", "most_tasks"},
}
TASK = TaskContext("t", location=Location(lat=10, lon=10), affinity_key="k")


class Explained(msgspec.Struct):
    """An explanation with full scores."""

    candidates: list[Candidate]
    view_version: int
    seed: int


def fleet(count: int) -> dict[str, FleetAgent]:
    """Agents that differ in everything."""
    return {
        f"a{n}": FleetAgent(
            agent_id=f"a{n}",
            agent_type="worker",
            capabilities=frozenset({"cpu", f"c{n % 3}"}),
            capacity=100,
            load=n % 4,
            weight=1 + n % 2,
            cpu=0.01 * n,
            location=Location(lat=n % 80, lon=n % 80),
        )
        for n in range(count)
    }


def learned() -> Learned:
    """What is known of some agents."""
    found = Learned()
    for n in range(6):
        for _ in range(3):
            found.succeeded(f"a{n}", "t", 0.5 + n, n % 3, 1.0)
        found.failed(f"a{n}", "t", 1.0)
    return found


def choices(name: str, count: int, look: Callable[[Strategy, str], None], *, rare_skills_first: bool) -> list[str]:
    """Forty choices; ``look`` is called after each."""
    rows = fleet(count)
    rules = Rules(name, rare_skills_first=rare_skills_first)
    strategy = create_strategy(rules, STRATEGIES, Random(1), learned())
    for row in rows.values():
        strategy.offer(row)
    found: list[str] = []
    for _ in range(40):
        agent_id = strategy.choose(TASK)
        assert agent_id is not None
        look(strategy, agent_id)
        rows[agent_id].load += 1
        strategy.offer(rows[agent_id])
        found.append(agent_id)
    return found


@pytest.mark.parametrize("rare_skills_first", [False, True])
@pytest.mark.parametrize("count", [1, 12, 200])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_best_agents_are_shown(name: str, count: int, rare_skills_first: bool) -> None:
    """Each once with all terms, the chosen one among them; showing them changes no choice."""
    rows = fleet(count)
    rare = rare_skills_first or name == "capability_based"

    def look(strategy: Strategy, chosen: str) -> None:
        found = strategy.candidates(TASK, count, rows.__getitem__)
        ids = [one.agent_id for one in found]
        assert chosen in ids
        assert len(set(ids)) == len(ids)
        for one in found:
            assert one.terms.keys() == TERMS[name] | ({"demand", "capabilities"} if rare else set())
        if not rare and name != "consistent_hash":
            assert [one.score for one in found] == sorted(one.score for one in found)
        assert found[:3] == strategy.candidates(TASK, 3, rows.__getitem__)

    shown = choices(name, count, look, rare_skills_first=rare_skills_first)
    assert shown == choices(name, count, lambda *_: None, rare_skills_first=rare_skills_first)


@pytest.mark.parametrize("problem", [None, "raises", "returns something else"])
def test_a_users_strategy_may_show_scores(problem: str | None) -> None:
    """What is wrong with them is not shown, and its choices count all the same."""

    class Own(LeastConnections):
        name = "own"

        def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
            if problem == "raises":
                raise ValueError(problem)
            return [problem] if problem else super().candidates(task, most, row_of)  # type: ignore[list-item]

    failures: list[str] = []
    strategy = GuardedStrategy.around(Own, lambda name, what: failures.append(f"{name}: {what}"))(Random(1))
    rows = fleet(3)
    for row in rows.values():
        strategy.offer(row)
    assert strategy.choose(TASK) is not None
    assert len(strategy.candidates(TASK, 2, rows.__getitem__)) == (0 if problem else 2)
    assert (failures, strategy.fallback) == ([], None)


@pytest.mark.parametrize("full_scores", [False, True])
def test_explanations_are_shared_and_short_unless_full_scores_are_asked_for(full_scores: bool) -> None:
    """Below 200 bytes, one for all tasks of a plan; else one for each, with the agent that got the task first."""
    view = View(0.5, "predictive", Random(1))
    view.full_scores = full_scores
    view.replace(fleet(12))
    view.learned = learned()
    planner = Planner(view)
    planner.define("p", Pool("t"))
    planner.expect("p", 10, 1.0)
    placements = planner.plan(10)
    assert len(placements) == 10
    if not full_scores:
        assert {len(placement.explanation) < 200 for placement in placements} == {True}
        assert len({placement.explanation for placement in placements}) == 1
        return
    for placement in placements:
        best = msgspec.json.decode(placement.explanation, type=Explained).candidates
        assert best[0].agent_id == placement.agent_id
        assert len(best) == 3
        assert best[0].terms["in_flight"] == placement.load
        assert best[0].terms.keys() == TERMS["predictive"]


@pytest.mark.parametrize("is_recorded", [False, True])
def test_an_explanation_has_the_seed_that_repeats_the_choice(is_recorded: bool) -> None:
    """Among 500 agents, of which 16 are drawn; and the version of the view, which rises with each change."""

    def begin(seed: int) -> View:
        view = View(0.5, "predictive", Random(seed))
        view.replace(fleet(500))
        return view

    view = begin(1)
    view.full_scores = True
    if is_recorded:
        recorder = Recorder(view.learned, Random(1))
        recorder.begin(0.5, view.rules, {}, full_scores=True)
        view.record(recorder)
    planner = Planner(view)
    planner.define("p", Pool("t"))
    planner.expect("p", 5, 1.0)
    repeated, versions = begin(2), []
    for placement in planner.plan(5):
        why = msgspec.json.decode(placement.explanation, type=Explained)
        repeated.random.seed(why.seed)
        agent = repeated.take(repeated.group_of(Pool("t")), TaskContext("t"))
        assert agent is not None
        assert agent.agent_id == placement.agent_id
        versions.append(why.view_version)
    assert versions == sorted(set(versions))


def test_the_chosen_agent_is_shown_if_others_have_better_scores() -> None:
    """Among scores within 10 % the load decides; the chosen agent comes first, before the two best."""
    strategy = STRATEGIES["geographic"](Random(1))
    rows = {
        row.agent_id: replace(row, load=9 - n, location=Location(lat=n, lon=0))
        for n, row in enumerate(fleet(9).values())
    }
    for row in rows.values():
        strategy.offer(row)
    task = TaskContext("t", location=Location(lat=-80, lon=0))
    chosen = strategy.choose(task)
    assert chosen is not None
    best = strategy.candidates(task, 3, rows.__getitem__)
    assert [one.agent_id for one in best] == ["a0", "a1", "a2"]
    assert chosen not in {"a0", "a1", "a2"}
    shown = full_scores(strategy, task, chosen, rows.__getitem__)
    assert [one.agent_id for one in shown] == [chosen, "a0", "a1"]
