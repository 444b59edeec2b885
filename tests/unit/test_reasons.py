"""Why a task waits: one ordered list, one reason for each rejected agent, and what the nearest agents lack."""

from __future__ import annotations

from itertools import combinations
from random import Random
from typing import Any

import pytest
from msgspec.structs import replace

from coord.models.agents import AgentStatus, Ejected, FleetAgent
from coord.models.explanations import REJECTED, WaitingReason
from coord.models.tasks import Pool, Requirements
from coord.placement.reasons import (
    FleetIndex,
    PoolSurvey,
    Survey,
    describe,
    ejected_of,
    first_reason,
    judge,
    shortfalls,
)
from tests.unit.test_placement import FIT, random_agent, random_requirements

R = WaitingReason
ALL = Requirements(
    agent_type="worker",
    capabilities=("echo", "sum"),
    services=("http",),
    tags=("gpu",),
    labels={"zone": "b"},
    agent_id="a1",
    min_health_score=0.7,
)
POOL = Pool("t", ALL, refused_by=("0.9",), unhandled_by=("unable",))
#: Each reason for which an agent is rejected, in their order -> a change that gives it to an agent that fits.
BREAKS: dict[WaitingReason, dict[str, Any]] = {
    R.NO_AGENT_REGISTERED: {"status": AgentStatus.INACTIVE, "active": False},
    R.NO_AGENT_TYPE: {"agent_type": "monitor"},
    R.NO_CAPABILITY: {"capabilities": frozenset({"echo"})},
    R.NO_SERVICE: {"services": frozenset()},
    R.NO_TAG: {"tags": frozenset({"cpu"})},
    R.NO_LABEL: {"labels": {"zone": "c"}},
    R.NO_VERSION: {"version": "0.9"},
    R.NO_HANDLER: {"agent_id": "unable"},
    R.NAMED_AGENT_ABSENT: {"agent_id": "a2"},
    R.ALL_STALE: {"status": AgentStatus.STALE, "active": False},
    R.ALL_UNHEALTHY: {"health_score": 0.69},
    R.ALL_DRAINING: {"status": AgentStatus.DRAINING, "active": False},
    R.ALL_BUSY_STATUS: {"status": AgentStatus.BUSY, "active": False},
    R.EJECTED: {"ejected": (Ejected("t", 30_000, 30_000, 1.0, 0.05),)},
    R.ALL_FULL: {"load": 1},
}
#: What an agent lacks only if it has everything else.
LAST = (R.EJECTED, R.ALL_FULL)
#: Two of them that an agent may have at once: it has only one status, and the health of a stale one is not looked at.
PAIRS = [
    (one, other)
    for one, other in combinations([reason for reason in BREAKS if reason not in LAST], 2)
    if not BREAKS[one].keys() & BREAKS[other].keys() and (one, other) != (R.ALL_STALE, R.ALL_UNHEALTHY)
]


def survey(agents: list[FleetAgent], pool: Pool, threshold: float = 0.5, most: int = 5) -> Survey:
    """A survey of these agents, added in two pieces."""
    found = Survey(pool, threshold, most)
    found.add(agents[::2])
    found.add(agents[1::2])
    found.close()
    return found


def random_case(random: Random) -> tuple[list[FleetAgent], Pool, float]:
    """Any fleet, any pool, any threshold."""
    agents = [random_agent(random, number) for number in range(random.randint(0, 9))]
    for agent in agents:
        agent.status = random.choice(list(AgentStatus))
        agent.active = agent.status is AgentStatus.ACTIVE and random.random() < 0.8
        agent.version = random.choice(("", "1", "2"))
        until = random.randint(1, 30_000)
        agent.ejected = random.choice(((), (), (Ejected(random.choice("tu"), until, 30_000, 1.0, 0.0),)))
    pool = Pool("t", random_requirements(random), refused_by=random.choice(((), (), ("1",), ("", "2"))))
    if random.random() < 0.2:
        pool = replace(pool, unhandled_by=("a0", "a2"))
    return agents, pool, random.choice((0.0, 0.5))


def test_the_order_is_the_documented_one() -> None:
    """Names and order are used by programs: a new reason gets its place, and none changes its own."""
    assert list(WaitingReason) == [
        "scheduled",
        "no_agent_registered",
        "no_agent_type",
        "no_capability",
        "no_service",
        "no_tag",
        "no_label",
        "no_version",
        "no_handler",
        "named_agent_absent",
        "all_stale",
        "all_unhealthy",
        "all_draining",
        "all_busy_status",
        "ejected",
        "all_full",
        "next_in_line",
    ]
    assert [R.SCHEDULED, *BREAKS, R.NEXT_IN_LINE] == list(WaitingReason)
    assert list(REJECTED) == list(BREAKS), "each reason of an agent has its meaning"


