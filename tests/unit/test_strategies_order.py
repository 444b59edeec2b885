"""The order in which each strategy chooses, and the kinds of index that they share."""

from __future__ import annotations

from collections import Counter
from random import Random
from typing import TypeVar

import pytest

from coord.models.agents import FleetAgent, Location
from coord.placement import ANY_TASK, STRATEGIES, Learned, Strategy, TaskContext
from coord.placement.capabilities import CapabilityBased
from coord.placement.consistent_hash import ConsistentHash
from coord.placement.geography import Geographic, distances_km
from coord.placement.hash_ring import UNUSED, UNUSED_KEPT
from coord.placement.load import LeastConnections, PowerOfTwo, RandomChoice
from coord.placement.resources import ResourceBased
from coord.placement.response_time import LeastResponseTime, Predictive, Prequal
from coord.placement.turns import RoundRobin, WeightedRoundRobin

BERLIN = Location(lat=52.52, lon=13.40, region="eu", zone="eu-1")
PARIS = Location(lat=48.86, lon=2.35, region="eu", zone="eu-2")
TOKYO = Location(lat=35.68, lon=139.69, region="asia", zone="asia-1")

S = TypeVar("S", bound=Strategy)


def agent(agent_id: str, **fields: object) -> FleetAgent:
    """An agent with much room."""
    return FleetAgent(agent_id=agent_id, agent_type="worker", **{"capacity": 100, **fields})  # type: ignore[arg-type]


def agents(count: int, **fields: object) -> list[FleetAgent]:
    """``count`` equal agents."""
    return [agent(f"a{number}", **fields) for number in range(count)]


def offered(cls: type[S], *fleet: FleetAgent, seed: int = 1, learned: Learned | None = None) -> S:
    """A strategy to which these are offered."""
    strategy = cls(Random(seed), learned)
    for one in fleet:
        strategy.offer(one)
    return strategy


def take(strategy: Strategy, fleet: list[FleetAgent], count: int, task: TaskContext = ANY_TASK) -> list[str]:
    """The next ones, each then offered with one task more, or withdrawn if it is full."""
    by_id = {one.agent_id: one for one in fleet}
    chosen: list[str] = []
    for _ in range(count):
        agent_id = strategy.choose(task)
        assert agent_id is not None
        chosen.append(agent_id)
        one = by_id[agent_id]
        one.load += 1
        if one.load < one.capacity:
            strategy.offer(one)
        else:
            strategy.withdraw(agent_id)
    return chosen


def longest_run(chosen: list[str], agent_id: str) -> int:
    """The most choices of an agent in a row."""
    longest = run = 0
    for one in chosen:
        run = run + 1 if one == agent_id else 0
        longest = max(longest, run)
    return longest


# least_connections


def test_least_connections_fills_from_the_least_and_equals_take_turns() -> None:
    """Loads from outside count; agents that are equal come one after the other."""
    fleet = agents(3)
    fleet[2].outside_load = 2
    assert take(offered(LeastConnections, *fleet), fleet, 7) == ["a0", "a1", "a0", "a1", "a2", "a0", "a1"]


def test_least_connections_respects_weights_among_idle_agents_too() -> None:
    """An agent of weight 2 gets its first two tasks before one of weight 1 gets its second; weight 0 comes last."""
    fleet = [agent("light"), agent("heavy", weight=2.0), agent("none", weight=0.0)]
    assert take(offered(LeastConnections, *fleet), fleet, 6) == ["heavy", "light", "heavy", "heavy", "light", "heavy"]


def test_least_connections_bears_loads_that_lie_far_apart() -> None:
    """An agent that reports a load beyond all reason is chosen last, and choosing it takes no longer."""
    strategy = LeastConnections(Random(1))
    for load in (10**15, -(10**15), 3):
        strategy.offer(agent(f"a{load}", outside_load=load))
    for expected in ("a-1000000000000000", "a3", "a1000000000000000"):
        assert strategy.choose(ANY_TASK) == expected
        strategy.withdraw(expected)
    assert strategy.choose(ANY_TASK) is None


