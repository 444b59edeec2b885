"""The table of waiting pools and the plan: whose turn it is, and what an answer says of what was planned."""

from __future__ import annotations

from random import Random
from typing import Any

import pytest

from coord import codec
from coord.models.agents import FleetAgent
from coord.models.tasks import Pool, Requirements
from coord.placement import unmet_requirement
from workers import planner as planner_module
from workers.pieces import by_agents
from workers.planner import TURN, Planner
from workers.transitions import Placement, TaskBatch
from workers.view import View

ONE, TWO = Pool("one"), Pool("two", Requirements(tags=("gpu",)))


def planner_of(*capacities: int) -> Planner:
    """A planner on agents a0, a1 … of these capacities, all with the tag gpu."""
    fleet = {
        f"a{number}": FleetAgent(agent_id=f"a{number}", agent_type="worker", tags=frozenset({"gpu"}), capacity=capacity)
        for number, capacity in enumerate(capacities)
    }
    view = View(0.5, "least_connections", Random(1))
    view.replace(fleet)
    return Planner(view)


def read(planner: Planner, rev: int, *pools: tuple[str, Pool, int, float]) -> None:
    """Let the planner have read the whole table: the pools in it, each with its length and the score of its head."""
    planner.pools_rev, planner.is_stale = rev, False
    for pool in set(planner.waiting) - {one[0] for one in pools}:
        planner.remove(pool)
    for pool, definition, length, head in pools:
        planner.learn(pool, definition)
        planner.measure(pool, length, head)


def in_order(planner: Planner) -> list[str]:
    """The pools that stand in the order, first of their groups."""
    return [pool for _, pool in filter(planner._has_turn, sorted(planner._order))]


def heard(
    *words: str, rev: int = 1, raised: int = 0, loads: dict[str, int] | None = None, **pools: tuple[int, float]
) -> TaskBatch:
    """What a script answers."""
    return TaskBatch(list(words), loads or {}, pools, rev, raised)


def test_a_table_that_is_read_is_not_stale() -> None:
    """A table that was read is what there is."""
    planner = planner_of(1)
    read(planner, 7, ("p1", ONE, 3, 5.0))
    assert not planner.is_stale
    assert (planner.pools_rev, planner.waiting["p1"].left) == (7, 3)


def test_what_is_not_known_is_stale() -> None:
    """At first, and again once everything was forgotten, there is nothing to go by."""
    planner = planner_of(1)
    assert planner.is_stale
    read(planner, 7, ("p1", ONE, 3, 5.0))
    planner.forget()
    assert planner.is_stale
    assert not planner.waiting


def test_a_revision_that_rose_by_others_doing_makes_the_table_stale() -> None:
    """What one's own call raised is known; anything more is not."""
    planner = planner_of(1)
    planner.define("p1", ONE)
    read(planner, 1)
    planner.apply(heard(rev=2, raised=1, p1=(4, 9.0)))
    assert not planner.is_stale
    assert planner.waiting["p1"].length == 4
    planner.apply(heard(rev=2))
    assert not planner.is_stale
    planner.apply(heard(rev=4, raised=1))
    assert planner.is_stale


def test_a_pool_nobody_knows_makes_the_table_stale() -> None:
    """An answer that names a pool without a definition here: the table has it."""
    planner = planner_of(1)
    read(planner, 1)
    planner.apply(heard(px=(1, 1.0)))
    assert planner.is_stale
    assert planner.unknown == {"px"}
    assert "px" not in planner.waiting


def test_what_is_about_to_be_admitted_is_planned_in_the_same_round_trip() -> None:
    """Expected tasks count as waiting; the answer then says how many there are."""
    planner = planner_of(1, 1)
    planner.define("p1", ONE)
    read(planner, 1)
    planner.expect("p1", 1, 50.0)
    planner.expect("p1", 2, 40.0)
    assert (planner.waiting["p1"].length, planner.waiting["p1"].head) == (3, 40.0)
    placements = planner.plan(10)
    assert [one.pool for one in placements] == ["p1", "p1"]
    planner.apply(heard(rev=2, raised=1, p1=(3, 40.0)))
    planner.answered(placements, heard("ASSIGNED", "ASSIGNED", rev=2, loads={"a0": 1, "a1": 1}, p1=(1, 50.0)))
    assert planner.waiting["p1"].left == 1
    assert planner.plan(10) == []
    assert not planner.is_ready()
    assert len(planner.starved_groups()) == 1
    planner.apply(heard(rev=2, loads={"a1": 0}))
    assert planner.is_ready()
    assert [one.agent_id for one in planner.plan(10)] == ["a1"]


