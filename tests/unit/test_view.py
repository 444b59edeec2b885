"""A distributor's view of the fleet: what it hears, what it plans, whom it asks about."""

from __future__ import annotations

from random import Random
from typing import ClassVar

import pytest

from coord import codec
from coord.models.agents import FleetAgent, LoadReport, Location
from coord.models.tasks import Pool, Requirements
from coord.placement import Rules, TaskContext
from coord.placement.load import LeastConnections
from workers import view as view_module
from workers.candidates import Candidates
from workers.planner import Planner
from workers.view import View

ANY = Pool("t")


def agent(agent_id: str, **fields: object) -> FleetAgent:
    """An agent of capacity 1, unless it says otherwise."""
    return FleetAgent(agent_id=agent_id, agent_type="worker", **fields)  # type: ignore[arg-type]


def view_of(*fleet: FleetAgent) -> View:
    """A view of these."""
    view = View(0.5, "least_connections", Random(1))
    view.replace({one.agent_id: one for one in fleet})
    return view


def taken(view: View, pool: Pool = ANY) -> list[str]:
    """Everybody who has room, until nobody has."""
    found: list[str] = []
    while one := view.take(view.group_of(pool)):
        found.append(one.agent_id)
        assert len(found) < 1000
    return found


def test_what_is_planned_takes_room_until_it_is_answered() -> None:
    """A slot that is planned is no room; answered without a load, it is free again; a heard load takes it for good."""
    view = view_of(agent("a", capacity=2))
    assert taken(view) == ["a", "a"]
    view.answered({"a": 1}, {})
    view.answered({"a": 1}, {})
    assert taken(view) == ["a", "a"]
    view.answered({"a": 2}, {"a": 1})
    assert taken(view) == ["a"]
    view.apply_loads({"a": 0})
    assert taken(view) == ["a"]


def test_answers_beyond_what_is_planned_change_nothing() -> None:
    """An answer to a plan of before a new snapshot does not make room that is not there."""
    view = view_of(agent("a", load=1))
    view.answered({"a": 1}, {})
    view.answered({"nobody": 1}, {})
    view.apply_loads({"nobody": 3})
    assert taken(view) == []


def test_a_suspended_agent_gets_nothing_until_its_row_is_read() -> None:
    """Neither in groups that exist nor in new ones; what was planned for it stays planned."""
    view = view_of(agent("a", capacity=3))
    view.take(view.group_of(ANY))
    view.suspend("a")
    view.suspend("nobody")
    assert taken(view) == []
    assert taken(view, Pool("t", Requirements(agent_type="worker"))) == []
    view.update(["a"], {"a": agent("a", capacity=3, rev=2)})
    assert taken(view, Pool("t", Requirements(agent_type="worker"))) == ["a", "a"]


def test_an_update_moves_an_agent_between_groups() -> None:
    """A changed agent joins the groups whose requirements it now meets and leaves the others; a lost one leaves all."""
    gpu = Pool("t", Requirements(tags=("gpu",)))
    view = view_of(agent("a"), agent("b", tags=frozenset({"gpu"})))
    assert view.group_of(gpu).eligible == {"b"}
    view.update(["a", "b"], {"a": agent("a", tags=frozenset({"gpu"})), "b": agent("b")})
    assert view.group_of(gpu).eligible == {"a"}
    assert taken(view, gpu) == ["a"]
    view.update(["a"], {})
    assert view.group_of(gpu).eligible == set()
    assert taken(view) == ["b"]
    assert set(view.agents) == {"b"}


def test_a_snapshot_forgets_what_was_planned() -> None:
    """After an error nothing is known of what was planned, and the true loads tell."""
    view = view_of(agent("a"))
    assert taken(view) == ["a"]
    view.replace({"a": agent("a"), "b": agent("b", load=1)})
    assert taken(view) == ["a"]


def test_configure_takes_effect_on_groups_that_exist() -> None:
    """A new threshold or strategy makes all groups anew; the same again changes nothing."""
    view = view_of(agent("a", health_score=0.6, capacity=2), agent("b", capacity=2))
    assert view.group_of(ANY).eligible == {"a", "b"}
    assert not view.configure(0.5, Rules("least_connections"))
    assert view.configure(0.7, Rules("round_robin"))
    group = view.group_of(ANY)
    assert (group.eligible, group.strategy.name) == ({"b"}, "round_robin")
    assert taken(view) == ["b", "b"]


def test_an_agent_that_a_lower_threshold_lets_in_has_room_at_once() -> None:
    """In a group that is in use as well, whose other agents are full; a sleeping group is woken for the planner."""
    view = view_of(agent("a", health_score=0.4), agent("b"))
    group = view.hold(ANY)
    assert taken(view) == ["b"]
    view.sleeping.add(group)
    assert view.sleeping.woken(view.agents) == []
    view.configure(0.3, Rules("least_connections"))
    assert view.sleeping.woken(view.agents) == [group]
    assert group.has_room
    assert taken(view) == ["a"]