def test_an_agent_that_fits_has_no_reason() -> None:
    """It meets everything and has room, so a task is next in line."""
    assert judge(FIT, POOL, 0.5) is None
    assert shortfalls(FIT, POOL, 0.5) == []
    assert first_reason([R.NO_TAG, None]) is R.NEXT_IN_LINE


@pytest.mark.parametrize("reason", BREAKS)
def test_an_agent_that_lacks_one_thing_has_this_reason(reason: WaitingReason) -> None:
    """And this thing alone is listed."""
    agent = replace(FIT, **BREAKS[reason])
    assert judge(agent, POOL, 0.5) is reason
    assert [lack.reason for lack in shortfalls(agent, POOL, 0.5)] == [reason]


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_first_of_two_reasons_counts(first: WaitingReason, second: WaitingReason) -> None:
    """Whatever else an agent lacks, its reason is the first of the list; all are listed, in order."""
    agent = replace(FIT, **BREAKS[second], **BREAKS[first])
    assert judge(agent, POOL, 0.5) is first
    assert [lack.reason for lack in shortfalls(agent, POOL, 0.5)] == [first, second]


@pytest.mark.parametrize("reason", [reason for reason in BREAKS if reason is not R.ALL_FULL])
def test_an_agent_that_does_not_fit_misses_no_room(reason: WaitingReason) -> None:
    """Whether it is full does not matter then."""
    agent = replace(FIT, load=1, **BREAKS[reason])
    assert judge(agent, POOL, 0.5) is reason
    assert [lack.reason for lack in shortfalls(agent, POOL, 0.5)] == [reason]


@pytest.mark.parametrize("status", [AgentStatus.BUSY, AgentStatus.MAINTENANCE, AgentStatus.ERROR, AgentStatus.ACTIVE])
def test_every_status_without_work_has_a_reason(status: AgentStatus) -> None:
    """Also an agent whose status is active, but that does not read its inbox."""
    assert judge(replace(FIT, status=status, active=False), POOL, 0.5) is R.ALL_BUSY_STATUS


def test_the_reason_of_a_pool_is_the_first_that_holds() -> None:
    """An agent that came further shows that an earlier requirement can be met."""
    assert survey([], POOL).reason is R.NO_AGENT_REGISTERED
    wanted = Requirements(agent_type="worker", capabilities=("ocr",))
    monitor = FleetAgent(agent_id="m1", agent_type="monitor", capabilities=frozenset({"ocr"}))
    worker = FleetAgent(agent_id="w1", agent_type="worker")
    stale = replace(worker, agent_id="w2", capabilities=monitor.capabilities, **BREAKS[R.ALL_STALE])
    full = replace(stale, agent_id="w3", status=AgentStatus.ACTIVE, active=True, load=1)
    free = replace(full, agent_id="w4", load=0)
    agents: list[FleetAgent] = []
    reasons = []
    for agent in (monitor, worker, stale, full, free):
        agents.append(agent)
        reasons.append(survey(agents, Pool("t", wanted)).reason)
    assert reasons == [R.NO_AGENT_TYPE, R.NO_CAPABILITY, R.ALL_STALE, R.ALL_FULL, R.NEXT_IN_LINE]


def test_only_the_named_agent_counts_if_it_is_registered() -> None:
    """Others that came further are no help; once it has left, it is absent."""
    pool = Pool("t", Requirements(agent_id="a1", capabilities=("echo",)))
    other = replace(FIT, agent_id="a2")
    lacking = replace(FIT, capabilities=frozenset())
    assert survey([other, lacking], pool).reason is R.NO_CAPABILITY
    text = "agent 'a1', which the task names, fits except for capability 'echo'"
    assert survey([other, lacking], pool).text == text
    assert [miss.agent_id for miss in survey([other, lacking], pool).nearest] == ["a1"]
    assert survey([other], pool).reason is R.NAMED_AGENT_ABSENT
    left = replace(FIT, **BREAKS[R.NO_AGENT_REGISTERED])
    found = survey([other, left], pool)
    assert found.reason is R.NAMED_AGENT_ABSENT
    assert [miss.agent_id for miss in found.nearest] == ["a1", "a2"]
    assert survey([other, FIT], pool).reason is R.NEXT_IN_LINE