def test_what_was_refused_is_not_waited_for() -> None:
    """Expected tasks that were not admitted are not there, says the answer of dispatch."""
    planner = planner_of(2)
    planner.define("p1", ONE)
    read(planner, 1)
    planner.expect("p1", 2, 50.0)
    placements = planner.plan(10)
    planner.answered(placements, heard("EMPTY", "EMPTY", loads={"a0": 0}, p1=(0, 0.0)))
    assert planner.waiting == {}
    assert not planner.is_ready()
    assert planner.view.agents["a0"].planned == 0


def test_pools_take_turns_in_the_order_of_their_heads() -> None:
    """The first head comes first, a turn at a time, so that a long pool does not take all the room."""
    planner = planner_of(100)
    read(planner, 1, ("late", TWO, 90, 20.0), ("early", ONE, 90, 10.0))
    order = [one.pool for one in planner.plan(200)]
    assert order[: 2 * TURN] == ["early"] * TURN + ["late"] * TURN
    assert len(order) == 100
    assert abs(order.count("early") - 50) <= TURN


def test_a_pool_that_nobody_fits_keeps_no_other_waiting() -> None:
    """It is starved, the next one is planned."""
    planner = planner_of(2)
    impossible = Pool("t", Requirements(capabilities=("none",)))
    read(planner, 1, ("p1", impossible, 5, 1.0), ("p2", ONE, 5, 2.0))
    assert [one.pool for one in planner.plan(10)] == ["p2", "p2"]