def test_a_group_is_looked_at_only_by_agents_that_have_its_rarest_facet() -> None:
    """Also when the facet that was the rarest at first is common now; an agent with all facets still joins."""
    view = view_of(agent("a", tags=frozenset({"gpu"})))
    wanted = Pool("t", Requirements(tags=("gpu",), capabilities=("ocr",)))
    group = view.hold(wanted)
    assert group.watched == "capability:ocr"
    for number in range(3):
        view.update([f"o{number}"], {f"o{number}": agent(f"o{number}", capabilities=frozenset({"ocr"}))})
    assert group.watched == "tag:gpu"
    assert not group.eligible
    both = agent("both", tags=frozenset({"gpu"}), capabilities=frozenset({"ocr"}))
    view.update(["both"], {"both": both})
    assert group.eligible == {"both"}
    assert taken(view, wanted) == ["both"]
    view.update(["a"], {"a": agent("a", tags=frozenset({"gpu"}), capabilities=frozenset({"ocr"}))})
    assert group.eligible == {"a", "both"}


def test_labels_are_told_apart_wherever_their_parts_are_cut() -> None:
    """The name a=b with the value c is not the name a with the value b=c; a value that is no text is none."""
    view = view_of(
        agent("one", labels={"a=b": "c"}), agent("other", labels={"a": "b=c"}), agent("odd", labels={"n": 1})
    )
    assert view.group_of(Pool("t", Requirements(labels={"a=b": "c"}))).eligible == {"one"}
    assert view.group_of(Pool("t", Requirements(labels={"a": "b=c"}))).eligible == {"other"}
    assert view.group_of(Pool("t", Requirements(labels={"n": "1"}))).eligible == set()


def test_groups_that_pools_hold_are_never_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many there are; once they are released, only so many are kept."""
    monkeypatch.setattr(view_module, "GROUPS_KEPT", 3)
    view = view_of(agent("a"))
    pools = [Pool("t", Requirements(labels={"n": str(number)})) for number in range(9)]
    held = [view.hold(pool) for pool in pools]
    assert [view.group_of(pool) for pool in pools] == held
    for group in held:
        view.release(group)
    assert len(view._groups) == 3
    assert len(view._facets.groups) == 3


def test_a_pools_own_strategy_wins_and_an_unknown_one_does_not() -> None:
    """A task's strategy holds for its pool; one that does not exist (any more) is the fleet's."""
    view = view_of(agent("a"))
    assert view.group_of(Pool("t", strategy="random")).strategy.name == "random"
    assert view.group_of(Pool("t", strategy="gone")).strategy.name == "least_connections"


def test_pools_with_the_same_requirements_share_a_group() -> None:
    """A group is of requirements and strategy, not of task types."""
    view = view_of(agent("a"))
    assert view.group_of(Pool("t1")) is view.group_of(Pool("t2"))


def test_groups_are_dropped_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that was not used for longest goes, its agents forget it, and it is made again when it is needed."""
    monkeypatch.setattr(view_module, "GROUPS_KEPT", 3)
    view = view_of(agent("a", capacity=9))
    pools = [Pool("t", Requirements(min_health_score=number / 10)) for number in range(4)]
    first = [view.group_of(pool) for pool in pools[:3]]
    assert view.group_of(pools[0]) is first[0]
    view.group_of(pools[3])
    assert view.group_of(pools[0]) is first[0]
    assert len(view.agents["a"].groups) == len(view._groups) == 3
    assert view.group_of(pools[1]) is not first[1]
    view.update(["a"], {"a": agent("a", rev=2)})
    assert taken(view, pools[1]) == ["a"]


def test_everybody_is_asked_about_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    """More agents than are read at once: the stalest come first, so that none is left out."""
    now = 100.0
    monkeypatch.setattr("workers.view.time.monotonic", lambda: now)
    view = view_of(*(agent(f"a{number}", load=1) for number in range(10)))
    group = view.group_of(ANY)
    assert view.stale_agents([group], 0.05, 4) == []
    asked: list[str] = []
    for _ in range(3):
        now += 0.06
        found = view.stale_agents([group], 0.05, 4)
        assert len(found) == 4
        asked += found
        view.apply_loads(dict.fromkeys(found, 1))
    assert set(asked) == set(view.agents)


class Recording(LeastConnections):
    """Notes the tasks that it places."""

    name = "recording"
    tasks: ClassVar[list[TaskContext]] = []

    def choose(self, task: TaskContext) -> str | None:
        """Note the task."""
        self.tasks.append(task)
        return super().choose(task)