def test_each_rejected_agent_has_exactly_one_reason() -> None:
    """In any fleet: the counts add up, the list of shortfalls begins with the reason, and the index says the same."""
    random = Random(7)
    seen: set[WaitingReason] = set()
    for _ in range(3_000):
        agents, pool, threshold = random_case(random)
        found = survey(agents, pool, threshold)
        free = {agent.agent_id: judge(agent, pool, threshold, ejections=False) for agent in agents}
        met = [agent for agent in agents if free[agent.agent_id] in {None, R.ALL_FULL}]
        out = {agent.agent_id: R.EJECTED for agent in ejected_of(met, pool, len(met))}
        judged = free | out
        assert found.agents == len(agents) == found.eligible + sum(found.rejected.values())
        assert found.rejected == {
            reason: count for reason in R if (count := sum(one is reason for one in judged.values()))
        }
        for agent in agents:
            reasons = [lack.reason for lack in shortfalls(agent, pool, threshold, ejections=agent.agent_id in out)]
            assert next(iter(reasons), None) is judged[agent.agent_id]
            assert reasons == sorted(reasons, key=list(R).index)
        fleet = FleetIndex(threshold)
        fleet.add(agents)
        assert fleet.reason_of(pool) is found.reason
        assert fleet.count_ejected(pool) == found.rejected.get(R.EJECTED, 0)
        seen.add(found.reason)
    assert seen == set(R) - {R.SCHEDULED, R.EJECTED}, "every reason but two; not all agents that fit are ejected"


def test_agents_that_can_do_the_type_of_a_task_come_first() -> None:
    """If any of them is eligible, it alone counts; the index of the fleet says the same in any fleet."""
    random = Random(11)
    counted = 0
    for _ in range(3_000):
        agents, pool, threshold = random_case(random)
        some = random.choice([name for agent in agents for name in sorted(agent.capabilities)] or ["none"])
        pool = replace(pool, task_type=some, requirements=replace(pool.requirements, capabilities=()))
        surveys = PoolSurvey(pool, threshold, 5)
        surveys.add(agents)
        able = [one for one in agents if some in one.capabilities and judge(one, pool, threshold) in {None, R.ALL_FULL}]
        only = replace(pool, requirements=replace(pool.requirements, capabilities=(some,)))
        assert surveys.found.reason is survey(agents, only if able else pool, threshold).reason
        fleet = FleetIndex(threshold)
        fleet.add(agents)
        assert fleet.reason_of(pool) is surveys.found.reason
        counted += bool(able)
    assert 50 < counted < 2_900, "some fleets have such an agent, some have none"


def test_the_nearest_misses_lack_least() -> None:
    """Fewest shortfalls first, then the agent that came furthest; each says in words what it lacks."""
    pool = Pool("t", Requirements(capabilities=("gpu", "ocr"), labels={"zone": "b"}))
    fits = FleetAgent(agent_id="", agent_type="worker", capabilities=frozenset({"gpu", "ocr"}), labels={"zone": "b"})
    agents = [
        FleetAgent(agent_id="none", agent_type="worker"),
        replace(fits, agent_id="no-gpu", capabilities=frozenset({"ocr"})),
        replace(fits, agent_id="zone-c", labels={"zone": "c"}),
        replace(fits, agent_id="full", capacity=4, load=4),
        replace(fits, agent_id="ill", health_score=0.25, load=1),
    ]
    assert [miss.text for miss in survey(agents, pool, most=4).nearest] == [
        "full fits except for room (it has 4 of at most 4 tasks)",
        "ill fits except for its health 0.25 (at least 0.5 is required)",
        "zone-c fits except for label 'zone=b' (it has 'c')",
        "no-gpu fits except for capability 'gpu'",
    ]
    nearest = survey(agents, pool).nearest
    assert [miss.reason for miss in nearest] == [
        R.ALL_FULL,
        R.ALL_UNHEALTHY,
        R.NO_LABEL,
        R.NO_CAPABILITY,
        R.NO_CAPABILITY,
    ]
    assert nearest[-1].text == "none fits except for capability 'gpu', capability 'ocr' and label 'zone=b'"
    assert nearest[-1].lacks == ("capability 'gpu'", "capability 'ocr'", "label 'zone=b'")


def test_the_nearest_misses_are_found_among_many() -> None:
    """However many agents there are, and in whatever order they are read."""
    pool = Pool("t", Requirements(capabilities=("gpu",), tags=("eu",)))
    agents = [FleetAgent(agent_id=f"a{number:04}", agent_type="worker") for number in range(3_000)]
    near = [replace(agents[number], tags=frozenset({"eu"})) for number in (3, 1_500, 2_999)]
    for agent in near:
        agents[int(agent.agent_id[1:])] = agent
    Random(1).shuffle(agents)
    found = Survey(pool, 0.5, 3)
    for at in range(0, len(agents), 100):
        found.add(agents[at : at + 100])
    found.close()
    assert [miss.agent_id for miss in found.nearest] == [agent.agent_id for agent in near]
    assert found.rejected == {R.NO_CAPABILITY: 3_000}


