"""Ejected agents in a distributor's view: which tasks they do not get, and when they are back."""

from __future__ import annotations

import time
from random import Random

import pytest

from coord import codec
from coord.models.agents import Ejected, FleetAgent
from coord.models.tasks import Modifiers, Pool, Requirements
from coord.placement import Ejection, OwnRules, Rules
from workers.planner import Planner
from workers.view import View

T, U = Pool("t"), Pool("u")


def fleet(count: int, *ejected: Ejected, capacity: int = 100) -> dict[str, FleetAgent]:
    """Some agents; the first one is ejected by its record."""
    rows = {f"a{n}": FleetAgent(agent_id=f"a{n}", agent_type="worker", capacity=capacity) for n in range(count)}
    rows["a0"].ejected = ejected
    return rows


def view_of(count: int, strategy: str = "round_robin") -> View:
    """A view of some agents."""
    view = View(0.5, strategy, Random(1))
    view.replace(fleet(count))
    return view


def eject(view: View, *agent_ids: str, task_type: str = "t") -> None:
    """Eject agents, one after the other."""
    for agent_id in agent_ids:
        view.ejections.adopt(Ejection(agent_id, task_type, 30.0, 1.0, 0.0, 1), time.monotonic())
    view.apply_ejections([task_type])


def chosen(view: View, pool: Pool = T, count: int = 30) -> set[str]:
    """The agents that get the next tasks of a pool."""
    group = view.group_of(pool)
    return {agent.agent_id for _ in range(count) if (agent := view.take(group)) is not None}


def test_an_ejected_agent_gets_other_types_only() -> None:
    """Under any strategy, and also in groups that were there before."""
    for strategy in ("least_connections", "predictive", "random", "consistent_hash"):
        view = view_of(3, strategy)
        assert chosen(view) == {"a0", "a1", "a2"}
        eject(view, "a0")
        assert chosen(view) == {"a1", "a2"}
        assert chosen(view, U) == {"a0", "a1", "a2"}


def test_an_agent_that_is_back_gets_tasks_at_once() -> None:
    """Also if another one stays ejected, so that the group is the same."""
    view = view_of(10)
    eject(view, "a0", "a1")
    group = view.group_of(T)
    assert chosen(view) == {f"a{n}" for n in range(2, 10)}
    view.apply_ejections(view.ejections.release("a0", time.monotonic()))
    assert view.group_of(T) is group
    assert chosen(view) == {"a0", *(f"a{n}" for n in range(2, 10))}
    view.apply_ejections(view.ejections.release("a1", time.monotonic()))
    assert chosen(view) == {f"a{n}" for n in range(10)}


def test_the_limit_follows_the_fleet() -> None:
    """A fifth of those that are eligible now: when others leave, an ejected agent gets tasks again."""
    view = view_of(10)
    eject(view, "a0", "a1", "a2")
    assert chosen(view) == {f"a{n}" for n in range(2, 10)}
    for gone in range(4, 10):
        view.update([f"a{gone}"], {})
    assert chosen(view) == {"a1", "a2", "a3"}
    for gone in range(1, 4):
        view.suspend(f"a{gone}")
        view.update([f"a{gone}"], {f"a{gone}": FleetAgent(agent_id=f"a{gone}", agent_type="worker", active=False)})
    assert chosen(view) == {"a0"}


def test_the_only_agent_that_fits_is_not_ejected() -> None:
    """The others of the fleet do not count."""
    view = view_of(5)
    eject(view, "a0")
    assert chosen(view, Pool("t", Requirements(agent_id="a0"))) == {"a0"}


def test_the_only_agent_that_advertises_a_type_is_not_ejected() -> None:
    """Tasks without capabilities go to it first, so it is the only agent that counts; others are not its equals."""
    view = view_of(5)
    view.update(
        ["a0"], {"a0": FleetAgent(agent_id="a0", agent_type="worker", capacity=99, capabilities=frozenset("t"))}
    )
    planner = Planner(view)
    eject(view, "a0")
    planner.define("p", T)
    planner.expect("p", 3, 1.0)
    assert {one.agent_id for one in planner.plan(9)} == {"a0"}


