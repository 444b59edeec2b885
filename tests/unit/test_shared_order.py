"""An order that several groups share: the choices are those of an order of its own, and each change counts once."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from coord.models.agents import FleetAgent, LoadReport
from coord.models.tasks import Pool, Requirements
from coord.placement import OrderedStrategy, Rules, TaskContext, create_strategy
from coord.placement.consistent_hash import ConsistentHash
from coord.placement.strategy import relative_load
from workers import shared_order as shared_order_module
from workers import view as view_module
from workers.candidates import Candidates
from workers.shared_order import SharedOrder
from workers.view import View

NAMES = ("least_connections", "resource_based", "capability_based")
SKILLS = "uvwxyz"


def agent(agent_id: str, skills: Iterable[str], **fields: Any) -> FleetAgent:
    """An agent with four slots."""
    values = {"capacity": 4, "active": True, "rev": 1} | fields
    return FleetAgent(agent_id=agent_id, agent_type="worker", capabilities=frozenset(skills), **values)


def view_of(name: str, fleet: list[FleetAgent], *, rare_skills_first: bool = False) -> View:
    """A view of these agents."""
    view = View(0.5, name, Random(1))
    view.configure(0.5, Rules(name, rare_skills_first=rare_skills_first))
    view.replace({one.agent_id: one for one in fleet})
    return view


def hold(view: View, skill: str) -> Candidates:
    """The group of the agents with a skill."""
    return view.hold(Pool("t", Requirements(capabilities=(skill,))))


@pytest.fixture
def _any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let groups share an order, however few agents they have."""
    monkeypatch.setattr(view_module, "LEAST_AGENTS", 1)


def best_keys(view: View, group: Candidates, avoid: frozenset[str]) -> set[Any]:
    """The lowest key of the agents that may get a task of a group, as a strategy of its own would order them."""
    strategy = create_strategy(group.rules, view.strategies, Random(1), view.learned)
    rows = [view.agents[one].agent for one in group.eligible if view.agents[one].has_room]
    for row in sorted([row for row in rows if row.agent_id not in avoid] or rows, key=lambda row: row.agent_id):
        strategy.offer(row)
    best = strategy.choose(TaskContext("t"))
    if best is None:
        return set()
    tied = set()
    while best is not None:
        tied.add(best)
        strategy.withdraw(best)
        following = strategy.choose(TaskContext("t"))
        best = following if following is not None and keys(view, group, following) == keys(view, group, best) else None
    return tied


def keys(view: View, group: Candidates, agent_id: str) -> tuple[Any, ...]:
    """What decides the place of an agent."""
    row = view.agents[agent_id].agent
    base = view.strategies[group.rules.strategy]
    if issubclass(base, OrderedStrategy):
        return (base(Random(1)).key(row),)
    profile = row.capabilities
    return (
        round(view.learned.demand.pressure(profile) / 0.05),
        len(profile),
        (row.load + row.outside_load + 1) / row.weight,
    )