@pytest.mark.parametrize(
    ("agents", "text"),
    [
        ([], "no agent is registered"),
        ([{"agent_type": "monitor"}], "no agent has the type 'worker'"),
        ([{"capabilities": frozenset()}], "no agent with the required type has the capabilities 'echo' and 'sum'"),
        ([{"services": frozenset()}], "no agent with the required type and capabilities has the service 'http'"),
        ([{"tags": frozenset()}], "no agent with the required type, capabilities and service has the tag 'gpu'"),
        ([{"labels": {}}], "no agent with the required type, capabilities, service and tag has the label 'zone=b'"),
        ([{"version": "0.9"}], "every agent that fits has a version that could not decode the payload"),
        ([{"agent_id": "a2"}], "agent 'a1', which the task names, is not registered"),
    ],
)
def test_a_reason_is_a_sentence_with_the_values(agents: list[dict[str, Any]], text: str) -> None:
    """A person reads which capability is missing, not only that one is."""
    found = survey([replace(FIT, **{"agent_id": "a2"} | changes) for changes in agents], POOL)
    assert found.text == describe(found.reason, POOL, found.rejected) == text


def test_agents_that_fit_and_are_not_available_are_counted() -> None:
    """Different ones in different ways; agents that do not fit are not mentioned."""
    pool = Pool("t", Requirements(tags=("gpu",)))
    states = [BREAKS[reason] for reason in (R.ALL_STALE, R.ALL_STALE, R.ALL_DRAINING, R.ALL_FULL, R.NO_TAG)]
    found = survey([replace(FIT, agent_id=f"a{number}", **changes) for number, changes in enumerate(states)], pool)
    text = "none of the 4 agents that fit is available: 2 stale, 1 draining, 1 at capacity"
    assert (found.reason, found.text) == (R.ALL_FULL, text)
    found = survey([replace(FIT, agent_id=f"a{number}", load=1) for number in range(3)], pool)
    assert found.text == "all 3 agents that fit are at capacity"
    assert survey([replace(FIT, **BREAKS[R.ALL_STALE])], pool).text == "the only agent that fits is stale"


def test_pools_that_wait_for_the_fleet_are_parked() -> None:
    """A task that waits for its time, its turn or a slot needs no change of the fleet."""
    assert [reason for reason in R if not reason.is_parked] == [
        R.SCHEDULED,
        R.EJECTED,
        R.ALL_FULL,
        R.NEXT_IN_LINE,
    ]


def test_ejected_agents_are_rejected_as_long_as_others_are_left() -> None:
    """A fifth of those that meet the requirements, but one of two or more: those that were ejected first."""
    pool = Pool("t", Requirements(tags=("gpu",)))
    out = [replace(FIT, agent_id=f"a{n}", ejected=(Ejected("t", 30_000 + n, 30_000, 0.9, 0.1),)) for n in range(3)]
    found = survey([*out, replace(FIT, agent_id="b1", load=1), replace(FIT, agent_id="b2", load=1)], pool)
    assert found.rejected == {R.EJECTED: 1, R.ALL_FULL: 2}
    assert (found.eligible, found.reason) == (2, R.NEXT_IN_LINE)
    (miss,) = (miss for miss in found.nearest if miss.reason is R.EJECTED)
    text = "its ejection for the type 't', for 30 s more (90% of its attempts failed, 10% of the others')"
    assert miss.text == f"a0 fits except for {text}"
    assert survey([out[0], replace(FIT, agent_id="b", **BREAKS[R.ALL_DRAINING])], pool).eligible == 1
    found = survey([out[0], replace(out[1], load=1)], pool)
    assert (found.reason, found.rejected) == (R.ALL_FULL, {R.EJECTED: 1, R.ALL_FULL: 1})
    other = Pool("u", pool.requirements)
    assert survey(out, other).eligible == 3


def test_no_agent_counts_as_ejected_where_ejection_is_off() -> None:
    """A survey and an index of the fleet then say that all agents are full."""
    pool = Pool("t")
    out = FleetAgent(agent_id="a", agent_type="worker", load=1, ejected=(Ejected("t", 30_000, 30_000, 1.0, 0.0),))
    full = FleetAgent(agent_id="b", agent_type="worker", load=1)
    found = Survey(pool, 0.5, 3, ejections=False)
    found.add([out, full])
    found.close()
    assert found.rejected == {R.ALL_FULL: 2}
    assert survey([out, full], pool).rejected == {R.EJECTED: 1, R.ALL_FULL: 1}
    fleet = FleetIndex(0.5)
    fleet.add([out, full])
    assert fleet.reason_of(pool, ejections=False) is R.ALL_FULL
    strict = Pool("t", Requirements(min_health_score=0.6))
    assert fleet.reason_of(strict, ejections=False) is R.ALL_FULL
