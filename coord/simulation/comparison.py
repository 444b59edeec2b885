"""Strategies side by side on the same scenarios: how long tasks take and wait, and how even the load is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from msgspec import Struct

from coord.placement import STRATEGIES, Rules, Strategy
from coord.simulation.engine import Run, simulate
from coord.simulation.oracles import oracle_runs
from coord.simulation.pull import Pull
from coord.simulation.scenario import Scenario

#: The row of a task queue without placement.
PULL = "next-free-worker pull"


class Result(Struct, frozen=True):
    """How good one strategy was: the means over the scenarios. The tasks of the warm-up do not count."""

    name: str
    mean_s: float  #: mean response time: from arrival to end, seconds
    p99_wait_s: float  #: 99th percentile of the time until a task starts
    makespan_s: float  #: from the first arrival to the last end; all tasks count
    p99_slowdown: float  #: 99th percentile of response time ÷ its time on the fastest agent that may do it
    imbalance: float  #: share of used slot time of the busiest agent ÷ mean of all agents; 1 is even
    regret: float | None  #: mean response time ÷ that of the better oracle; None: there is no oracle for the scenario


def compare(
    scenarios: Sequence[Scenario],
    rules: Mapping[str, Rules],
    strategies: Mapping[str, type[Strategy]] = STRATEGIES,
    *,
    with_others: bool = True,
) -> list[Result]:
    """Run scenarios under several rules.

    Args:
        scenarios: the same fleet and work with different seeds; the position is the seed of the strategies.
        rules: name of the row -> strategy and modifiers.
        strategies: name -> class.
        with_others: add rows for next-free-worker pull and the oracles.

    Returns: the best mean first, then the rows that no strategy can choose: pull and the oracles.

    Raises:
        ValueError: no agent may ever do one of the tasks.
    """
    oracles = [oracle_runs(scenario) for scenario in scenarios]
    best = [
        min((_mean_response(scenario, run) for run in runs.values()), default=None)
        for scenario, runs in zip(scenarios, oracles, strict=True)
    ]
    found = [
        _result(name, scenarios, [simulate(one, own, seed, strategies) for seed, one in enumerate(scenarios)], best)
        for name, own in rules.items()
    ]
    found.sort(key=lambda result: (result.mean_s, result.name))
    if with_others:
        pulled = [simulate(one, Rules(Pull.name), seed, {Pull.name: Pull}) for seed, one in enumerate(scenarios)]
        found.append(_result(PULL, scenarios, pulled, best))
        found += [_result(name, scenarios, [runs[name] for runs in oracles], best) for name in oracles[0]]
    return found


def _result(name: str, scenarios: Sequence[Scenario], runs: Sequence[Run], best: Sequence[float | None]) -> Result:
    pairs = list(zip(scenarios, runs, strict=True))
    means = [_mean_response(scenario, run) for scenario, run in pairs]
    regrets = [value / of for value, of in zip(means, best, strict=True) if of is not None]
    return Result(
        name=name,
        mean_s=mean(means),
        p99_wait_s=mean(_p99_wait(scenario, run) for scenario, run in pairs),
        makespan_s=mean(max(run.ends) - scenario.jobs[0].arrived for scenario, run in pairs),
        p99_slowdown=mean(p99_slowdown(scenario, run) for scenario, run in pairs),
        imbalance=mean(_imbalance(scenario, run) for scenario, run in pairs),
        regret=mean(regrets) if regrets else None,
    )


def response_times(scenario: Scenario, run: Run) -> list[float]:
    """Return the response times of the tasks that count, in seconds."""
    return [run.ends[index] - scenario.jobs[index].arrived for index in counted(scenario, run)]


def _mean_response(scenario: Scenario, run: Run) -> float:
    return mean(response_times(scenario, run))


def _p99_wait(scenario: Scenario, run: Run) -> float:
    return percentile([run.starts[index] - scenario.jobs[index].arrived for index in counted(scenario, run)], 0.99)


def p99_slowdown(scenario: Scenario, run: Run) -> float:
    """Return the 99th percentile of response time ÷ the task's time on the fastest agent that may do it."""
    fastest: dict[tuple[frozenset[str], str], float] = {}
    slowdowns: list[float] = []
    for index in counted(scenario, run):
        job = scenario.jobs[index]
        kind = (job.capabilities, job.task.task_type)
        if kind not in fastest:
            fastest[kind] = max(agent.speed_for(job.task.task_type) for agent in scenario.eligible(job))
        slowdowns.append((run.ends[index] - job.arrived) * fastest[kind] / job.work)
    return percentile(slowdowns, 0.99)


def _imbalance(scenario: Scenario, run: Run) -> float:
    used = dict.fromkeys([agent.agent_id for agent in scenario.agents], 0.0)
    for index in counted(scenario, run):
        used[run.agents[index]] += run.ends[index] - run.starts[index]
    shares = [used[agent.agent_id] / agent.capacity for agent in scenario.agents]
    return max(shares) / mean(shares)


def counted(scenario: Scenario, run: Run) -> list[int]:
    """Return the tasks that count: those after the warm-up that were not lost."""
    return [index for index in range(scenario.counted_from, len(scenario.jobs)) if index not in run.lost]


def mean(values: Iterable[float]) -> float:
    """Return the arithmetic mean."""
    listed = list(values)
    return sum(listed) / len(listed)


def percentile(values: Sequence[float], share: float) -> float:
    """Return the value that this share of all does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]