def test_an_index_keeps_few_outdated_entries() -> None:
    """Loads that come and go do not pile up, whether or not anything is chosen."""
    strategy = offered(LeastConnections, agent("still"))
    for number in range(10_000):
        strategy.offer(agent("moving", load=1 + number))
    assert sum(len(list(strategy._entries_of(key))) for key in strategy._buckets) == strategy._size <= 2 * 2 + 64
    assert len(strategy._keys) == len(strategy._buckets) <= 2 * 2 + 64
    strategy.withdraw("still")
    assert strategy.choose(ANY_TASK) == "moving"


# Turns


def test_round_robin_goes_around() -> None:
    """Each in turn whatever its load; one that was away comes last."""
    fleet = agents(3)
    strategy = offered(RoundRobin, *fleet)
    assert take(strategy, fleet, 4) == ["a0", "a1", "a2", "a0"]
    strategy.withdraw("a1")
    assert take(strategy, fleet, 2) == ["a2", "a0"]
    strategy.offer(fleet[1])
    strategy.offer(fleet[2])  # its load has changed elsewhere, which is no turn
    assert take(strategy, fleet, 3) == ["a2", "a0", "a1"]


@pytest.mark.parametrize("cls", [RoundRobin, WeightedRoundRobin])
def test_turns_stay_fair_while_agents_come_and_go(cls: type[Strategy]) -> None:
    """Agents that are full now and then get as many turns as the others, to within 5 %."""
    random = Random(3)
    fleet = agents(8)
    strategy = offered(cls, *fleet)
    counted: Counter[str] = Counter()
    away: list[FleetAgent] = []
    for _ in range(8_000):
        counted.update(take(strategy, fleet, 1))
        if away:
            strategy.offer(away.pop())
        if random.random() < 0.5:
            away.append(random.choice(fleet[:4]))
            strategy.withdraw(away[-1].agent_id)
        for one in fleet:
            one.load = 0
    assert all(abs(counted[one.agent_id] - 1_000) < 50 for one in fleet), counted


def test_a_new_agent_gets_no_more_turns_than_the_others() -> None:
    """It has nothing to catch up on."""
    fleet = agents(2, capacity=10_000)
    strategy = offered(RoundRobin, *fleet)
    take(strategy, fleet, 1_000)
    late = agent("late", capacity=10_000)
    strategy.offer(late)
    assert Counter(take(strategy, [*fleet, late], 300)) == {"a0": 100, "a1": 100, "late": 100}


def test_weighted_round_robin_is_exact_and_has_no_bursts() -> None:
    """Shares are those of the weights; the heavy agent's turns are spread among the others' as evenly as can be."""
    fleet = [agent("heavy", weight=5.0, capacity=10**6), agent("b", capacity=10**6), agent("c", capacity=10**6)]
    chosen = take(offered(WeightedRoundRobin, *fleet), fleet, 7_000)
    counted = Counter(chosen)
    assert all(abs(counted[name] - count) <= 1 for name, count in (("heavy", 5_000), ("b", 1_000), ("c", 1_000)))
    assert longest_run(chosen, "heavy") <= 4  # as in nginx; 5 if all turns of a round came at once
    for at in range(0, 6_993, 7):
        assert 4 <= Counter(chosen[at : at + 7])["heavy"] <= 6


def test_many_equal_weights_have_no_bursts() -> None:
    """Among 50 equal agents, nobody has its second turn before everybody had one."""
    fleet = agents(50, weight=3.0)
    chosen = take(offered(WeightedRoundRobin, *fleet), fleet, 200)
    for at in range(0, 200, 50):
        assert len(set(chosen[at : at + 50])) == 50


def test_turns_of_agents_without_room_are_forgotten_in_time() -> None:
    """Thousands of agents that came and went take no memory."""
    strategy = RoundRobin(Random(1))
    for number in range(5_000):
        strategy.offer(agent(f"a{number}"))
        strategy.withdraw(f"a{number}")
    assert len(strategy._turns) <= 1_001


# random, power_of_two


def test_random_is_fair() -> None:
    """With a seed, so that it is the same each time: no agent is chosen a tenth more than its share."""
    fleet = agents(5, capacity=10**6)
    strategy = offered(RandomChoice, *fleet, seed=42)
    strategy.withdraw("a0")
    counted = Counter(take(strategy, fleet, 20_000))
    assert set(counted) == {"a1", "a2", "a3", "a4"}
    assert all(abs(count - 5_000) < 500 for count in counted.values())