@pytest.mark.usefixtures("_any_size")
@pytest.mark.parametrize(
    "limits", [{}, {"PARTS_AT_FIRST": 2, "MOST_PARTS": 2, "MOST_GROUPS": 3, "MOST_LEFT": 1, "IDLE": 0}]
)
@pytest.mark.parametrize("name", NAMES)
def test_a_group_chooses_as_with_an_order_of_its_own(
    monkeypatch: pytest.MonkeyPatch, name: str, limits: dict[str, int]
) -> None:
    """⚠ Whatever changes: loads, reports, rows, skills, agents that come and go, groups that begin and end."""
    for constant, limit in limits.items():
        monkeypatch.setattr(shared_order_module, constant, limit)
    shared = chosen = 0
    for number in range(4):
        random = Random(number)
        profiles = ["uv", "vw", "wx", "uvw", "yz", "z", "uz"]
        rows = {
            f"a{at}": agent(f"a{at}", random.choice(profiles), weight=random.choice((1.0, 2.0)), load=at % 5)
            for at in range(24)
        }
        view = view_of(name, list(rows.values()))
        groups: dict[str, Candidates] = {}
        for _ in range(400):
            what, agent_id = random.randrange(8), f"a{random.randrange(26)}"
            if what == 0:
                view.apply_loads({agent_id: random.randrange(5)})
            elif what == 1:
                view.apply_reports([LoadReport(agent_id, random.random(), random.random(), 0.0, 0)])
            elif what == 2:
                fields: dict[str, Any] = {"load": random.randrange(5), "health_score": random.choice((1.0, 0.2))}
                present = (
                    {agent_id: agent(agent_id, random.choice(profiles), **fields)} if random.random() < 0.8 else {}
                )
                view.update([agent_id], present)
            elif what == 3 and random.random() < 0.4 and groups:
                view.release(groups.pop(random.choice(sorted(groups))))
                view.advance()
            else:
                skill = random.choice(SKILLS)
                group = groups.get(skill) or groups.setdefault(skill, hold(view, skill))
                avoid = frozenset(random.sample(sorted(rows), 12)) if what == 4 else frozenset()
                group.taken += 1
                best = best_keys(view, group, avoid)
                found = view.take(group, TaskContext("t", avoid=avoid))
                if isinstance(group.order, SharedOrder):
                    shared += 1
                    assert len(group.strategy.parts) <= limits.get("MOST_PARTS", 32)  # type: ignore[attr-defined]
                chosen += found is not None
                if found is None:
                    assert not best - avoid
                else:
                    assert found.agent_id in best
                    assert found.agent_id in group.eligible
                    view.answered({found.agent_id: 1}, {found.agent_id: found.load})
                assert group.has_room == any(view.agents[one].has_room for one in group.eligible)
    assert min(shared, chosen) > 100


