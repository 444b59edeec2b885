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
from coord.simulation.recommendation import Advice, recommend
from coord.simulation.scenario import Change, Job, Scenario, SimulatedAgent
from coord.simulation.trace_file import read_trace, scenario_of, write_trace

__all__ = [
    "PULL",
    "Advice",
    "Change",
    "Job",
    "Result",
    "Run",
    "Scenario",
    "SimulatedAgent",
    "compare",
    "draw",
    "oracle_runs",
    "read_fleet",
    "read_trace",
    "recommend",
    "scenario_of",
    "simulate",
    "write_trace",
]