def test_random_is_fair_among_those_that_are_not_avoided() -> None:
    """The share of an avoided agent is divided evenly."""
    fleet = agents(3, capacity=10**6)
    strategy = offered(RandomChoice, *fleet, seed=42)
    counted = Counter(take(strategy, fleet, 10_000, TaskContext(avoid=frozenset({"a1"}))))
    assert set(counted) == {"a0", "a2"}
    assert abs(counted["a0"] - 5_000) < 250


def test_power_of_two_never_takes_the_most_loaded_and_needs_no_more_than_two() -> None:
    """The agent with the highest load of all loses every comparison; the next one is chosen now and then."""
    fleet = [agent(f"a{load}", load=load) for load in range(4)]
    strategy = offered(PowerOfTwo, *fleet)
    counted = Counter(strategy.choose(ANY_TASK) for _ in range(6_000))
    # The least loaded is in half of the pairs, the next in a third of those without it, and so on.
    assert set(counted) == {"a0", "a1", "a2"}
    assert [round(counted[f"a{load}"] / 1_000) for load in range(3)] == [3, 2, 1]


# resource_based


def test_resource_based_looks_at_the_scarcest_resource() -> None:
    """The highest of cpu, memory and used slots counts; what is not reported is left out."""
    fleet = [
        agent("cpu", cpu=0.9, memory=0.1),
        agent("memory", cpu=0.1, memory=0.8),
        agent("slots", cpu=0.1, memory=0.1, load=70, load_at_report=70),
        agent("silent"),
        agent("idle", cpu=0.1, memory=0.2),
    ]
    strategy = offered(ResourceBased, *fleet)
    order = []
    while (chosen := strategy.choose(ANY_TASK)) is not None:
        order.append(chosen)
        strategy.withdraw(chosen)
    assert order == ["silent", "idle", "slots", "memory", "cpu"]


def test_resource_based_counts_what_was_placed_since_the_report() -> None:
    """An idle machine is not flooded until its next report: two are filled evenly, though one reports a bit less."""
    fleet = [agent("a", cpu=0.10, capacity=10), agent("b", cpu=0.12, capacity=10)]
    assert Counter(take(offered(ResourceBased, *fleet), fleet, 10)) == {"a": 5, "b": 5}


def test_saturated_agents_share_by_their_slots() -> None:
    """Among machines that all are full, the one with more free slots is first."""
    fleet = [agent("a", cpu=1.0, load=9, load_at_report=9), agent("b", cpu=1.0, load=3, load_at_report=3)]
    assert offered(ResourceBased, *fleet).choose(ANY_TASK) == "b"


# geographic


def test_geographic_takes_the_nearest_then_zone_then_region() -> None:
    """By coordinates if both have them; else by zone, region, elsewhere, and last those whose place is unknown."""
    fleet = [agent("tokyo", location=TOKYO), agent("paris", location=PARIS), agent("berlin", location=BERLIN)]
    strategy = offered(Geographic, *fleet)
    assert strategy.choose(TaskContext(location=Location(lat=52.0, lon=13.0))) == "berlin"
    assert strategy.choose(TaskContext(location=Location(lat=34.0, lon=135.0))) == "tokyo"
    assert strategy.fallback is None
    places = {
        "nowhere": None,
        "far": Location(region="asia"),
        "region": Location(region="eu", zone="eu-2"),
        "zone": Location(region="eu", zone="eu-1"),
    }
    strategy = offered(Geographic, *(agent(name, location=place) for name, place in places.items()))
    order = []
    while (chosen := strategy.choose(TaskContext(location=Location(region="eu", zone="eu-1")))) is not None:
        order.append(chosen)
        strategy.withdraw(chosen)
    assert order == ["zone", "region", "far", "nowhere"]


def test_geographic_lets_the_load_decide_among_near_ties() -> None:
    """Two data centres in one city are one place; so are distances that differ by less than 10 %."""
    here = Location(lat=52.52, lon=13.40)
    fleet = [agent("near", location=Location(lat=52.53, lon=13.41), load=2), agent("nearer", location=here, load=5)]
    assert offered(Geographic, *fleet).choose(TaskContext(location=here)) == "near"
    fleet = [agent("a", location=PARIS, load=1), agent("b", location=Location(lat=49.0, lon=2.9))]
    assert offered(Geographic, *fleet).choose(TaskContext(location=BERLIN)) == "b"