def test_what_cannot_be_served_is_not_looked_at_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither pools without an agent nor pools of full agents cost anything in a round, until an agent can serve them.

    What an agent has to do with a pool is looked at once, however many rounds there are.
    """
    looks = 0

    def counted(*given: Any) -> str | None:
        nonlocal looks
        looks += 1
        return unmet_requirement(*given)

    monkeypatch.setattr("workers.view.unmet_requirement", counted)
    planner = planner_of(1)
    for number in range(1_000):
        planner.learn(f"none{number}", Pool("t", Requirements(labels={"zone": f"mars-{number}"})))
        planner.learn(f"both{number}", Pool("t", Requirements(tags=("gpu", f"tag-{number}"))))
    assert looks == 0
    assert not planner.unread
    assert not planner.is_ready()
    assert in_order(planner) == []
    planner.define("p1", ONE)
    for _ in range(10):
        planner.expect("p1", 1, 50.0)
        (one,) = planner.plan(10)
        assert not planner.is_ready()
        assert in_order(planner) == []
        planner.answered([one], heard("ASSIGNED", loads={"a0": 1}, p1=(0, 0.0)))
        planner.apply(heard(loads={"a0": 0}))
        assert planner.starved_groups() == []
    assert looks <= 10
    planner.view.update(["m"], {"m": FleetAgent(agent_id="m", agent_type="worker", labels={"zone": "mars-7"})})
    assert not planner.is_ready()
    assert list(planner.unread) == ["none7"]
    planner.measure("none7", 2, 1.0)
    assert [(one.pool, one.agent_id) for one in planner.plan(10)] == [("none7", "m")]


def test_pools_of_full_agents_return_when_one_has_room() -> None:
    """All pools of the group, in their order."""
    planner = planner_of(2)
    read(planner, 1, ("p1", ONE, 2, 2.0), ("p2", ONE, 2, 1.0), ("p3", TWO, 2, 3.0))
    first = planner.plan(10)
    assert [one.pool for one in first] == ["p2", "p2"]
    planner.answered(first, heard("ASSIGNED", "ASSIGNED", loads={"a0": 2}, p2=(0, 0.0)))
    assert not planner.is_ready()
    assert len(planner.starved_groups()) == 2
    assert in_order(planner) == []
    planner.apply(heard(loads={"a0": 1}))
    assert planner.is_ready()
    assert [one.pool for one in planner.plan(10)] == ["p1"]


def test_a_pool_of_which_nothing_is_left_is_passed_over() -> None:
    """Fewer tasks than were thought, all of them planned: it is not ready, and the next one is."""
    planner = planner_of(3)
    read(planner, 1, ("p1", ONE, 3, 1.0))
    (one,) = planner.plan(1)
    planner.apply(heard(p1=(1, 1.0)))
    assert not planner.is_ready()
    read(planner, 1, ("p1", ONE, 1, 1.0), ("p2", ONE, 1, 2.0))
    assert [two.pool for two in planner.plan(10)] == ["p2"]
    planner.unanswered([one])
    assert [two.pool for two in planner.plan(10)] == ["p1"]


def test_lines_and_order_stay_short() -> None:
    """Heads that move again and again leave entries behind, which are removed."""
    planner = planner_of(0)
    read(planner, 1, *((f"p{number}", (ONE, TWO)[number % 2], 1, 1.0) for number in range(20)))
    for number in range(5_000):
        planner.apply(TaskBatch([], {}, {f"p{number % 20}": (1, float(number % 977))}, 1, 0))
    assert len(planner._order) < 200
    assert sum(len(group.line) for group in {one.group for one in planner.waiting.values()}) < 200


def test_all_pools_that_can_be_served_are_sampled_in_turn() -> None:
    """Those of full agents and those that wait for the next plan; of parked ones nothing is read."""
    planner = planner_of(1)
    nobody = Pool("t", Requirements(tags=("none",)))
    read(planner, 1, ("p1", ONE, 2, 1.0), ("p2", ONE, 2, 2.0), ("p3", TWO, 2, 3.0), ("p4", nobody, 2, 4.0))
    assert set(planner.sample(100)) == {"p1", "p2", "p3"}
    planner.plan(10)
    assert not planner.is_ready()
    assert set(planner.sample(100)) == {"p1", "p2", "p3"}
    sampled = [planner.sample(2) for _ in range(100)]
    assert max(map(len, sampled)) == 2
    assert {pool for some in sampled for pool in some} == {"p1", "p2", "p3"}


def test_a_plan_counts_until_it_is_answered() -> None:
    """Two plans in flight take different slots and different tasks."""
    planner = planner_of(2, 2)
    read(planner, 1, ("p1", ONE, 3, 1.0))
    first = planner.plan(2)
    second = planner.plan(10)
    assert (len(first), len(second), planner.waiting["p1"].left) == (2, 1, 0)
    planner.answered(first, heard("ASSIGNED", "ASSIGNED", loads={"a0": 1, "a1": 1}, p1=(1, 1.0)))
    assert planner.plan(10) == []
    planner.answered(second, heard("ASSIGNED", loads={"a0": 2}, p1=(0, 0.0)))
    assert planner.waiting == {}


def test_what_each_word_says_of_an_agent() -> None:
    """FULL mends the load; CHANGED and INACTIVE ask for the row; ERROR leaves it out; EMPTY says nothing of it."""
    planner = planner_of(1, 1, 1, 1, 1)
    read(planner, 1, ("p1", ONE, 9, 1.0))
    placements = planner.plan(10)
    by_agent = dict(
        zip([one.agent_id for one in placements], ["FULL", "CHANGED", "INACTIVE", "ERROR x", "EMPTY"], strict=True)
    )
    loads = {agent_id: 1 if word == "FULL" else 0 for agent_id, word in by_agent.items()}
    changed = planner.answered(placements, heard(*by_agent.values(), loads=loads, p1=(9, 1.0)))
    assert {by_agent[one] for one in changed} == {"CHANGED", "INACTIVE"}
    assert {by_agent[one] for one in planner.broken} == {"ERROR x"}
    assert [by_agent[one.agent_id] for one in planner.plan(10)] == ["EMPTY"]


def test_a_plan_whose_round_trip_failed_is_taken_back() -> None:
    """What was never answered is room and waiting tasks again."""
    planner = planner_of(2)
    read(planner, 1, ("p1", ONE, 2, 1.0))
    planner.unanswered(planner.plan(10))
    assert len(planner.plan(10)) == 2


def test_answers_to_a_table_that_was_replaced_meanwhile() -> None:
    """What is in flight stays planned through a new table, and is not counted below zero through a forgotten one."""
    planner = planner_of(4)
    read(planner, 1, ("p1", ONE, 4, 1.0))
    placements = planner.plan(2)
    read(planner, 1, ("p1", ONE, 4, 1.0))
    assert planner.waiting["p1"].left == 2
    planner.forget()
    read(planner, 1, ("p1", ONE, 4, 1.0))
    planner.answered(placements, heard("ASSIGNED", "ASSIGNED", loads={"a0": 2}, p1=(2, 1.0)))
    assert planner.waiting["p1"].left == 2


@pytest.mark.guarantee("no-idle-slot")
def test_an_answer_that_arrives_late_ends_no_pool() -> None:
    """⚠ Two connections: it was given before what is known here, and tasks have come to wait again since."""
    planner = planner_of(2)
    planner.define("p1", ONE)
    read(planner, 4, ("p1", ONE, 1, 5.0))
    planner.apply(heard(rev=3, raised=1, p1=(0, 0.0)))
    assert list(planner.unread) == ["p1"]
    assert [one.pool for one in planner.plan(9)] == ["p1"]
    planner.measure("p1", 0, 0.0)
    assert not planner.unread


def test_leases_are_fresh_and_explanations_shared() -> None:
    """Every lease is 16 hex digits of its own; the reason says strategy and number eligible."""
    planner = planner_of(3)
    read(planner, 1, ("p1", ONE, 3, 1.0))
    placements = planner.plan(10)
    assert len({one.lease for one in placements}) == 3
    assert all(len(one.lease) == 16 and int(one.lease, 16) >= 0 for one in placements)
    assert {one.explanation for one in placements} == {codec.encode({"strategy": "least_connections", "eligible": 1})}


def test_definitions_are_kept_to_a_number() -> None:
    """The oldest is forgotten first; one that is defined again counts as new."""
    planner = planner_of(1)
    kept = planner_module.DEFINITIONS_KEPT
    for number in range(kept):
        planner.define(f"p{number}", ONE)
    planner.define("p0", ONE)
    planner.define("more", ONE)
    assert len(planner.definitions) == kept
    assert "p0" in planner.definitions
    assert "p1" not in planner.definitions


def test_slots_that_the_same_round_trip_makes_free_are_planned_on() -> None:
    """Until it is answered; then what was heard counts, and a lease that was given elsewhere tells nothing."""
    planner = planner_of(1, 1)
    read(planner, 1, ("p1", ONE, 9, 1.0))
    first = planner.plan(10)
    planner.answered(first, heard("ASSIGNED", "ASSIGNED", loads={"a0": 1, "a1": 1}, p1=(7, 1.0)))
    assert not planner.is_ready()
    ended = first[0]
    room = planner.expect_room(planner.end_leases([ended.lease, "0" * 16]))
    (again,) = planner.plan(10)
    assert again.agent_id == ended.agent_id
    planner.room_answered(room)
    planner.apply(heard(loads={ended.agent_id: 0}))
    planner.answered([again], heard("ASSIGNED", loads={ended.agent_id: 1}, p1=(6, 1.0)))
    assert not planner.is_ready()
    assert not planner.expect_room(planner.end_leases([ended.lease]))  # its end was told once


def test_slots_of_a_round_trip_that_failed_are_not_free() -> None:
    """Whether they are is heard as a load, or read."""
    planner = planner_of(1)
    read(planner, 1, ("p1", ONE, 9, 1.0))
    (first,) = planner.plan(10)
    planner.answered([first], heard("ASSIGNED", loads={"a0": 1}, p1=(8, 1.0)))
    planner.room_answered(planner.expect_room(planner.end_leases([first.lease])))
    assert not planner.is_ready()
    planner.apply(heard(loads={"a0": 0}))
    assert planner.is_ready()


def test_leases_whose_end_is_told_elsewhere_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest first."""
    monkeypatch.setattr(planner_module, "LEASES_KEPT", 1)
    planner = planner_of(2)
    read(planner, 1, ("p1", ONE, 9, 1.0))
    older, newer = planner.plan(10)
    planner.answered([older, newer], heard("ASSIGNED", "ASSIGNED", loads={"a0": 2}, p1=(7, 1.0)))
    assert planner.expect_room(planner.end_leases([older.lease, newer.lease])) == {"a0": 1}


@pytest.mark.parametrize(
    ("tasks", "sizes"),
    [
        ([], []),
        ([3, 3], [6]),
        ([8] * 50, [200, 200]),
        ([8] * 33, [136, 128]),
        ([300], [256, 44]),
        ([200, 200, 1], [200, 201]),
        ([1] * 600, [200, 200, 200]),
    ],
)
def test_what_is_sent_in_pieces_is_cut_between_agents(tasks: list[int], sizes: list[int]) -> None:
    """Pieces of like size; what an agent gets is in one of them, in its order, and nothing is left out."""
    planned = [
        Placement("p1", f"a{agent}", 1, f"{nth:016x}", b"{}")
        for nth in range(max(tasks, default=0))
        for agent, count in enumerate(tasks)
        if nth < count
    ]
    pieces = by_agents(planned, 256)
    assert [len(piece) for piece in pieces] == sizes
    for agent in {one.agent_id for one in planned if tasks[int(one.agent_id[1:])] <= 256}:
        assert sum(agent in {one.agent_id for one in piece} for piece in pieces) == 1
    for one in {placement.agent_id for placement in planned}:
        together = [placement for piece in pieces for placement in piece if placement.agent_id == one]
        assert together == [placement for placement in planned if placement.agent_id == one]
