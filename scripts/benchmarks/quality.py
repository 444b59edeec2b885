"""``scripts/bench quality``: how good the strategies are, on a virtual clock.

Every strategy runs on the same tasks, with fresh state, in every regime, with five seeds that no test uses. Beside them
are next-free-worker pull and the better of two greedy oracles, which know all service times but are not the optimum.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from statistics import fmean

from coord.placement import STRATEGIES, Rules
from coord.simulation import PULL, Run, Scenario, oracle_runs, simulate
from coord.simulation.comparison import p99_slowdown, percentile, response_times
from coord.simulation.pull import Pull

from .markdown import markdown
from .quality_picture import draw
from .regimes import AGENTS, BAD, RARE, REGIMES, Regime

#: No test and no tuning has used these.
SEEDS = (101, 102, 103, 104, 105)
ORACLE = "better oracle"
DEFAULT = "least_connections"
ADAPTIVE = ("least_response_time", "predictive", "prequal")
#: The default strategy without ejection and without avoiding the agent that failed.
BARE = "least_connections, no modifiers"
#: Placements over which the share of the slowed agent is taken: ten for each agent.
WINDOW = 10 * AGENTS
#: Goals: regime -> maximum regret of predictive; and of every adaptive strategy, against the default.
REGRET = {
    "speeds": 1.05,
    "speeds, 32 slots": 1.05,
    "two types": 1.05,
    "speeds, 1 slot, load 30 %": 1.12,
    "speeds, 1 slot, load 50 %": 1.12,
}
MEAN_LIMIT, P99_LIMIT = 1.05, 1.15
#: Share of its gain that predictive is to keep with four distributors, and refusals per task.
GAIN_KEPT, REFUSALS = 0.8, 0.05


@dataclass(frozen=True)
class Figures:
    """How good one strategy was in one regime: of one seed, or the mean over the seeds. None: does not apply."""

    mean_s: float
    p99_s: float
    slowdown: float
    regret: float | None = None
    relative: float = 1.0  #: mean response ÷ that of least_connections on the same seed
    relative_p99: float = 1.0
    lost: float = 0.0  #: share of the tasks that failed for good
    rare_wait_s: float | None = None  #: 99th percentile of the wait of tasks that need the rare skill
    share_lost_s: float | None = None  #: until the slowed agent has less than half of a fair share
    share_back_s: float | None = None  #: from its recovery until it has half of a fair share again
    slowed_share: float | None = None  #: placements on the slowed agent while it is slow ÷ a fair share
    refusals: float = 0.0  #: per task


@dataclass
class Table:
    """All figures: regime -> strategy -> figures."""

    figures: dict[str, dict[str, Figures]] = field(default_factory=dict)

    def rows(self, name: str, digits: int) -> list[list[str]]:
        """Return one figure as a table: regimes down, strategies across."""
        columns = list(dict.fromkeys(row for rows in self.figures.values() for row in rows if row != BARE))
        found = [["regime", *columns]]
        for regime, rows in self.figures.items():
            values = [getattr(rows[column], name) if column in rows else None for column in columns]
            if any(value is not None for value in values):
                found.append([regime, *(_cell(value, digits) for value in values)])
        return found


def measure(regimes: Sequence[Regime], seeds: Sequence[int], tasks: int | None = None) -> Table:
    """Run everything.

    Args:
        regimes: to run.
        seeds: of the tasks and of the strategies.
        tasks: number of tasks of each run; None: that of the regime.
    """
    table = Table()
    for regime in regimes:
        begin = time.monotonic()
        of_seeds = [_measure_seed(regime, seed, tasks) for seed in seeds]
        table.figures[regime.name] = {name: _mean([rows[name] for rows in of_seeds]) for name in of_seeds[0]}
        sys.stderr.write(f"{regime.name}: {time.monotonic() - begin:.1f} s\n")
    return table


def _measure_seed(regime: Regime, seed: int, tasks: int | None) -> dict[str, Figures]:
    scenario = regime.scenario(seed, tasks)
    runs = {name: simulate(scenario, Rules(name), seed, distributors=regime.distributors) for name in STRATEGIES}
    if regime.fails:
        off = Rules(DEFAULT, ejection=False, avoid_failed_agent=False)
        runs[BARE] = simulate(scenario, off, seed, distributors=regime.distributors)
    off = Rules(Pull.name, ejection=False, avoid_failed_agent=False)
    runs[PULL] = simulate(scenario, off, seed, {Pull.name: Pull})
    oracles = oracle_runs(scenario).values()
    best = min(oracles, key=lambda run: fmean(response_times(scenario, run)), default=None)
    if best is not None:
        runs[ORACLE] = best
    default = response_times(scenario, runs[DEFAULT])
    of_oracle = fmean(response_times(scenario, best)) if best is not None else None
    return {name: _figures(scenario, run, default, of_oracle) for name, run in runs.items()}


def _figures(scenario: Scenario, run: Run, default: Sequence[float], oracle_s: float | None) -> Figures:
    times = response_times(scenario, run)
    mean_s, p99_s = fmean(times), percentile(times, 0.99)
    waits = [
        run.starts[index] - job.arrived
        for index, job in enumerate(scenario.jobs)
        if RARE in job.capabilities and index >= scenario.counted_from
    ]
    is_slowed = any(change.factor != 1 for change in scenario.changes)
    lost_s, back_s, share = _shares(scenario, run) if is_slowed else (None, None, None)
    return Figures(
        mean_s=mean_s,
        p99_s=p99_s,
        slowdown=p99_slowdown(scenario, run),
        regret=None if oracle_s is None else mean_s / oracle_s,
        relative=mean_s / fmean(default),
        relative_p99=p99_s / percentile(default, 0.99),
        lost=len(run.lost) / len(scenario.jobs),
        rare_wait_s=percentile(waits, 0.99) if waits else None,
        share_lost_s=lost_s,
        share_back_s=back_s,
        slowed_share=share,
        refusals=run.refused / len(scenario.jobs),
    )


def _shares(scenario: Scenario, run: Run) -> tuple[float, float, float]:
    """Return how long the slowed agent keeps its share, how long it takes to get it back, and its share in between.

    It has its share at a time if at least half of a fair share of the next ``WINDOW`` placements goes to it.
    """
    slowed, recovered = (change.at for change in scenario.changes)
    times = [run.starts[index] for index in run.placed]
    own = [0]
    for index in run.placed:
        own.append(own[-1] + (run.agents[index] == BAD))

    def until(begin: float, end: float, *, has_share: bool) -> float:
        for at in range(len(times) - WINDOW):
            if begin <= times[at] < end and (own[at + WINDOW] - own[at] >= WINDOW / AGENTS / 2) is has_share:
                return times[at] - begin
        return end - begin

    during = [run.agents[index] for index in run.placed if slowed <= run.starts[index] < recovered]
    return (
        until(slowed, recovered, has_share=False),
        until(recovered, times[-1], has_share=True),
        AGENTS * during.count(BAD) / len(during),
    )


def _mean(figures: Sequence[Figures]) -> Figures:
    values = {}
    for one in fields(Figures):
        found = [value for value in (getattr(figure, one.name) for figure in figures) if value is not None]
        values[one.name] = fmean(found) if found else None
    return Figures(**values)  # type: ignore[arg-type]


def misses(table: Table) -> list[str]:
    """Return a sentence for each goal that is missed."""
    return [*_regrets(table), *_worse(table), *_lost_gains(table), *_refusals(table)]


def _regrets(table: Table) -> Iterator[str]:
    for regime, limit in REGRET.items():
        regret = table.figures[regime]["predictive"].regret
        if regret is not None and regret > limit:
            yield f"{regime}: predictive has a regret of {regret:.3f}, goal {limit}"


def _worse(table: Table) -> Iterator[str]:
    for regime, rows in table.figures.items():
        for name in ADAPTIVE:
            one = rows[name]
            if one.relative > MEAN_LIMIT:
                yield f"{regime}: mean of {name} is {one.relative:.2f} times {DEFAULT}'s, goal {MEAN_LIMIT}"
            if one.relative_p99 > P99_LIMIT:
                yield f"{regime}: p99 of {name} is {one.relative_p99:.2f} times {DEFAULT}'s, goal {P99_LIMIT}"


def _lost_gains(table: Table) -> Iterator[str]:
    for regime in ("speeds", "two types"):
        name = f"{regime}, 4 distributors"
        alone, four = (
            1 - rows["predictive"].mean_s / rows[DEFAULT].mean_s
            for rows in (table.figures[regime], table.figures[name])
        )
        if four < GAIN_KEPT * alone:
            yield f"{name}: predictive gains {four:.1%}; goal {GAIN_KEPT:.0%} of the {alone:.1%} with one distributor"


def _refusals(table: Table) -> Iterator[str]:
    for regime, rows in table.figures.items():
        found = {name: one.refusals for name, one in rows.items() if one.refusals > REFUSALS}
        if found:
            yield (
                f"{regime}: {len(found)} strategies have more than {REFUSALS} refusals per task: "
                f"{min(found.values()):.2f} to {max(found.values()):.2f}"
            )


def report(table: Table) -> str:
    """Return all tables as Markdown."""
    titles = (
        ("regret", "Regret: mean response ÷ that of the better oracle; only where oracles exist", 2),
        ("relative", f"Mean response ÷ that of {DEFAULT}", 2),
        ("relative_p99", f"99th percentile of the response ÷ that of {DEFAULT}", 2),
        ("mean_s", "Mean response, s", 3),
        ("p99_s", "99th percentile of the response, s", 2),
        ("slowdown", "99th percentile of the slowdown: response ÷ time on the fastest agent", 1),
    )
    parts = [f"{title}\n\n{markdown(table.rows(name, digits))}" for name, title, digits in titles]
    return "\n\n".join([*parts, f"Single figures\n\n{markdown(_single(table))}"])


def _single(table: Table) -> list[list[str]]:
    columns = [
        ("one fails", "lost", "tasks lost, %", 100, 2),
        ("rare skills", "rare_wait_s", "p99 wait of rare skills, ms", 1_000, 0),
        ("one slows down", "share_lost_s", "slowed agent loses its share, s", 1, 1),
        ("one slows down", "share_back_s", "has it back, s", 1, 1),
        ("one slows down", "slowed_share", "its share while slow, % of a fair one", 100, 0),
        ("speeds, 2 distributors", "refusals", "refusals a task, 2 distributors", 1, 3),
        ("speeds, 4 distributors", "refusals", "with 4", 1, 3),
    ]
    columns = [column for column in columns if column[0] in table.figures]
    names = dict.fromkeys(name for rows in table.figures.values() for name in rows if name != ORACLE)
    found = [["strategy", *(title for _, _, title, _, _ in columns)]]
    for name in names:
        cells = []
        for regime, figure, _, factor, digits in columns:
            one = table.figures[regime].get(name)
            value = None if one is None else getattr(one, figure)
            cells.append(_cell(None if value is None else value * factor, digits))
        found.append([name, *cells])
    return found


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main(arguments: Sequence[str]) -> int:
    """Measure, and print the tables and the goals that are missed."""
    parser = argparse.ArgumentParser(
        prog="scripts/bench quality",
        description="Compare all strategies in a simulation: response times, regret, lost tasks, refusals.",
    )
    parser.add_argument("--quick", action="store_true", help="few tasks and one seed: a test, not a measurement")
    parser.add_argument("--svg", type=Path, metavar="FILE", help="also draw the mean responses as a picture")
    options = parser.parse_args(arguments)
    table = measure(REGIMES, SEEDS[:1], 300) if options.quick else measure(REGIMES, SEEDS)
    print(report(table))
    missed = misses(table)
    print(f"\n{len(missed)} goals are missed" + (":" if missed else "."))
    for line in missed:
        print(f"* {line}")
    if options.svg:
        options.svg.write_text(draw(_ratios(table)), encoding="utf-8")
    return 0


def _ratios(table: Table) -> dict[str, dict[str, float]]:
    """Return regime -> row -> mean response ÷ that of the better oracle; where there is none, of the best row."""
    found: dict[str, dict[str, float]] = {}
    for regime, rows in table.figures.items():
        best = rows[ORACLE].mean_s if ORACLE in rows else min(one.mean_s for one in rows.values())
        label = regime if ORACLE in rows else f"{regime} *"
        found[label] = {name: one.mean_s / best for name, one in rows.items() if name != ORACLE}
    return found