def test_geographic_falls_back_to_the_load_and_says_so() -> None:
    """Without a place of the task, or of any agent."""
    fleet = [agent("a", location=BERLIN, load=3), agent("b", location=TOKYO)]
    strategy = offered(Geographic, *fleet)
    assert (strategy.choose(ANY_TASK), strategy.fallback) == ("b", "the task has no location")
    strategy = offered(Geographic, agent("a", load=3), agent("b"))
    assert (strategy.choose(TaskContext(location=BERLIN)), strategy.fallback) == ("b", "no agent has a location")


def test_distances_are_those_of_the_globe() -> None:
    """To within 1 %: Berlin to Paris 878 km, to Tokyo 8,918 km; the way across the date line is the short one."""
    assert distances_km(BERLIN, [PARIS])[0] == pytest.approx(878, rel=0.01)
    assert distances_km(BERLIN, [TOKYO])[0] == pytest.approx(8918, rel=0.01)
    assert distances_km(Location(lat=0, lon=179.5), [Location(lat=0, lon=-179.5)])[0] == pytest.approx(111, rel=0.01)
    assert distances_km(Location(lat=0, lon=0), [Location(lat=0, lon=180)])[0] == pytest.approx(20015, rel=0.01)


# capability_based


def test_capability_based_keeps_rare_skills_free() -> None:
    """Tasks that any agent can do go to agents that can do nothing else, until these are full."""
    plain = [agent(f"plain{number}", capabilities=frozenset({"echo"}), capacity=2) for number in range(3)]
    gpu = agent("gpu", capabilities=frozenset({"echo", "gpu"}), capacity=2)
    fleet = [gpu, *plain]
    chosen = take(offered(CapabilityBased, *fleet), fleet, 8)
    assert "gpu" not in chosen[:6]
    assert Counter(chosen[:6]) == {"plain0": 2, "plain1": 2, "plain2": 2}
    assert chosen[6:] == ["gpu", "gpu"]


def test_capability_based_follows_the_demand() -> None:
    """Of two skills, the one that tasks ask for stays free; the order follows the demand."""
    learned = Learned()
    wanted = agent("wanted", capabilities=frozenset({"echo", "ocr"}))
    idle = agent("idle", capabilities=frozenset({"echo", "x", "y"}))
    strategy = offered(CapabilityBased, wanted, idle, learned=learned)
    assert strategy.choose(ANY_TASK) == "wanted"
    learned.demand.add(("ocr",), 10)
    learned.demand.update({"ocr": 1}, 0.0)
    assert strategy.choose(ANY_TASK) == "idle"
    learned.demand.add(("x",), 10_000)
    learned.demand.update({"ocr": 1, "x": 1}, 60.0)
    assert strategy.choose(ANY_TASK) == "wanted"


def test_a_skill_that_many_agents_have_is_in_less_demand() -> None:
    """Demand counts by the agents that share it."""
    learned = Learned()
    learned.demand.add(("common", "rare"), 10)
    learned.demand.update({"common": 20, "rare": 1}, 0.0)
    assert learned.demand.pressure({"common"}) < learned.demand.pressure({"rare"})


def test_capability_based_is_a_first_key_for_any_strategy() -> None:
    """Within agents of equal demand, another strategy decides."""
    fleet = [agent(name, capabilities=frozenset({"echo"}), load=load) for name, load in (("a", 0), ("b", 9))]
    strategy = CapabilityBased(Random(1), within=RoundRobin)
    for one in fleet:
        strategy.offer(one)
    assert take(strategy, fleet, 4) == ["a", "b", "a", "b"]


# least_response_time, predictive, prequal


def learned_of(times: dict[str, float], samples: int = 40, task_type: str = "t") -> Learned:
    """What is known when each agent took this many seconds, alone."""
    learned = Learned()
    for _ in range(samples):
        for agent_id, seconds in times.items():
            learned.succeeded(agent_id, task_type, seconds, 0, 1.0)
    return learned


T = TaskContext("t")


