"""Outlier ejection: who is out, for how long, and how many at most."""

from __future__ import annotations

from random import Random

import pytest

from coord.placement.ejection import EJECTED_MOST_S, EJECTED_S, WINDOW, Ejections

FLEET = [f"a{number}" for number in range(10)]


def attempt(ejections: Ejections, agent_id: str, *, failed: bool, count: int = 1, now: float = 0.0) -> bool:
    """Some attempts of an agent; True if one of them ejected it."""
    results = [ejections.record(agent_id, "t", failed=failed, now=now) for _ in range(count)]
    return any(results)


def fleet_that_works(now: float = 0.0, ejections: Ejections | None = None) -> Ejections:
    """All agents but the first have done 20 tasks."""
    ejections = Ejections() if ejections is None else ejections
    for agent_id in FLEET[1:]:
        attempt(ejections, agent_id, failed=False, count=20, now=now)
    return ejections


def test_an_agent_that_fails_is_out_for_its_type_and_comes_back() -> None:
    """After about 20 attempts, for 30 s, for that type alone."""
    ejections = fleet_that_works()
    assert not attempt(ejections, "a0", failed=True, count=WINDOW - 1)
    assert ejections.ejected("t", FLEET, 0.0) == frozenset()
    assert attempt(ejections, "a0", failed=True)
    assert ejections.ejected("t", FLEET, 1.0) == {"a0"}
    assert ejections.ends_at("a0", "t") == EJECTED_S
    assert ejections.ejected("u", FLEET, 1.0) == frozenset()
    assert ejections.ejected("t", FLEET, EJECTED_S) == frozenset()
    assert ejections.ends_at("a0", "t") is None


def test_ejections_double_and_start_again_after_a_good_time() -> None:
    """30 s, 60 s, 120 s, ... up to the maximum; an agent that was good for as long as it was out starts at 30 s."""
    ejections, now, lengths = Ejections(), 0.0, []
    for _ in range(8):
        fleet_that_works(now, ejections)
        assert attempt(ejections, "a0", failed=True, count=WINDOW, now=now)
        ends_at = ejections.ends_at("a0", "t")
        assert ends_at is not None
        lengths.append(ends_at - now)
        now = ends_at
        ejections.ejected("t", FLEET, now)
    assert lengths == [30, 60, 120, 240, 480, 900, 900, 900]
    attempt(ejections, "a0", failed=False, count=WINDOW, now=now)
    attempt(ejections, "a0", failed=False, now=now + EJECTED_MOST_S)
    attempt(ejections, "a0", failed=True, count=WINDOW, now=now + EJECTED_MOST_S)
    assert ejections.ends_at("a0", "t") == now + EJECTED_MOST_S + EJECTED_S


def test_failures_in_a_row_eject_nobody() -> None:
    """Five in a row happen to a healthy agent that fails now and then."""
    ejections = fleet_that_works()
    attempt(ejections, "a0", failed=False, count=20)
    assert not attempt(ejections, "a0", failed=True, count=5)


@pytest.mark.parametrize("rate", [0.5, 1.0])
def test_bad_tasks_eject_nobody(rate: float) -> None:
    """If all agents fail the tasks, the tasks are bad."""
    random, ejections = Random(1), Ejections()
    ejected = 0
    for _ in range(2_000):
        agent_id = random.choice(FLEET)
        ejected += ejections.record(agent_id, "t", failed=random.random() < rate, now=0.0)
    assert ejected <= 2  # by chance; the limit below holds for these too
    assert len(ejections.ejected("t", FLEET, 0.0)) <= 2


def test_at_most_a_fifth_is_out_but_one_of_two_may_be() -> None:
    """The first ejected stay out; of a group without other agents nobody is."""
    ejections = Ejections()
    for agent_id in FLEET[4:]:
        attempt(ejections, agent_id, failed=False, count=20)
    for agent_id in FLEET[:4]:
        assert attempt(ejections, agent_id, failed=True, count=WINDOW)
    assert ejections.ejected("t", FLEET, 1.0) == {"a0", "a1"}
    assert ejections.ejected("t", ["a2", "a9"], 1.0) == {"a2"}
    assert ejections.ejected("t", ["a2"], 1.0) == frozenset()


def test_one_that_fails_at_once_among_slow_healthy_ones_is_found() -> None:
    """It makes nearly all attempts; the others have made a few only, and each agent has one vote."""
    ejections = Ejections()
    assert not attempt(ejections, "bad", failed=True, count=100)
    attempt(ejections, "good", failed=False, count=2)
    attempt(ejections, "fine", failed=False, count=2)
    assert not attempt(ejections, "bad", failed=True)
    attempt(ejections, "fine", failed=False)
    assert attempt(ejections, "bad", failed=True)
    assert ejections.ejected("t", ["bad", "good", "fine"], 1.0) == {"bad"}


def test_attempts_of_before_the_ejection_do_not_count() -> None:
    """What was placed earlier ends later, and prolongs nothing."""
    ejections = fleet_that_works()
    attempt(ejections, "a0", failed=True, count=WINDOW)
    assert not attempt(ejections, "a0", failed=True, count=100, now=EJECTED_S - 1)
    assert ejections.ends_at("a0", "t") == EJECTED_S


def test_pairs_are_bounded_and_forgotten() -> None:
    """The pair without an attempt for the longest time is dropped; an agent that is gone leaves nothing."""
    ejections = Ejections(most_cells=10)
    for number in range(50):
        ejections.record(f"a{number}", f"t{number % 7}", failed=True, now=0.0)
    assert len(ejections) == 10
    for number in range(50):
        ejections.forget(f"a{number}")
    assert (len(ejections), ejections._types) == (0, {})
