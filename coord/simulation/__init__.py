"""Simulation of placement on a virtual clock: what would happen with another strategy, other weights, fewer agents.

It runs the strategies of ``coord.placement`` themselves, as one distributor uses them. A ``Scenario`` is a fleet and
its tasks: read from a small TOML file, or made from a trace of a cell. Nothing here does I/O or reads a clock, and all
randomness is seeded, so the same scenario and seed give the same result.
"""

from coord.simulation.comparison import PULL, Result, compare
from coord.simulation.engine import Run, simulate
from coord.simulation.fleet_file import read_fleet
from coord.simulation.oracles import oracle_runs
from coord.simulation.picture import draw
from coord.simulation.plans_file import read_plans, write_plans
from coord.simulation.recommendation import Advice, recommend
from coord.simulation.replay import Difference, Replayed, replay
from coord.simulation.scenario import Change, Job, Scenario, SimulatedAgent
from coord.simulation.trace_file import read_trace, scenario_of, write_trace

__all__ = [
    "PULL",
    "Advice",
    "Change",
    "Difference",
    "Job",
    "Replayed",
    "Result",
    "Run",
    "Scenario",
    "SimulatedAgent",
    "compare",
    "draw",
    "oracle_runs",
    "read_fleet",
    "read_plans",
    "read_trace",
    "recommend",
    "replay",
    "scenario_of",
    "simulate",
    "write_plans",
    "write_trace",
]
