"""The regimes of ``scripts/bench quality``: fleets and their work.

16 agents each. A task takes one second on average on an agent with speed 1. Every task has a zone and an affinity key,
and every agent a zone; only ``geographic`` and ``consistent_hash`` read them.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from msgspec.structs import replace

from coord.models.agents import Location
from coord.simulation import Scenario
from coord.simulation.fleet_file import AgentTable, ChangeTable, FleetFile, TaskTable, build_scenario

AGENTS = 16
ZONES = 4
KEYS = 100
#: The agent that slows down or fails.
BAD = "a00"
#: The capability that few agents have.
RARE = "gpu"
#: Speed of the slowed agent, and the shares of the tasks that have arrived when it slows down and recovers.
SLOWED = ChangeTable(agent=BAD, begin=0.3, until=0.6, speed=0.1)


@dataclass(frozen=True)
class Regime:
    """A fleet, its work, and the number of distributors."""

    name: str
    fleet: FleetFile
    distributors: int = 1
    fails: bool = False  #: agent ``BAD`` fails each task at once

    def scenario(self, seed: int, tasks: int | None = None) -> Scenario:
        """Return the tasks of a seed, the same for every strategy."""
        fleet = self.fleet if tasks is None else replace(self.fleet, count=tasks)
        made, random = build_scenario(fleet, seed), Random(f"places {seed}")
        agents = [
            replace(agent, location=Location(zone=f"z{number % ZONES}")) for number, agent in enumerate(made.agents)
        ]
        if self.fails:
            agents[0] = replace(agents[0], failure_rate=1.0, failure_s=0.01)
        jobs = []
        for job in made.jobs:
            place, key = Location(zone=f"z{random.randrange(ZONES)}"), f"k{random.randrange(KEYS)}"
            jobs.append(replace(job, task=replace(job.task, location=place, affinity_key=key)))
        return replace(made, agents=tuple(agents), jobs=tuple(jobs))


def _agents(*, mixed: bool = False, slots: int = 4, shared_cpu: bool = False) -> tuple[AgentTable, ...]:
    return tuple(
        AgentTable(
            name=f"a{number:02}",
            capacity=slots,
            speed=8 ** (number / (AGENTS - 1)) if mixed else 1.0,
            load_exponent=float(shared_cpu),
        )
        for number in range(AGENTS)
    )


def _two_types() -> tuple[AgentTable, ...]:
    return tuple(
        AgentTable(name=f"a{number:02}", speeds={"t0": 8.0, "t1": 1.0} if number % 2 else {"t0": 1.0, "t1": 8.0})
        for number in range(AGENTS)
    )


def _skills() -> tuple[AgentTable, ...]:
    return tuple(
        AgentTable(name=f"a{number:02}", capabilities=("ocr", RARE) if number % 4 == 0 else ("ocr",))
        for number in range(AGENTS)
    )


def _churn() -> tuple[ChangeTable, ...]:
    """Each agent is away for a tenth of the time, once in each half."""
    changes = []
    for number in range(AGENTS):
        for half in (0.0, 0.5):
            begin = half + 0.4 * ((number * 7) % AGENTS) / AGENTS
            changes.append(ChangeTable(agent=f"a{number:02}", begin=begin, until=begin + 0.1, away=True))
    return tuple(changes)


ANY = (TaskTable(type="t0"),)
BOTH = (TaskTable(type="t0"), TaskTable(type="t1"))
TAILS = (TaskTable(type="t0", sigma=1.5),)
SKILLS = (
    TaskTable(type="ocr", share=0.85, requires=("ocr",)),
    TaskTable(type=RARE, share=0.15, requires=(RARE,)),
)

ALIKE, MIXED = _agents(), _agents(mixed=True)
SPEEDS = FleetFile(MIXED, ANY)
TYPES = FleetFile(_two_types(), BOTH)

REGIMES: tuple[Regime, ...] = (
    Regime("alike", FleetFile(ALIKE, ANY)),
    Regime("speeds", SPEEDS),
    Regime("speeds, load 50 %", replace(SPEEDS, load=0.5)),
    Regime("speeds, load 95 %", replace(SPEEDS, load=0.95)),
    Regime("speeds, 1 slot, load 30 %", FleetFile(_agents(mixed=True, slots=1), ANY, load=0.3)),
    Regime("speeds, 1 slot, load 50 %", FleetFile(_agents(mixed=True, slots=1), ANY, load=0.5)),
    Regime("speeds, 1 slot", FleetFile(_agents(mixed=True, slots=1), ANY)),
    Regime("speeds, 32 slots", FleetFile(_agents(mixed=True, slots=32), ANY, count=5_000)),
    Regime("two types", TYPES),
    Regime("heavy tails", FleetFile(MIXED, TAILS)),
    Regime("shared CPU", FleetFile(_agents(shared_cpu=True), ANY)),
    Regime("speeds, shared CPU", FleetFile(_agents(mixed=True, shared_cpu=True), ANY)),
    Regime("one slows down", FleetFile(ALIKE, ANY, (SLOWED,), load=0.5, count=3_000)),
    Regime("churn", FleetFile(MIXED, ANY, _churn(), load=0.6)),
    Regime("one fails", FleetFile(ALIKE, ANY, load=0.6), fails=True),
    Regime("rare skills", FleetFile(_skills(), SKILLS)),
    Regime("speeds, 2 distributors", SPEEDS, 2),
    Regime("speeds, 4 distributors", SPEEDS, 4),
    Regime("two types, 4 distributors", TYPES, 4),
)