@pytest.mark.parametrize("cls", [LeastResponseTime, Predictive, Prequal])
def test_adaptive_strategies_take_the_fastest_for_the_type(cls: type[Strategy]) -> None:
    """Times are learned for each type: an agent may be the best for one and the worst for another."""
    learned = learned_of({"a": 0.1, "b": 0.4})
    for _ in range(40):
        learned.succeeded("a", "u", 0.4, 0, 1.0)
        learned.succeeded("b", "u", 0.1, 0, 1.0)
    strategy = offered(cls, agent("a"), agent("b"), learned=learned)
    assert (strategy.choose(T), strategy.choose(TaskContext("u"))) == ("a", "b")


@pytest.mark.parametrize("cls", [LeastResponseTime, Predictive, Prequal])
def test_times_within_a_tenth_are_equal_and_the_load_decides(cls: type[Strategy]) -> None:
    """So noise does not turn a fleet of alike agents into a queue for one; an unknown type is spread by load too."""
    learned = learned_of({"a": 0.100, "b": 0.104})
    learned.exponent = 0.0
    fleet = agents(2)
    fleet[0].agent_id, fleet[1].agent_id = "a", "b"
    strategy = offered(cls, *fleet, learned=learned)
    assert Counter(take(strategy, fleet, 10, T)) == {"a": 5, "b": 5}
    assert Counter(take(strategy, fleet, 10, TaskContext("new"))) == {"a": 5, "b": 5}


@pytest.mark.parametrize("cls", [LeastResponseTime, Predictive, Prequal])
def test_the_fastest_of_those_with_the_same_load_is_chosen(cls: type[Strategy]) -> None:
    """Also within a tenth: free agents with one slot have the same load. Equal times are left to chance."""
    learned = learned_of({"a0": 0.106, "a1": 0.100, "a2": 0.103})
    strategy = offered(cls, *agents(3), learned=learned)
    assert {strategy.choose(T) for _ in range(20)} == {"a1"}
    strategy = offered(cls, *agents(3), learned=learned_of(dict.fromkeys(("a0", "a1", "a2"), 0.1)))
    assert {strategy.choose(T) for _ in range(50)} == {"a0", "a1", "a2"}


def test_the_load_term_moves_tasks_from_a_fast_agent_that_is_full() -> None:
    """With slots that share a CPU, an agent of twice the speed gets two thirds of the tasks."""
    learned = learned_of({"a": 0.1, "b": 0.2})
    assert learned.exponent == 1.0
    fleet = [agent("a"), agent("b")]
    counted = Counter(take(offered(Predictive, *fleet, learned=learned), fleet, 30, T))
    assert abs(counted["a"] - 20) <= 1


def test_predictive_counts_failures() -> None:
    """An agent that fails three quarters of its tasks takes four attempts for each; response times do not show it."""
    learned = learned_of({"a": 0.1, "b": 0.2})
    for _ in range(200):
        for _ in range(3):
            learned.failed("a", "t", 1.0)
        learned.succeeded("a", "t", 0.1, 0, 1.0)
        learned.succeeded("b", "t", 0.2, 0, 1.0)
    fleet = (agent("a"), agent("b"))
    assert offered(Predictive, *fleet, learned=learned).choose(T) == "b"
    assert offered(LeastResponseTime, *fleet, learned=learned).choose(T) == "a"


def test_prequal_leaves_out_the_hot() -> None:
    """The fastest agent is passed over while it has more in flight than most; cold ones are compared by time."""
    learned = learned_of({f"a{number}": 0.01 if number == 9 else 0.2 + number / 10 for number in range(10)})
    learned.exponent = 0.0
    fleet = agents(10, load=1)
    fleet[9].load = 5
    strategy = offered(Prequal, *fleet, learned=learned)
    assert strategy.choose(T) == "a0"
    fleet[9].load = 1
    assert strategy.choose(T) == "a9"


def test_prequal_leaves_out_half_of_a_few() -> None:
    """With six agents or fewer, those above the median are hot."""
    learned = learned_of({"a0": 0.4, "a1": 0.3, "a2": 0.2, "a3": 0.1})
    learned.exponent = 0.0
    fleet = agents(4)
    for one, load in zip(fleet, (0, 1, 2, 3), strict=True):
        one.load = load
    assert offered(Prequal, *fleet, learned=learned).choose(T) == "a1"


# consistent_hash


