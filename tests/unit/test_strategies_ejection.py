"""Outlier ejection: who is out, for how long, and how many at most."""

from __future__ import annotations

from itertools import permutations
from random import Random

import pytest

from coord.placement.ejection import (
    EJECTED_MOST_S,
    EJECTED_S,
    WINDOW,
    Attempts,
    Ejection,
    Ejections,
    most_ejected,
)

FLEET = [f"a{number}" for number in range(10)]


def attempt(ejections: Ejections, agent_id: str, *, failed: bool, count: int = 1, now: float = 0.0) -> bool:
    """Some attempts of an agent, one after the other; True if one of them ejected it."""
    results = [ejections.record(agent_id, "t", 1, int(failed), now) for _ in range(count)]
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
    attempt(ejections, "a0", failed=False)
    assert not attempt(ejections, "a0", failed=True, count=WINDOW - 2)
    assert ejections.ejected("t", FLEET) == frozenset()
    assert attempt(ejections, "a0", failed=True)
    assert ejections.ejected("t", FLEET) == {"a0"}
    assert ejections.ends_at("a0", "t") == EJECTED_S
    assert ejections.ejected("u", FLEET) == frozenset()
    assert ejections.review(EJECTED_S - 1) == (set(), [])
    assert ejections.review(EJECTED_S) == ({"t"}, [])
    assert ejections.ejected("t", FLEET) == frozenset()
    assert ejections.ends_at("a0", "t") is None


def test_fewer_attempts_are_enough_if_all_fail() -> None:
    """Eight; four of one that was ejected before; the more the others fail, the more it takes."""
    ejections = fleet_that_works()
    assert not attempt(ejections, "a0", failed=True, count=7)
    assert attempt(ejections, "a0", failed=True)
    ejections.review(EJECTED_S)
    assert not attempt(ejections, "a0", failed=True, count=3, now=EJECTED_S)
    assert attempt(ejections, "a0", failed=True, now=EJECTED_S)
    others = Ejections()
    for agent_id in FLEET[1:]:
        for number in range(20):
            attempt(others, agent_id, failed=number % 5 == 0)
    assert not attempt(others, "a0", failed=True, count=10)
    assert attempt(others, "a0", failed=True, count=10)


def test_ejections_double_and_start_again_after_a_good_time() -> None:
    """30 s, 60 s, 120 s, ... up to the maximum; an agent that was good for as long as it was out starts at 30 s."""
    ejections, now, lengths = Ejections(), 0.0, []
    for _ in range(8):
        fleet_that_works(now, ejections)
        assert attempt(ejections, "a0", failed=True, count=8, now=now)
        ends_at = ejections.ends_at("a0", "t")
        assert ends_at is not None
        lengths.append(ends_at - now)
        now = ends_at
        ejections.review(now)
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
@pytest.mark.parametrize("size", [2, 3, 10])
def test_bad_tasks_eject_nobody_for_long(rate: float, size: int) -> None:
    """If all agents fail, the tasks are bad: the agent that was ejected first comes back when the others fail too."""
    random, ejections = Random(1), Ejections()
    out = 0
    for number in range(5_000):
        now = number / 100
        agent_id = random.choice(FLEET[:size])
        if agent_id not in ejections.ejected("t", FLEET[:size]):
            ejections.record(agent_id, "t", 1, int(random.random() < rate), now)
        ejections.review(now)
        out += len(ejections.ejected("t", FLEET[:size]))
    assert out / 5_000 < 0.02 * size


def test_at_most_a_fifth_is_out_but_one_of_two_may_be() -> None:
    """The first ejected stay out; of a group without other agents nobody is."""
    ejections = Ejections()
    for agent_id in FLEET[4:]:
        attempt(ejections, agent_id, failed=False, count=20)
    for agent_id in FLEET[:4]:
        assert attempt(ejections, agent_id, failed=True, count=WINDOW)
    assert ejections.ejected("t", FLEET) == {"a0", "a1"}
    assert ejections.ejected("t", ["a2", "a9"]) == {"a2"}
    assert ejections.ejected("t", ["a2"]) == frozenset()
    assert [most_ejected(count) for count in (0, 1, 2, 3, 9, 10, 15, 1_000)] == [0, 0, 1, 1, 1, 2, 3, 200]


def test_one_that_fails_at_once_among_slow_healthy_ones_is_found() -> None:
    """Before the others have finished anything. If they then fail as well, it comes back; if they do not, it is out."""
    ejections = Ejections()
    assert attempt(ejections, "bad", failed=True, count=8)
    assert ejections.ejected("t", ["bad", "good", "fine"]) == {"bad"}
    for agent_id in ("good", "fine"):
        attempt(ejections, agent_id, failed=False, count=3)
    assert ejections.review(1.0) == (set(), [])
    tasks_are_bad = Ejections()
    assert attempt(tasks_are_bad, "bad", failed=True, count=8)
    attempt(tasks_are_bad, "good", failed=True, count=5, now=1.0)
    types, (early,) = tasks_are_bad.review(1.0)
    assert (types, early.agent_id, early.for_s, early.others_rate) == ({"t"}, "bad", 0.0, 1.0)
    assert tasks_are_bad.ejected("t", ["bad", "good", "fine"]) == frozenset()
    assert not attempt(tasks_are_bad, "bad", failed=True, count=20, now=2.0)


