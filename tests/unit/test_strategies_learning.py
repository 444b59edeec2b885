"""What is learned of agents: service times, shrinkage, decay, failures, and the load exponent."""

from __future__ import annotations

from math import exp, log
from random import Random

import pytest

from coord.placement.learning import HALF_LIFE_SAMPLES, IDLE_HALF_LIFE_S, Learned


def learn(learned: Learned, agent_id: str, seconds: float, count: int = 100, now: float = 0.0) -> None:
    """Some tasks of an agent without other load."""
    for _ in range(count):
        learned.succeeded(agent_id, "t", seconds, 0, now)


def test_nothing_is_known_at_first() -> None:
    """No estimate for a type without samples; the load term is the safe one."""
    learned = Learned()
    assert learned.service_s("a", "t") is None
    assert learned.failure_rate("a", "t") == 0.0
    assert learned.load_term(3) == 4.0


def test_an_unknown_agent_counts_as_the_mean_of_the_others() -> None:
    """The mean of the logarithms, each agent with one vote, however many tasks it did."""
    learned = Learned()
    learn(learned, "fast", 0.1, 400)
    learn(learned, "slow", 0.4, 100)
    assert learned.service_s("new", "t") == pytest.approx(0.2, rel=0.02)
    assert learned.service_s("fast", "t") == pytest.approx(0.1, rel=0.02)


def test_an_agent_that_changes_is_followed_by_the_half_life() -> None:
    """After 50 samples at another speed, the estimate is half way, by its logarithm."""
    learned = Learned()
    learn(learned, "b", 0.1, 1_000)
    learn(learned, "a", 0.1, 1_000)
    learn(learned, "a", 1.0, HALF_LIFE_SAMPLES)
    found = learned.service_s("a", "t")
    assert found is not None
    assert log(found / 0.1) / log(10) == pytest.approx(0.5, abs=0.03)


def test_an_idle_estimate_decays_towards_the_fleet() -> None:
    """Half of what distinguishes the agent is forgotten in 30 s, all in the long run; a long task is no idleness."""
    learned = Learned()
    learn(learned, "a", 0.4)
    learn(learned, "b", 0.1)
    learned.advance(IDLE_HALF_LIFE_S)
    assert learned.service_s("a", "t") == pytest.approx(0.2 * 2**0.5, rel=0.02)
    learned.advance(1_000.0)
    assert learned.service_s("a", "t") == pytest.approx(0.2, rel=0.02)
    learned = Learned()
    learn(learned, "a", 400.0)
    learn(learned, "b", 100.0)
    learned.advance(IDLE_HALF_LIFE_S)
    assert learned.service_s("a", "t") == pytest.approx(400, rel=0.02)


def test_few_noisy_samples_count_little() -> None:
    """Among alike agents, one lucky sample hardly moves an estimate; among different ones, it does."""
    random = Random(1)
    alike, unlike = Learned(), Learned()
    for number in range(20):
        for _ in range(100):
            noise = exp(random.gauss(0, 1))
            alike.succeeded(f"a{number}", "t", noise, 0, 0.0)
            unlike.succeeded(f"a{number}", "t", noise * 8 ** (number / 19), 0, 0.0)
    for learned in (alike, unlike):
        learned.succeeded("new", "t", 0.1, 0, 0.0)
    known = [learned.service_s("new", "t") for learned in (alike, unlike)]
    fleet = [learned.service_s("nobody", "t") for learned in (alike, unlike)]
    assert known[0] is not None
    assert known[1] is not None
    assert fleet[0] is not None
    assert fleet[1] is not None
    assert known[0] > 0.85 * fleet[0]
    assert known[1] < 0.6 * fleet[1]


