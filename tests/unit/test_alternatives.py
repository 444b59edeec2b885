"""The second agent of a planned assignment: when a plan names one, which, and what follows if it gets the task."""

from __future__ import annotations

import pytest

from coord.models.agents import FleetAgent
from coord.placement import STRATEGIES
from tests.unit import test_named_tasks as named_tasks
from tests.unit.test_planner import ONE, heard, planner_of, read
from workers.planner import Planner


def with_siblings(*capacities: int) -> Planner:
    """A planner of one of several distributors."""
    planner = planner_of(*capacities)
    planner.has_siblings = True
    return planner


def test_a_single_distributor_names_no_second_agent() -> None:
    """Its plans are never refused."""
    planner = planner_of(1, 1)
    read(planner, 1, ("p1", ONE, 2, 5.0))
    assert [one.other_id for one in planner.plan(9)] == ["", ""]


def test_the_last_slot_of_an_agent_has_a_second_agent() -> None:
    """The one that the next task gets; a slot before the last one has none, and none is left at the end."""
    planner = with_siblings(2, 2)
    read(planner, 1, ("p1", ONE, 4, 5.0))
    plan = planner.plan(9)
    assert sorted(one.agent_id for one in plan) == ["a0", "a0", "a1", "a1"]
    assert [one.other_id for one in plan[:2]] == ["", ""]
    assert plan[2].other_id == plan[3].agent_id
    assert plan[3].other_id == ""
    assert plan[2].other_rev == planner.view.agents[plan[2].other_id].agent.rev


@pytest.mark.parametrize("strategy", sorted(STRATEGIES))
def test_naming_a_second_agent_plans_nothing(strategy: str) -> None:
    """Under every strategy each slot is planned once, whatever was named."""
    planner = with_siblings(1, 2, 3)
    planner.view.configure(0.5, type(planner.view.rules)(strategy))
    read(planner, 1, ("p1", ONE, 20, 5.0))
    plan = planner.plan(20)
    assert sorted(one.agent_id for one in plan) == ["a0", "a1", "a1", "a2", "a2", "a2"]
    assert all(one.other_id != one.agent_id for one in plan)
    assert sum(one.other_id != "" for one in plan) == 2


def test_a_moved_task_is_the_second_agents() -> None:
    """Its lease belongs to that agent, and the loads are true afterwards."""
    planner = with_siblings(1, 3)
    read(planner, 1, ("p1", ONE, 1, 5.0))
    (one,) = planner.plan(9)
    assert (one.agent_id, one.other_id) == ("a0", "a1")
    planner.answered([one], heard("MOVED", loads={"a0": 1, "a1": 2}, p1=(0, 0.0)))
    assert [planner.view.agents[agent_id].agent.load for agent_id in ("a0", "a1")] == [1, 2]
    (assigned,) = planner.end_leases([one.lease])
    assert assigned is not None
    assert assigned[:3] == ("a1", ONE.task_type, 1)
    assert "p1" not in planner.waiting


def test_a_named_task_never_has_an_agent_that_it_avoids() -> None:
    """Rather none. A task that was moved is not waited for any more."""
    planner = named_tasks.planner_of(1, 1)
    planner.has_siblings = True
    read(planner, 1)
    named_tasks.expect(planner, named_tasks.task(1.0, "t1", "a1"))
    (one,) = planner.plan(9)
    assert (one.agent_id, one.other_id) == ("a0", "")
    planner.answered([one], named_tasks.heard("ASSIGNED", length=0, head=0, loads={"a0": 1}))
    row = FleetAgent(agent_id="a2", agent_type="worker", rev=4)
    planner.view.update(["a2"], {"a2": row})
    named_tasks.expect(planner, named_tasks.task(2.0, "t2", "a0"))
    (one,) = planner.plan(1)
    assert {one.agent_id, one.other_id} == {"a1", "a2"}
    planner.answered([one], named_tasks.heard("MOVED", length=0, head=0, loads={"a1": 1, "a2": 1}))
    assert named_tasks.QUEUE not in planner.waiting