def test_a_strategy_sees_the_task_of_the_pool() -> None:
    """Its type; nothing else is known of a task that is popped from a pool."""
    Recording.tasks.clear()
    view = View(0.5, "recording", Random(1), {"recording": Recording})
    view.replace({"a": agent("a", capacity=2)})
    planner = Planner(view)
    planner.learn("p", Pool("resize"))
    planner.measure("p", 2, 1.0)
    planner.plan(5)
    assert Recording.tasks == [TaskContext("resize"), TaskContext("resize")]


def test_an_explanation_says_why_a_strategy_fell_back() -> None:
    """A strategy that needs the location of a task one without by load, and the record says so."""
    view = View(0.5, "geographic", Random(1))
    view.replace({"a": agent("a", location=Location(lat=1.0, lon=2.0))})
    planner = Planner(view)
    planner.learn("p", ANY)
    planner.measure("p", 1, 1.0)
    (placement,) = planner.plan(1)
    assert codec.decode_json(placement.explanation) == {
        "strategy": "geographic",
        "eligible": 1,
        "fallback": "the task has no location",
    }


def test_an_old_report_counts_as_saturated(monkeypatch: pytest.MonkeyPatch) -> None:
    """After three intervals without one, also those that passed before the row was read; a new row ends it."""
    now = 100.0
    monkeypatch.setattr("workers.view.time.monotonic", lambda: now)
    view = View(0.5, "resource_based", Random(1))
    rows = [
        agent("old", cpu=0.0, report_interval=5.0, report_age=10.0, capacity=99),
        agent("busy", cpu=0.5, report_interval=5.0, capacity=99),
        agent("silent", report_interval=5.0, report_age=1_000.0, load=80, load_at_report=80, capacity=99),
    ]
    view.replace({one.agent_id: one for one in rows})
    group = view.hold(ANY)
    assert chosen(view, group) == "old"
    now = 107.5
    view.advance()
    assert (view.agents["old"].agent.cpu, view.agents["busy"].agent.cpu) == (1.0, 0.5)
    assert view.agents["silent"].agent.cpu is None
    assert chosen(view, group) == "busy"
    view.update(["old"], {"old": agent("old", cpu=0.1, report_interval=5.0, capacity=99)})
    assert chosen(view, group) == "old"


def test_reports_are_applied_as_they_come(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cpu and memory decide at once; what was placed before no longer counts; a new report ends saturation."""
    now = 100.0
    monkeypatch.setattr("workers.view.time.monotonic", lambda: now)
    view = View(0.5, "resource_based", Random(1))
    rows = [agent(name, cpu=0.5, memory=0.1, report_interval=5.0, capacity=10) for name in ("a", "b")]
    view.replace({one.agent_id: one for one in rows})
    group = view.hold(ANY)
    view.apply_reports([LoadReport("b", 0.2, 0.3, 0.0, 1), LoadReport("gone", 0.0, 0.0, 0.0, 1)])
    assert [chosen(view, group), chosen(view, group)] == ["b", "b"]
    now = 110.0
    view.apply_reports([LoadReport("b", 0.45, 0.2, 0.0, 1)])
    assert chosen(view, group) == "b"
    now = 120.0
    view.advance()
    assert (view.agents["a"].agent.cpu, view.agents["b"].agent.cpu) == (1.0, 0.45)
    now = 130.0
    view.advance()
    assert view.agents["b"].agent.cpu == 1.0
    view.apply_reports([LoadReport("a", 0.3, None, 0.0, 1)])
    assert (view.agents["a"].agent.cpu, view.agents["a"].agent.memory) == (0.3, None)
    assert chosen(view, group) == "a"


def chosen(view: View, group: Candidates) -> str:
    """The next one."""
    found = view.take(group)
    assert found is not None
    return found.agent_id


def test_demand_comes_from_what_is_placed() -> None:
    """Tasks that need a skill make its agents the last ones for others; an agent that is gone is forgotten."""
    view = View(0.5, "capability_based", Random(1))
    view.replace(
        {
            "a": agent("a", capabilities=frozenset({"echo", "ocr"}), capacity=99),
            "b": agent("b", capabilities=frozenset({"echo", "x", "y"}), capacity=99),
        }
    )
    echo = view.hold(Pool("t", Requirements(capabilities=("echo",))))
    assert chosen(view, echo) == "a"  # it has fewer other skills
    planner = Planner(view)
    planner.learn("p", Pool("t", Requirements(capabilities=("ocr",))))
    planner.measure("p", 9, 1.0)
    assert len(planner.plan(9)) == 9
    view.advance()
    assert chosen(view, echo) == "b"
    view.learned.succeeded("a", "t", 1.0, 0, 0.0)
    view.update(["a"], {})
    assert len(view.learned) == 0