def test_an_ejection_in_a_record_is_adopted(monkeypatch: pytest.MonkeyPatch) -> None:
    """For the time that is left when the row is read, by a distributor that starts and by one that runs."""
    now = 100.0
    monkeypatch.setattr("workers.view.time.monotonic", lambda: now)
    ejected = Ejected("t", until=50_000, for_ms=30_000, failure_rate=1.0, others_rate=0.0, in_a_row=2)
    started, running = View(0.5, "round_robin", Random(1)), view_of(3)
    rows = fleet(3, ejected)
    rows["a0"].read_at = 40_000
    started.replace(rows)
    running.update(["a0"], {"a0": rows["a0"]})
    for view in (started, running):
        assert chosen(view) == {"a1", "a2"}
        assert view.ejections.ends_at("a0", "t") == 110.0
        types, early = view.ejections.review(110.0)
        view.apply_ejections(types)
        assert early == []
        assert chosen(view) == {"a0", "a1", "a2"}


def test_a_new_process_is_tried_at_once() -> None:
    """Its term is another one; a loss that leaves the ejection in the record does not end it."""
    view = view_of(3)
    eject(view, "a0")
    row = fleet(3)["a0"]
    row.term = 1
    view.update(["a0"], {"a0": row})
    assert chosen(view) == {"a0", "a1", "a2"}
    eject(view, "a0")
    lost = fleet(3, Ejected("t", 30_000, 30_000, 1.0, 0.0))["a0"]
    lost.term = 2
    view.update(["a0"], {"a0": lost})
    assert chosen(view) == {"a1", "a2"}


def test_waiting_pools_move_and_come_back() -> None:
    """With their tasks; the recorded reason counts the ejected agents; nothing is left when it is over."""
    view = view_of(3)
    planner = Planner(view)
    for name, pool in (("pt", T), ("pu", U)):
        planner.learn(name, pool)
        planner.measure(name, 1_000, 1.0)
    groups = len(view._groups)

    def planned() -> tuple[set[str], set[str]]:
        found: dict[str, set[str]] = {"pt": set(), "pu": set()}
        for placement in planner.plan(96):
            found[placement.pool].add(placement.agent_id)
            decision = codec.decode_json(placement.explanation)
            is_ejecting = placement.pool == "pt" and view.ejections.has_ejected("t")
            assert decision.get("ejected") == (1 if is_ejecting else None)
            assert decision["eligible"] == (2 if is_ejecting else 3)
        return found["pt"], found["pu"]

    everyone = {"a0", "a1", "a2"}
    assert planned() == (everyone, everyone)
    eject(view, "a0")
    assert planned() == ({"a1", "a2"}, everyone)
    view.apply_ejections(view.ejections.release("a0", time.monotonic()))
    assert planned() == (everyone, everyone)
    for name in ("pt", "pu"):
        planner.remove(name)
    for group in list(view._unused):
        view._drop(group)
    assert view._of_types == {}
    assert groups == 3, "one of both pools, and for each the group of the agents that can do its type"


def test_an_agent_that_is_gone_leaves_no_ejection() -> None:
    """Neither in the group nor in the counts."""
    view = view_of(3)
    eject(view, "a0")
    assert chosen(view) == {"a1", "a2"}
    view.update(["a0"], {})
    assert not view.ejections.has_ejected("t")
    assert view.group_of(T).task_type == ""
    view.update(["a0"], fleet(1))
    assert chosen(view) == {"a0", "a1", "a2"}


def test_ejection_is_off_where_the_rules_say_so() -> None:
    """For the cell, a type or a task; also in groups that were there before, and it can be turned on again."""
    view = view_of(3)
    eject(view, "a0")
    everyone, others = {"a0", "a1", "a2"}, {"a1", "a2"}
    on, off = Rules("least_connections"), Rules("least_connections", ejection=False)
    assert chosen(view) == others
    assert chosen(view, Pool("t", modifiers=Modifiers(ejection=False))) == everyone
    view.configure(0.5, off)
    assert chosen(view) == everyone
    assert chosen(view, Pool("t", modifiers=Modifiers(ejection=True))) == others
    view.configure(0.5, on, {"t": OwnRules(ejection=False)})
    assert chosen(view) == everyone
    view.configure(0.5, off, {"t": OwnRules(ejection=True)})
    assert chosen(view) == others
    view.configure(0.5, on)
    assert chosen(view) == others