def test_many_attempts_count_as_the_same_number_of_single_ones() -> None:
    """Distributors exchange sums."""
    for sizes in ([5, 30, 2], [1, 1, 100], [19, 1, 1]):
        one, other = Attempts(), Attempts()
        for size in sizes:
            failures = size // 3
            one.add(size, failures)
            for number in range(size):
                other.add(1, int(number % 3 == 0 and number // 3 < failures))
        assert one.count == other.count
        assert one.rate == pytest.approx(other.rate, abs=0.1)


def test_an_ejection_of_another_distributor_is_adopted_once() -> None:
    """With its length and its number in a row; an own one stays as it is."""
    ejections = Ejections()
    theirs = Ejection("a0", "t", 50.0, 0.9, 0.1, 2)
    assert ejections.adopt(theirs, 100.0)
    assert not ejections.adopt(theirs, 101.0)
    assert ejections.ends_at("a0", "t") == 150.0
    ejections.review(150.0)
    fleet_that_works(150.0, ejections)
    assert attempt(ejections, "a0", failed=True, count=4, now=150.0)
    assert ejections.ends_at("a0", "t") == 150.0 + 120
    assert not ejections.adopt(theirs, 151.0)


def test_distributors_agree_on_which_of_too_many_ejected_agents_are_out() -> None:
    """⚠ By the records, in whatever order they were read; one that started later would keep other agents out."""
    recorded = [Ejection(f"a{number}", "t", 30.0, 1.0, 0.0, 1, began) for number, began in enumerate((7.0, 5.0, 5.0))]
    for order in permutations(recorded):
        ejections = Ejections()
        for ejection in order:
            assert ejections.adopt(ejection, 100.0)
        assert ejections.ejected("t", ["a0", "a1", "a2", "a3"]) == {"a1"}
        assert ejections.ejected("t", ["a0", "a2", "a3"]) == {"a2"}


def test_an_own_ejection_takes_its_place_when_it_is_recorded() -> None:
    """Until then it is behind those that are recorded."""
    ejections = Ejections()
    assert attempt(ejections, "a0", failed=True, count=8)
    assert ejections.adopt(Ejection("a1", "t", 30.0, 1.0, 0.0, 1, 6.0), 0.0)
    assert ejections.ejected("t", ["a0", "a1", "a2"]) == {"a1"}
    own = Ejection("a0", "t", 30.0, 1.0, 0.0, 1, 5.0)
    assert ejections.adopt(own, 1.0)
    assert not ejections.adopt(own, 2.0)
    assert ejections.ends_at("a0", "t") == 32.0
    assert ejections.ejected("t", ["a0", "a1", "a2"]) == {"a0"}


def test_an_ejection_that_another_distributor_has_ended_early_ends() -> None:
    """⚠ Its record is gone. One that is not recorded yet, or is about to end anyway, stays."""
    ejections = Ejections()
    for agent_id, left_s in (("a0", 30.0), ("a1", 0.5)):
        assert ejections.adopt(Ejection(agent_id, "t", left_s, 1.0, 0.0, 2, 5.0), 100.0)
    assert attempt(ejections, "a2", failed=True, count=8, now=100.0)
    assert ejections.end_unrecorded("a0", ["t"], 101.0) == set()
    assert ejections.end_unrecorded("a0", ["u"], 101.0) == {"t"}
    assert ejections.end_unrecorded("a1", [], 100.0) == set()
    assert ejections.end_unrecorded("a2", [], 100.0) == set()
    assert ejections.end_unrecorded("new", [], 100.0) == set()
    assert [ejections.ends_at(f"a{number}", "t") for number in range(3)] == [None, 100.5, 130.0]


def test_a_new_process_gets_another_chance() -> None:
    """Its ejections end; it is known, so four failures are enough."""
    ejections = fleet_that_works()
    attempt(ejections, "a0", failed=True, count=8)
    assert ejections.release("a0", 1.0) == {"t"}
    assert ejections.ejected("t", FLEET) == frozenset()
    assert attempt(ejections, "a0", failed=True, count=4, now=1.0)
    assert ejections.ends_at("a0", "t") == 61.0


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
        ejections.record(f"a{number}", f"t{number % 7}", 1, 1, 0.0)
    assert len(ejections) == 10
    for number in range(50):
        ejections.forget(f"a{number}")
    assert (len(ejections), ejections._types, ejections._out) == (0, {}, {})