@pytest.mark.parametrize("exponent", [0.0, 0.5, 1.0])
def test_the_load_exponent_is_learned(exponent: float) -> None:
    """From times and loads of agents of different speeds, with noise: 0 for independent slots, 1 for a shared CPU."""
    random, learned = Random(2), Learned()
    for _ in range(3_000):
        number, load = random.randrange(16), random.randrange(4)
        seconds = 8 ** (number / 15) * (1 + load) ** exponent * exp(random.gauss(0, 0.5))
        learned.succeeded(f"a{number}", "t", seconds, load, 0.0)
    assert learned.exponent == pytest.approx(exponent, abs=0.06)
    assert learned.service_s("a0", "t", 0) == pytest.approx(1.0, rel=0.15)
    assert learned.service_s("a15", "t", 3) == pytest.approx(8 * 4**exponent, rel=0.25)


def test_failures_count_by_type_and_teach_no_time() -> None:
    """An agent that fails at once is not fast; its failures at one type say nothing of another."""
    learned = Learned()
    learn(learned, "a", 0.5)
    learn(learned, "b", 0.5)
    for _ in range(500):
        learned.failed("a", "t", 0.0)
    learned.succeeded("a", "u", 0.5, 0, 0.0)
    assert learned.service_s("a", "t") == pytest.approx(0.5)
    assert learned.failure_rate("a", "t") == 0.95
    assert learned.failure_rate("a", "u") == learned.failure_rate("b", "t") == 0.0
    learned.advance(IDLE_HALF_LIFE_S)
    assert learned.failure_rate("a", "t") == pytest.approx(0.475, abs=0.01)


def test_distributors_that_merge_know_what_one_would() -> None:
    """Two that each see half, and exchange it in pieces, have the estimates of one that sees all, to within 3 %."""
    random = Random(3)
    whole, halves = Learned(), (Learned(), Learned())
    for turn in range(4_000):
        agent_id, load = f"a{random.randrange(8)}", random.randrange(3)
        seconds = (1 + int(agent_id[1:])) * (1 + load) ** 0.5 * exp(random.gauss(0, 0.3))
        for learned in (whole, halves[turn % 2]):
            if random.random() < 0.1 and learned is whole:
                whole.failed(agent_id, "t", turn / 1_000)
                halves[turn % 2].failed(agent_id, "t", turn / 1_000)
            learned.succeeded(agent_id, "t", seconds, load, turn / 1_000)
        if turn % 40 == 39:
            changes = [half.take_changes() for half in halves]
            halves[0].merge(changes[1], turn / 1_000)
            halves[1].merge(changes[0], turn / 1_000)
    assert halves[0].take_changes() == []
    for half in halves:
        assert half.exponent == pytest.approx(whole.exponent, abs=0.02)
        for number in range(8):
            found = half.service_s(f"a{number}", "t")
            assert found == pytest.approx(whole.service_s(f"a{number}", "t"), rel=0.03)
            assert half.failure_rate(f"a{number}", "t") == pytest.approx(
                whole.failure_rate(f"a{number}", "t"), abs=0.03
            )


def test_what_is_merged_is_not_passed_on() -> None:
    """Only a distributor's own samples are its changes, so nothing counts twice."""
    one, other = Learned(), Learned()
    learn(one, "a", 0.5, 10)
    other.merge(one.take_changes(), 0.0)
    assert other.service_s("a", "t") == pytest.approx(0.5)
    assert other.take_changes() == []


def test_cells_are_bounded_and_agents_forgotten() -> None:
    """The pair without a sample for the longest time is dropped; what is left works."""
    learned = Learned(most_cells=10)
    for number in range(100):
        learned.succeeded(f"a{number}", f"t{number % 3}", 0.1, 0, float(number))
    assert len(learned) == 10
    assert len(learned.take_changes()) == 10
    assert {agent_id for agent_id, _ in learned} == {f"a{number}" for number in range(90, 100)}
    learned.forget("a95")
    assert "a95" not in {agent_id for agent_id, _ in learned}
    assert learned.take_changes() == []


def test_strange_numbers_do_no_harm() -> None:
    """No time at all, a load below 0, and a time beyond reason are accepted."""
    learned = Learned()
    for seconds, load in ((0.0, 0.0), (1e300, 1e6), (-1.0, -5.0)):
        learned.succeeded("a", "t", seconds, load, 0.0)
    learned.advance(1.0)
    found = learned.service_s("a", "t", 5)
    assert found is not None
    assert 0 < found < float("inf")
