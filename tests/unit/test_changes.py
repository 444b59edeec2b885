"""The changes that groups of a view take over, and how many of them reach a strategy."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import pytest

from coord.models.agents import FleetAgent, LoadReport
from coord.models.tasks import Pool
from coord.placement import STRATEGIES, Rules, Strategy, TaskContext
from workers.changes import Changes
from workers.view import View

AGENTS = [f"a{number}" for number in range(20)]
#: Strategies that keep no order of loads.
WITHOUT_LOADS = (
    "round_robin",
    "weighted_round_robin",
    "geographic",
    "random",
    "power_of_two",
    "least_response_time",
    "predictive",
    "prequal",
)


def view_of(name: str, count: int = 20) -> tuple[View, Counter[str]]:
    """A view with a group in use, and how often an agent was offered or withdrawn since."""
    offered: Counter[str] = Counter()

    base: Any = STRATEGIES[name]

    class Counting(base):  # type: ignore[misc]
        """Counts."""

        def offer(self, agent: FleetAgent) -> None:
            """Count, and offer."""
            offered[agent.agent_id] += 1
            super().offer(agent)

        def withdraw(self, agent_id: str) -> None:
            """Count, and withdraw."""
            offered[agent_id] += 1
            super().withdraw(agent_id)

    strategies: dict[str, type[Strategy]] = {name: Counting}
    view = View(0.5, name, Random(1), strategies)
    view.replace(
        {f"a{number}": FleetAgent(agent_id=f"a{number}", agent_type="worker", capacity=4) for number in range(count)}
    )
    assert view.hold(Pool("t")).has_room
    offered.clear()
    return view, offered


def test_changes_are_the_same_whichever_way_they_are_found() -> None:
    """The latest change of each member, the latest first: from a few members, or from a few changes."""
    random = Random(1)
    changes = Changes()
    for agent_id in AGENTS:
        changes.add(agent_id)
    version = changes.version
    latest: dict[str, int] = {}
    for number in range(12):
        agent_id = random.choice(AGENTS[:15])
        changes.add(agent_id)
        latest[agent_id] = number
    expected = sorted(latest, key=lambda agent_id: -latest[agent_id])
    assert changes.since(version, set(AGENTS)) == expected  # more members than changes
    few = set(expected[1:5])
    assert len(few) < 12
    assert changes.since(version, few) == expected[1:5]  # fewer members than changes
    assert changes.since(changes.version, set(AGENTS)) == []
    changes.remove(expected[0])
    assert changes.since(version, set(AGENTS)) == expected[1:]
    changes.clear()
    assert changes.since(version, set(AGENTS)) == changes.since(version, few) == []
    assert changes.version > version


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_strategy_takes_over_what_its_order_depends_on(name: str) -> None:
    """Loads and reports only if it keeps an order of them; room and rows always."""
    view, offered = view_of(name)
    group = view.group_of(Pool("t"))
    view.apply_loads({"a1": 2})
    view.apply_reports([LoadReport("a2", 0.5, 0.5, 0.0, 0)])
    assert group.has_room
    assert set(offered) == (set() if name in WITHOUT_LOADS else {"a1", "a2"})
    offered.clear()
    view.apply_loads({"a1": 4})
    view.update(["a3"], {"a3": FleetAgent(agent_id="a3", agent_type="worker", capacity=4, weight=2.0)})
    assert group.has_room
    assert set(offered) == {"a1", "a3"}
    offered.clear()
    view.apply_loads({"a1": 3})
    assert group.has_room
    assert set(offered) == {"a1"}


@pytest.mark.parametrize("name", STRATEGIES)
def test_a_load_that_is_expected_is_no_change(name: str) -> None:
    """The answer to a plan confirms what the plan has counted; nothing is offered again."""
    view, offered = view_of(name)
    group = view.group_of(Pool("t"))
    agent = view.take(group, TaskContext("t"))
    assert agent is not None
    offered.clear()
    view.answered({agent.agent_id: 1}, {agent.agent_id: 1})
    assert group.has_room
    assert not offered
    view.answered({}, {agent.agent_id: 4})
    assert group.has_room
    assert set(offered) == {agent.agent_id}


@pytest.mark.parametrize("rare_skills_first", [False, True])
@pytest.mark.parametrize("name", STRATEGIES)
def test_the_work_for_a_placement_does_not_depend_on_the_fleet(name: str, *, rare_skills_first: bool) -> None:
    """For each placement, with three changes, at most five agents are offered or withdrawn: of 50, and of 1,000."""
    counts = []
    for count in (50, 1_000):
        view, offered = view_of(name, count)
        view.configure(0.5, Rules(name, rare_skills_first=rare_skills_first))
        group = view.group_of(Pool("t"))
        assert group.has_room
        offered.clear()
        for number in range(40):
            agent = view.take(group, TaskContext("t"))
            assert agent is not None
            view.answered({agent.agent_id: 1}, {agent.agent_id: agent.load})
            view.apply_loads({f"a{number}": 0, f"a{number + 1}": 1})
        counts.append(offered.total())
    assert max(counts) <= 5 * 40
