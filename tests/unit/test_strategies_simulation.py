"""How good the strategies are, in a small seeded simulation with one distributor: see ``placement_simulation``."""

from __future__ import annotations

from functools import cache

import pytest

from coord.simulation.comparison import mean, percentile
from tests.unit.placement_simulation import ALIKE, REGIMES, Regime, oracle, run, simulate

ADAPTIVE = ("least_response_time", "predictive", "prequal")
SEED = 1


@cache
def responses(regime: str, strategy: str) -> list[float]:
    """The response times of a run."""
    return simulate(REGIMES[regime], strategy, SEED)


@pytest.mark.parametrize("regime", REGIMES)
@pytest.mark.parametrize("strategy", ADAPTIVE)
def test_no_adaptive_strategy_is_much_worse_than_the_default(regime: str, strategy: str) -> None:
    """At most 1.05 times as slow as least_connections in the mean, and 1.15 times in the 99th percentile."""
    found, default = responses(regime, strategy), responses(regime, "least_connections")
    assert mean(found) <= 1.05 * mean(default)
    assert percentile(found, 0.99) <= 1.15 * percentile(default, 0.99)


@pytest.mark.parametrize(
    ("regime", "limit"),
    [("speeds of 1x to 8x", 1.05), ("speeds, 32 slots", 1.05), ("two types", 1.05), ("speeds, 1 slot", 1.12)],
)
def test_predictive_is_close_to_an_oracle(regime: str, limit: float) -> None:
    """Its mean response divided by that of the better of two greedy oracles; least_connections is far from it."""
    best = oracle(REGIMES[regime], SEED)
    assert mean(responses(regime, "predictive")) / best <= limit
    assert mean(responses(regime, "least_connections")) / best > 1.15


@pytest.mark.parametrize("regime", ["a shared CPU", "speeds and a shared CPU", "alike", "speeds of 1x to 8x"])
def test_the_load_exponent_is_found(regime: str) -> None:
    """Below 0.3 if slots are independent, above 0.5 if they share a CPU (the load changes while a task runs)."""
    exponent = run(REGIMES[regime], "predictive", SEED).exponent
    if REGIMES[regime].shared_cpu:
        assert 0.5 < exponent <= 1
    else:
        assert 0 <= exponent < 0.3


@pytest.mark.parametrize("strategy", ["predictive", "prequal"])
def test_an_agent_that_slows_down_loses_its_share_and_gets_it_back(strategy: str) -> None:
    """It works at a tenth of its speed for a fifth of the time; with half the load, others could do all its tasks."""
    regime = Regime(ALIKE, load=0.5, slowed=(0.1, 0.3, 0.5), tasks=5_000)
    found = run(regime, strategy, SEED)
    agents = [found.agents[index] for index in found.placed]

    def share(begin: float, end: float) -> float:
        placed = agents[int(begin * 5_000) : int(end * 5_000)]
        return 16 * placed.count("a0") / len(placed)

    assert share(0.1, 0.3) > 0.5
    assert share(0.35, 0.5) < 0.3
    assert share(0.6, 1.0) > 0.5


def test_a_simulation_can_be_repeated() -> None:
    """The same seed gives the same response times, to the last digit."""
    regime = Regime(ALIKE, tasks=300)
    assert simulate(regime, "predictive", 5) == simulate(regime, "predictive", 5)
    assert simulate(regime, "predictive", 5) != simulate(regime, "predictive", 6)
