"""Expected durations of tasks: rounded to classes, learned for each, and used by the strategies that learn times."""

from __future__ import annotations

from random import Random

import pytest

from coord.codec import encode, pool_of
from coord.models.agents import FleetAgent
from coord.models.tasks import NamedTask, Pool, Requirements, TaskSubmitted, size_class
from coord.placement import STRATEGIES, Learned, TaskContext
from coord.queries import pool_in_record
from workers.view import View
from workers.waiting import NamedWaiting, Waiting

ADAPTIVE = ("least_response_time", "predictive", "prequal")
SHORT, LONG = TaskContext("t", expected_ms=16.0), TaskContext("t", expected_ms=1024.0)
ANY = TaskContext("t")


def fleet(*ids: str) -> list[FleetAgent]:
    """Idle agents."""
    return [FleetAgent(agent_id=agent_id, agent_type="worker", capacity=9) for agent_id in ids]


def learn(learned: Learned, agent_id: str, size: TaskContext, seconds: float, samples: int = 40) -> None:
    """Let an agent do tasks of a size."""
    for _ in range(samples):
        learned.succeeded(agent_id, "t", seconds, 0, 1.0, expected_ms=size.expected_ms)


def chosen(name: str, learned: Learned, task: TaskContext, *ids: str) -> str | None:
    """The agent that a strategy chooses."""
    strategy = STRATEGIES[name](Random(1), learned)
    for agent in fleet(*ids):
        strategy.offer(agent)
    return strategy.choose(task)


@pytest.mark.parametrize(
    ("expected_ms", "size"),
    [
        (0.001, 1),
        (1, 1),
        (1.9, 1),
        (2.1, 4),
        (4, 4),
        (1_000, 1_024),
        (1_500.5, 1_024),
        (2_100, 4_096),
        (3.1536e10, 4**17),
    ],
)
def test_a_size_is_the_nearest_power_of_four(expected_ms: float, size: float) -> None:
    """So each is at most twice as long or short as its class, and there are 18 classes."""
    assert size_class(expected_ms) == size


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_agent_may_be_good_at_long_tasks_and_bad_at_short_ones(name: str) -> None:
    """One starts slowly and is fast then. Without sizes the means say that both are alike, or worse."""
    learned = Learned()
    learn(learned, "slow start", SHORT, 0.3)
    learn(learned, "quick", SHORT, 0.02)
    learn(learned, "slow start", LONG, 0.4)
    learn(learned, "quick", LONG, 1.2)
    both = ("slow start", "quick")
    assert chosen(name, learned, SHORT, *both) == "quick"
    assert chosen(name, learned, LONG, *both) == "slow start"
    blind = Learned()
    for task in (SHORT, LONG):
        for agent_id, seconds in (("slow start", (0.3, 0.4)), ("quick", (0.02, 1.2))):
            for _ in range(40):
                blind.succeeded(agent_id, "t", seconds[task is LONG], 0, 1.0)
    assert len({chosen(name, blind, task, *both) for task in (SHORT, LONG)}) == 1


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_agent_that_got_the_long_tasks_is_not_slow(name: str) -> None:
    """It takes half as long for tasks of the same size."""
    learned = Learned()
    learn(learned, "fast", LONG, 0.5, 60)
    learn(learned, "fast", SHORT, 0.01, 5)
    learn(learned, "slow", LONG, 1.0, 5)
    learn(learned, "slow", SHORT, 0.02, 60)
    for task in (SHORT, LONG):
        assert chosen(name, learned, task, "fast", "slow") == "fast"


@pytest.mark.parametrize("name", ADAPTIVE)
def test_an_agent_without_tasks_of_a_size_counts_by_its_others(name: str) -> None:
    """As much faster or slower than the mean as it is for the type; one of which nothing is known is the mean."""
    learned = Learned()
    for agent_id, factor in (("fast", 1.0), ("mean", 2.0), ("slow", 4.0)):
        learn(learned, agent_id, SHORT, 0.01 * factor)
    learn(learned, "mean", LONG, 2.0)
    assert chosen(name, learned, LONG, "fast", "mean") == "fast"
    assert chosen(name, learned, LONG, "slow", "mean") == "mean"
    assert chosen(name, learned, LONG, "new", "slow") == "new"


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_size_of_which_nothing_is_known_is_placed_by_type(name: str) -> None:
    """And tasks without a size are too, whatever is known of sizes."""
    learned = Learned()
    for _ in range(40):
        learned.succeeded("a", "t", 0.1, 0, 1.0)
        learned.succeeded("b", "t", 0.4, 0, 1.0)
    assert chosen(name, learned, LONG, "a", "b") == "a"
    learn(learned, "b", SHORT, 0.01, 1)
    assert chosen(name, learned, ANY, "a", "b") == "a"


def test_sizes_are_forgotten_and_shared_like_types() -> None:
    """Another distributor knows them after the exchange; an agent that is gone leaves nothing."""
    learned, other = Learned(), Learned()
    learn(learned, "a", LONG, 0.5)
    changes = learned.take_changes()
    assert [(one.task_type, one.expected_ms) for one in changes] == [("t", None), ("t", 1024.0)]
    other.merge(changes, 1.0)
    for known in (learned, other):
        sized = known.of_type("t", 1024.0)
        assert sized is not None
        assert sized.fleet_s == pytest.approx(0.5)
        assert (len(known), known.of_type("t", 16.0)) == (2, None)
    learned.forget("a")
    assert len(learned) == 0


def test_what_is_known_of_sizes_is_bounded() -> None:
    """The cells without a sample for the longest time are dropped, and sizes without a cell with them."""
    learned = Learned(most_cells=10)
    for number in range(9):
        learned.succeeded("a", "t", 1.0, 0, 1.0, expected_ms=4.0**number)
    learned.succeeded("a", "u", 1.0, 0, 1.0, expected_ms=4.0)
    assert len(learned) == 10
    assert (len(learned.sizes_of("t")), len(learned.sizes_of("u"))) == (7, 1)
    for number in range(10):
        learned.succeeded("a", f"v{number}", 1.0, 0, 1.0)
    assert (len(learned), len(learned.sizes_of("t")), len(learned.sizes_of("u"))) == (10, 0, 0)


def test_a_strategy_sees_the_size_of_plain_and_named_tasks() -> None:
    """It belongs to the pool, so both queues have it."""
    pool = Pool("t", expected_ms=1024.0)
    group = View(0.5, "predictive", Random(1)).hold(pool)
    assert Waiting(pool, group).task.expected_ms == 1024.0
    assert NamedWaiting(pool, group).context_of(NamedTask(1.0, "t1")).expected_ms == 1024.0
    assert Waiting(Pool("t"), group).task.expected_ms is None


def test_a_pool_is_the_same_from_a_body_as_from_a_submission() -> None:
    """The body has the duration as it was given, the pool its class; a pool without one has the same id as ever."""
    fact = TaskSubmitted("t1", "t", requirements=Requirements(tags=("eu",)), expected_ms=1_500.5)
    pool = Pool("t", fact.requirements, expected_ms=1024.0)
    assert pool_in_record(None, encode(fact)) == pool
    found = pool_in_record(pool_of(pool)[1], None)
    assert found is not None
    assert pool_of(found) == pool_of(pool)
    assert b"expected_ms" not in pool_of(Pool("t"))[1]