def key_task(key: str) -> TaskContext:
    """A task with this affinity key."""
    return TaskContext(affinity_key=key)


def owners(strategy: ConsistentHash, count: int = 2_000) -> dict[str, str]:
    """The owner of each of ``count`` keys."""
    return {f"k{number}": strategy.owner(f"k{number}") for number in range(count)}


def test_consistent_hash_moves_only_the_keys_of_agents_that_come_or_go() -> None:
    """A new agent takes its share and no other key moves; when it leaves, exactly these keys return."""
    fleet = agents(20)
    strategy = offered(ConsistentHash, *fleet)
    before = owners(strategy)
    strategy.offer(agent("new"))
    after = owners(strategy)
    moved = {key for key in before if before[key] != after[key]}
    assert {after[key] for key in moved} == {"new"}
    assert 2_000 / 21 / 2 < len(moved) < 2_000 / 21 * 2
    strategy.withdraw("new")
    assert owners(strategy) == before
    strategy.withdraw("a7")
    assert {key for key, owner in owners(strategy).items() if owner != before[key]} == {
        key for key, owner in before.items() if owner == "a7"
    }


def test_consistent_hash_depends_on_nothing_but_ids_and_keys() -> None:
    """Every distributor finds the same owner, whatever it was offered in which order."""
    fleet = agents(10)
    assert owners(offered(ConsistentHash, *fleet, seed=1)) == owners(offered(ConsistentHash, *fleet[::-1], seed=2))


def test_consistent_hash_forgets_agents_that_do_not_return() -> None:
    """Whatever came, went and changed its weight, the owners are those of a new ring, and few other points are left."""
    random, fleet = Random(5), agents(40)
    strategy = offered(ConsistentHash, *fleet)
    for number in range(60):
        offers = random.random() < (0.2 if number % 2 else 0.8)
        for one in random.sample(fleet, random.randrange(20)):
            if offers:
                one.weight = random.choice((1.0, 3.0))
                strategy.offer(one)
            else:
                strategy.withdraw(one.agent_id)
        present = [one for one in fleet if one.agent_id in strategy._counted]
        if not present:
            continue
        ring = strategy._ring
        used = sum(ring.points_of(one.agent_id) for one in present)
        assert used <= len(ring) == sum(map(len, ring._sectors)) <= (used + UNUSED_KEPT + 1) / (1 - UNUSED)
        for one in present:
            one.weight = strategy._counted[one.agent_id][1]
        assert owners(strategy, 50) == owners(offered(ConsistentHash, *present), 50)


def test_consistent_hash_is_bounded() -> None:
    """No agent gets more than 1.25 times its share, rounded up, even if all tasks have one key."""
    fleet = agents(8, capacity=10_000)
    strategy = offered(ConsistentHash, *fleet)
    for number in range(1, 401):
        take(strategy, fleet, 1, key_task("hot"))
        assert max(one.load for one in fleet) <= -(-1.25 * number // 8)
    assert strategy.fallback in {None, "the owner of the key has too many tasks"}


def test_consistent_hash_keeps_a_key_while_its_owner_may_have_it() -> None:
    """With even load, tasks of a key go to its owner; a task without a key goes to the least loaded, and it says so."""
    fleet = agents(4, load=10)
    strategy = offered(ConsistentHash, *fleet)
    owner = strategy.owner("k")
    assert take(strategy, fleet, 2, key_task("k")) == [owner, owner]
    assert strategy.choose(key_task("k")) == owner
    assert strategy.fallback is None
    strategy = offered(ConsistentHash, *fleet)
    assert strategy.choose(ANY_TASK) != owner
    assert strategy.fallback == "the task has no affinity key"


def test_heavier_agents_own_more_keys() -> None:
    """An agent of weight 3 owns about three times as many keys as one of weight 1."""
    counted = Counter(owners(offered(ConsistentHash, agent("heavy", weight=3.0), *agents(6))).values())
    assert 1.5 < counted["heavy"] / (sum(counted[f"a{number}"] for number in range(6)) / 6) < 4.5


def test_strategies_are_found_by_name() -> None:
    """Each under the name that a task or a setting may say, and each names its rule in a docstring."""
    assert STRATEGIES["round_robin"] is RoundRobin
    assert all(cls.name == name and cls.__doc__ for name, cls in STRATEGIES.items())
