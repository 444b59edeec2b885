"""Placement: hard requirements never bend and room is never overrun, under every strategy."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from coord.models.agents import FleetAgent, Location
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, WaitingReason, unmet_requirement
from workers.planner import Planner
from workers.view import View

FIT = FleetAgent(
    agent_id="a1",
    agent_type="worker",
    capabilities=frozenset({"echo", "sum"}),
    services=frozenset({"http"}),
    tags=frozenset({"gpu"}),
    labels={"zone": "b", "tier": "1"},
    health_score=0.7,
)
ALL = Requirements(
    agent_type="worker",
    capabilities=("echo", "sum"),
    services=("http",),
    tags=("gpu",),
    labels={"zone": "b"},
    agent_id="a1",
    min_health_score=0.7,
)
#: The requirement -> a change of the agent that breaks this one alone.
BREAKS: dict[WaitingReason, dict[str, Any]] = {
    WaitingReason.ALL_BUSY_STATUS: {"active": False},
    WaitingReason.NAMED_AGENT_ABSENT: {"agent_id": "a2"},
    WaitingReason.NO_AGENT_TYPE: {"agent_type": "monitor"},
    WaitingReason.NO_CAPABILITY: {"capabilities": frozenset({"echo"})},
    WaitingReason.NO_SERVICE: {"services": frozenset()},
    WaitingReason.NO_TAG: {"tags": frozenset({"cpu"})},
    WaitingReason.NO_LABEL: {"labels": {"zone": "c", "tier": "1"}},
    WaitingReason.ALL_UNHEALTHY: {"health_score": 0.69},
}


def test_an_agent_that_meets_everything_may_be_chosen() -> None:
    """Exactly what is required, and exactly at the health threshold, is enough."""
    assert unmet_requirement(FIT, ALL, 0.7) is None
    assert unmet_requirement(FIT, Requirements(), 0.7) is None


@pytest.mark.parametrize("name", BREAKS)
def test_each_requirement_is_named_when_it_is_not_met(name: WaitingReason) -> None:
    """An agent that fails one requirement is not chosen, and the answer names the requirement."""
    assert unmet_requirement(msgspec.structs.replace(FIT, **BREAKS[name]), ALL, 0.0) == name


def test_a_tasks_own_health_can_only_be_stricter() -> None:
    """The threshold of the cell holds for every task; a task can only be stricter."""
    assert unmet_requirement(FIT, Requirements(min_health_score=0.1), 0.71) is WaitingReason.ALL_UNHEALTHY
    assert unmet_requirement(FIT, Requirements(min_health_score=0.71), 0.1) is WaitingReason.ALL_UNHEALTHY


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("capabilities", WaitingReason.NO_CAPABILITY),
        ("services", WaitingReason.NO_SERVICE),
        ("tags", WaitingReason.NO_TAG),
    ],
)
def test_of_several_all_are_required(name: str, reason: WaitingReason) -> None:
    """One of two is not enough; more than what is asked for does no harm."""
    wanted = msgspec.convert({name: ["x", "y"]}, Requirements)
    has = {have: msgspec.structs.replace(FIT, **{name: frozenset(have)}) for have in ("x", "xy", "xyz")}
    assert [unmet_requirement(has[have], wanted, 0) for have in ("x", "xy", "xyz")] == [reason, None, None]


def test_a_label_that_is_missing_is_not_met() -> None:
    """A label must be there with the value; another label with that value is none."""
    assert unmet_requirement(FIT, Requirements(labels={"b": "zone"}), 0) is WaitingReason.NO_LABEL
    assert unmet_requirement(FIT, Requirements(labels={"zone": "b", "tier": "2"}), 0) is WaitingReason.NO_LABEL


# Random fleets.

WORDS = ("x", "y", "z")


def some(random: Random, most: int = 3) -> frozenset[str]:
    """Some of the words."""
    return frozenset(random.sample(WORDS, random.randint(0, most)))


def random_agent(random: Random, number: int) -> FleetAgent:
    """Any agent."""
    return FleetAgent(
        agent_id=f"a{number}",
        agent_type=random.choice(WORDS),
        capabilities=some(random),
        services=some(random),
        tags=some(random),
        labels={name: random.choice(WORDS) for name in some(random)},
        capacity=random.choice((0, 1, 1, 2, 5)),
        health_score=random.choice((0.0, 0.3, 0.5, 0.8, 1.0)),
        rev=random.randint(1, 9),
        active=random.random() < 0.8,
        load=random.choice((0, 0, 0, 1, 3, 9)),
        outside_load=random.choice((0, 0, 2, 1_000_000)),
        weight=random.choice((0.0, 1.0, 1.0, 2.5)),
        cpu=random.choice((None, 0.1, 1.0)),
        memory=random.choice((None, 0.5)),
        location=random.choice((None, Location(lat=52.5, lon=13.4), Location(region="eu", zone="b"))),
    )


def random_requirements(random: Random) -> Requirements:
    """Any requirements, mild enough that some agent may meet them."""
    return Requirements(
        agent_type=random.choice((None, None, *WORDS)),
        capabilities=tuple(some(random, 1)),
        services=tuple(some(random, 1)),
        tags=tuple(some(random, 1)) if random.random() < 0.5 else (),
        labels={random.choice(WORDS): random.choice(WORDS)} if random.random() < 0.2 else {},
        agent_id=random.choice((None, None, None, None, "a0", "a9")),
        min_health_score=random.choice((0.0, 0.0, 0.5, 0.9)),
    )


def fits(agent: FleetAgent, wanted: Requirements, threshold: float) -> bool:
    """The same as ``unmet_requirement``, written differently."""
    return (
        agent.active
        and agent.health_score >= threshold
        and agent.health_score >= wanted.min_health_score
        and (wanted.agent_type is None or agent.agent_type == wanted.agent_type)
        and (wanted.agent_id is None or agent.agent_id == wanted.agent_id)
        and all(one in agent.capabilities for one in wanted.capabilities)
        and all(one in agent.services for one in wanted.services)
        and all(one in agent.tags for one in wanted.tags)
        and all(agent.labels.get(name) == value for name, value in wanted.labels.items())
    )


def check_a_random_case(seed: int) -> None:
    """Plan twice on a random fleet, with a change in between: no unfit agent, no overload, no room unused."""
    random = Random(seed)
    threshold = random.choice((0.0, 0.5))
    fleet = {one.agent_id: one for one in (random_agent(random, number) for number in range(random.randint(0, 6)))}
    loads = {agent_id: one.load for agent_id, one in fleet.items()}
    view = View(threshold, random.choice(sorted(STRATEGIES)), random)
    view.replace({agent_id: msgspec.structs.replace(one) for agent_id, one in fleet.items()})
    planner = Planner(view)
    pools = {
        f"p{number}": Pool("t", random_requirements(random), random.choice((None, *STRATEGIES)))
        for number in range(random.randint(1, 4))
    }
    lengths = {pool: random.choice((1, 3, 40)) for pool in pools}
    for pool, one in pools.items():
        planner.learn(pool, one)
        planner.measure(pool, lengths[pool], random.random())
    planned: Counter[str] = Counter()
    served: Counter[str] = Counter()
    for _ in range(2):
        most = random.choice((3, 256))
        placements = planner.plan(most)
        assert len(placements) <= most
        for placement in placements:
            agent = fleet[placement.agent_id]
            assert fits(agent, pools[placement.pool].requirements, threshold)
            assert placement.rev == agent.rev
            planned[agent.agent_id] += 1
            served[placement.pool] += 1
            assert loads[agent.agent_id] + planned[agent.agent_id] <= agent.capacity
            assert served[placement.pool] <= lengths[placement.pool]
        if len(placements) < most:
            for pool, one in pools.items():
                room = any(
                    fits(agent, one.requirements, threshold) and loads[agent_id] + planned[agent_id] < agent.capacity
                    for agent_id, agent in fleet.items()
                )
                assert not room or served[pool] == lengths[pool]
        assert len({placement.lease for placement in placements}) == len(placements)
        if fleet:
            changed = random.choice(sorted(fleet))
            fleet[changed] = msgspec.structs.replace(random_agent(random, int(changed[1:])), rev=99)
            loads[changed] = fleet[changed].load
            view.update([changed], {changed: msgspec.structs.replace(fleet[changed])})


@pytest.mark.guarantee("hard-requirements")
@settings(max_examples=500, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(seed=st.integers(0, 2**48))
def test_no_plan_breaks_a_requirement_or_a_capacity(seed: int) -> None:
    """500 random fleets: see ``check_a_random_case``. ``test_placement_property.py`` has more, with everything else."""
    check_a_random_case(seed)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_no_plan_breaks_a_requirement_or_a_capacity_in_the_long_run() -> None:
    """The same for 100,000."""
    for seed in range(100_000):
        check_a_random_case(seed)