@pytest.mark.parametrize("name", [*NAMES, "consistent_hash"])
def test_a_change_is_taken_over_once_by_all_groups(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Each agent is in five groups; a placement with three changes costs as much as with one group."""
    offered: Counter[str] = Counter()
    offer = OrderedStrategy.offer

    def counting(self: OrderedStrategy, agent: FleetAgent) -> None:
        offered[agent.agent_id] += 1
        offer(self, agent)

    fleet = [agent(f"a{number}", "uvwxyz".replace("uvwxyz"[number % 6], "")) for number in range(600)]
    view = view_of(name, fleet)
    groups = [hold(view, skill) for skill in SKILLS]
    for _ in range(2):
        assert all(group.has_room for group in groups)
    assert all(isinstance(group.order, SharedOrder) for group in groups)
    monkeypatch.setattr(OrderedStrategy, "offer", counting)
    for number in range(120):
        found = view.take(groups[number % 6], TaskContext("t"))
        assert found is not None
        view.answered({found.agent_id: 1}, {found.agent_id: found.load})
        view.apply_loads({f"a{number}": 2, f"a{number + 1}": 1})
    assert all(group.has_room for group in groups)
    assert offered.total() <= 120 * 4


@pytest.mark.usefixtures("_any_size")
@pytest.mark.parametrize(
    "limits", [{}, {"PARTS_AT_FIRST": 2, "MOST_PARTS": 2, "MOST_GROUPS": 3, "MOST_LEFT": 1, "IDLE": 0}]
)
def test_a_key_has_the_owner_that_a_ring_of_its_own_group_gives_it(
    monkeypatch: pytest.MonkeyPatch, limits: dict[str, int]
) -> None:
    """⚠ Whatever changes: the owner, the number of tasks it may have, and otherwise one of the least loaded agents."""
    for constant, limit in limits.items():
        monkeypatch.setattr(shared_order_module, constant, limit)
    shared, fallbacks = 0, Counter[str | None]()
    for number in range(4):
        random = Random(number)
        profiles = ["uv", "vw", "wx", "uvw", "yz", "z", "uz"]
        fleet = [
            agent(f"a{at}", random.choice(profiles), weight=random.choice((1.0, 2.0)), load=at % 5) for at in range(24)
        ]
        view = view_of("consistent_hash", fleet)
        groups: dict[str, Candidates] = {}
        for _ in range(400):
            what, agent_id = random.randrange(8), f"a{random.randrange(26)}"
            if what == 0:
                view.apply_loads({agent_id: random.randrange(5)})
            elif what == 1:
                fields: dict[str, Any] = {"load": random.randrange(5), "weight": random.choice((1.0, 2.0))}
                present = (
                    {agent_id: agent(agent_id, random.choice(profiles), **fields)} if random.random() < 0.8 else {}
                )
                view.update([agent_id], present)
            elif what == 2 and random.random() < 0.4 and groups:
                view.release(groups.pop(random.choice(sorted(groups))))
                view.advance()
            else:
                skill = random.choice(SKILLS)
                group = groups.get(skill) or groups.setdefault(skill, hold(view, skill))
                group.taken += 1
                avoid = frozenset(f"a{at}" for at in random.sample(range(24), 8)) if what == 3 else frozenset()
                task = TaskContext("t", affinity_key=f"k{random.randrange(40)}" if what > 3 else None, avoid=avoid)
                alone = ConsistentHash(Random(1))
                rows = [view.agents[one].agent for one in group.eligible if view.agents[one].has_room]
                for row in sorted(rows, key=lambda row: row.agent_id):
                    alone.offer(replace(row))
                expected = alone.choose(task)
                loads = {row.agent_id: relative_load(row) for row in rows}
                found = view.take(group, task)
                shared += isinstance(group.order, SharedOrder)
                if found is None:
                    assert expected is None or expected in avoid
                    continue
                assert group.strategy.fallback == alone.fallback
                fallbacks[alone.fallback] += 1
                if alone.fallback is None:
                    assert found.agent_id == expected
                else:
                    assert loads[found.agent_id] == loads[str(expected)]
                view.answered({found.agent_id: 1}, {found.agent_id: found.load})
    assert shared > 100
    assert len(fallbacks) == 3
    assert min(fallbacks.values()) > 40


def test_agents_that_are_equal_take_turns_across_the_parts() -> None:
    """All agents of a group get one task each before one gets a second, although other groups have only some."""
    fleet = [agent(f"a{number}", "u" + ("v" if number < 70 else "w")) for number in range(300)]
    view = view_of("least_connections", fleet)
    groups = [hold(view, skill) for skill in "uvw"]
    for _ in range(2):
        assert all(group.has_room for group in groups)
    assert all(isinstance(group.order, SharedOrder) for group in groups)
    for _ in range(2):
        turns = []
        for _ in range(300):
            found = view.take(groups[0], TaskContext("t"))
            assert found is not None
            turns.append(found.agent_id)
            view.answered({found.agent_id: 1}, {found.agent_id: 0})
        assert Counter(turns) == Counter(one.agent_id for one in fleet)


def test_only_large_groups_with_common_agents_share_an_order() -> None:
    """A group alone, a small one, and one that has no agent in common keep a strategy of their own."""
    fleet = [agent(f"a{number}", "u" + ("v" if number < 70 else "w")) for number in range(200)]
    fleet += [agent(f"b{number}", "x" + ("y" if number < 10 else "")) for number in range(80)]
    view = view_of("least_connections", fleet)
    groups = {skill: hold(view, skill) for skill in "uvxy"}
    assert groups["u"].has_room
    assert groups["x"].has_room
    assert groups["y"].has_room
    assert [group.order for group in groups.values()] == [None] * 4
    assert groups["v"].has_room
    assert groups["u"].has_room
    assert [group.order is not None for group in groups.values()] == [True, True, False, False]
    # One that grows shares it, too.
    view.update([f"c{number}" for number in range(100)], {f"c{n}": agent(f"c{n}", "uxy") for n in range(100)})
    for _ in range(2):
        assert all(group.has_room for group in groups.values())
    assert all(group.order is not None for group in groups.values())


def test_an_agent_that_leaves_one_group_stays_in_the_others() -> None:
    """It was ejected for one type of tasks, and nothing else has changed."""
    view = view_of("least_connections", [agent(f"a{number}", "uv") for number in range(100)])
    groups = [hold(view, skill) for skill in "uv"]
    for _ in range(2):
        assert all(group.has_room for group in groups)
    view.apply_loads({f"a{number}": 4 for number in range(1, 100)})
    assert all(group.has_room for group in groups)
    groups[0].leave("a0")
    assert groups[0].order is groups[1].order is not None
    assert not groups[0].has_room
    found = view.take(groups[1])
    assert found is not None
    assert found.agent_id == "a0"
    groups[0].join("a0")
    assert view.take(groups[0]) is found


def test_a_group_with_too_many_parts_has_an_order_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each choice looks at every part; so those that begin last are refused, and choose all the same."""
    monkeypatch.setattr(shared_order_module, "PARTS_AT_FIRST", 3)
    random = Random(1)
    fleet = [agent(f"a{number}", "".join(random.sample(SKILLS, 3))) for number in range(400)]
    view = view_of("least_connections", fleet)
    groups = [hold(view, skill) for skill in SKILLS]
    for _ in range(3):
        for group in groups:
            found = view.take(group)
            assert found is not None
            assert found.agent_id in group.eligible
    shared = [group.order is not None for group in groups]
    assert True in shared
    assert False in shared


def test_a_group_gives_way_only_if_it_has_not_been_used_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools that wait now and then would otherwise have their groups begin again for each task."""
    monkeypatch.setattr(shared_order_module, "MOST_GROUPS", 3)
    monkeypatch.setattr(shared_order_module, "IDLE", 2)
    fleet = [agent(f"a{number}", SKILLS[: 1 + number % 6]) for number in range(500)]
    view = view_of("least_connections", fleet)
    groups = {skill: hold(view, skill) for skill in "uvwx"}
    assert all(group.has_room for group in groups.values())
    assert [skill for skill, group in groups.items() if group.order is not None] == ["v", "w", "x"]
    groups["w"].taken = 1
    view.release(groups["v"])
    view.release(groups["w"])
    view.advance()
    groups["y"] = hold(view, "y")
    assert groups["y"].has_room
    view.advance()  # the second one since a task of "v" was planned, and the first one for "w"
    groups["z"] = hold(view, "z")
    assert groups["z"].has_room
    assert [skill for skill, group in groups.items() if group.order is not None] == ["w", "x", "z"]


def test_groups_that_end_leave_no_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts that differ only in groups that are gone are merged, and the numbers of groups stay small."""
    monkeypatch.setattr(view_module, "GROUPS_KEPT", 0)
    monkeypatch.setattr(shared_order_module, "MOST_GROUPS", 8)
    fleet = [agent(f"a{number}", ("p", f"s{number % 10}")) for number in range(700)]
    view = view_of("least_connections", fleet)
    everybody = hold(view, "p")
    assert everybody.has_room
    for number in range(300):
        some = hold(view, f"s{number % 10}")
        assert some.has_room
        assert everybody.has_room
        order = everybody.order
        assert isinstance(order, SharedOrder)
        assert some.order is order
        assert len(order._parts) <= 11
        assert order._next_bit.bit_length() < 64
        view.release(some)


def test_scores_are_those_of_the_parts() -> None:
    """The scores of a choice are of the best agents of the group, whichever parts they are in."""
    fleet = [agent(f"a{number:03}", "u" + ("v" if number % 2 else "w"), outside_load=number) for number in range(200)]
    view = view_of("least_connections", fleet)
    groups = [hold(view, skill) for skill in "uvw"]
    for _ in range(2):
        assert all(group.has_room for group in groups)
    view.full_scores = True
    assert view.take(groups[0]) is not None
    assert groups[0].order is not None
    assert [(one.agent_id, one.score) for one in view.candidates] == [("a000", 1.0), ("a001", 2.0), ("a002", 3.0)]
    view.configure(0.5, Rules("capability_based"))
    for _ in range(2):
        assert all(group.has_room for group in groups)
    assert view.take(groups[1]) is not None
    assert groups[1].order is not None
    assert view.candidates[0].terms["capabilities"] == 2
    assert view.candidates[0].agent_id == "a001"
