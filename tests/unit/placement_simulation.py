"""Fleets and their work for the tests of strategies; ``coord.simulation`` runs them."""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random

from coord.placement import Rules, TaskContext
from coord.simulation import Change, Job, Run, Scenario, SimulatedAgent, oracle_runs
from coord.simulation import simulate as run_scenario
from coord.simulation.comparison import mean


@dataclass(frozen=True)
class Regime:
    """A fleet and its work."""

    speeds: tuple[tuple[float, ...], ...]  # of each agent, for each task type
    slots: int = 4
    load: float = 0.8  # of what the fleet can do if the types of tasks are placed without regard to them
    shared_cpu: bool = False  # the slots of an agent share one CPU
    tail: float = 0.0  # sigma of log-normal work; 0: exponential
    slowed: tuple[float, float, float] | None = None  # agent 0 has this speed, from one share of the tasks to another
    churn: float = 0.0  # probability at each arrival that an agent leaves or returns
    tasks: int = 2_000

    def scenario(self, seed: int) -> Scenario:
        """The same tasks for every strategy."""
        kinds = len(self.speeds[0])
        agents = tuple(
            SimulatedAgent(
                agent_id=f"a{number}",
                capacity=self.slots,
                speeds={f"t{kind}": speed for kind, speed in enumerate(speeds)},
                load_exponent=float(self.shared_cpu),
            )
            for number, speeds in enumerate(self.speeds)
        )
        random = Random(seed)
        parallel = 1 if self.shared_cpu else self.slots
        rate = self.load * parallel * sum(kinds / sum(1 / speed for speed in speeds) for speeds in self.speeds)
        jobs: list[Job] = []
        now = 0.0
        for _ in range(self.tasks):
            now += random.expovariate(rate)
            sigma = self.tail
            work = exp(random.gauss(-sigma * sigma / 2, sigma)) if sigma else random.expovariate(1.0)
            task = TaskContext(f"t{random.randrange(kinds)}")
            jobs.append(Job(arrived=now, work=max(work, 1e-3), task=task))
        changes = tuple(self._slowing(jobs) + self._churning(jobs, seed))
        return Scenario(agents=agents, jobs=tuple(jobs), changes=changes)

    def _slowing(self, jobs: list[Job]) -> list[Change]:
        if self.slowed is None:
            return []
        speed, begins, ends = self.slowed
        begin, end = (jobs[int(share * len(jobs))].arrived for share in (begins, ends))
        return [Change(at=begin, agent_id="a0", factor=speed / self.speeds[0][0]), Change(at=end, agent_id="a0")]

    def _churning(self, jobs: list[Job], seed: int) -> list[Change]:
        random, found = Random(seed + 1), []
        present = {f"a{number}": True for number in range(len(self.speeds))}
        for job in jobs if self.churn else ():
            if random.random() < self.churn:
                agent_id = random.choice(sorted(present))
                present[agent_id] = not present[agent_id] or sum(present.values()) <= 12
                found.append(Change(at=job.arrived, agent_id=agent_id, is_present=present[agent_id]))
        return found


def run(regime: Regime, strategy: str, seed: int) -> Run:
    """Run a regime under a strategy."""
    return run_scenario(regime.scenario(seed), Rules(strategy), seed)


def simulate(regime: Regime, strategy: str, seed: int) -> list[float]:
    """Return the response times of the tasks after the warm-up, in the order of their arrival."""
    return responses(regime.scenario(seed), run(regime, strategy, seed))


def oracle(regime: Regime, seed: int) -> float:
    """Return the mean response of the better of two greedy oracles, for independent slots."""
    scenario = regime.scenario(seed)
    return min(mean(responses(scenario, found)) for found in oracle_runs(scenario).values())


def responses(scenario: Scenario, found: Run) -> list[float]:
    """Return the response times of the tasks after the warm-up."""
    times = [end - job.arrived for end, job in zip(found.ends, scenario.jobs, strict=True)]
    return times[scenario.counted_from :]


#: 16 agents, the fastest 8 times as fast as the slowest.
MIXED = tuple((1.0 * 8 ** (number / 15),) for number in range(16))
#: 16 agents that are all alike.
ALIKE = ((1.0,),) * 16
#: 16 agents, each 8 times as fast for one of two types.
TWO_TYPES = (((8.0, 1.0),) * 8) + (((1.0, 8.0),) * 8)

REGIMES: dict[str, Regime] = {
    "alike": Regime(ALIKE),
    "speeds of 1x to 8x": Regime(MIXED, tasks=4_000),
    "speeds, 1 slot": Regime(MIXED, slots=1, load=0.5),
    "speeds, 32 slots": Regime(MIXED, slots=32, tasks=5_000),
    "two types": Regime(TWO_TYPES),
    "heavy tails": Regime(MIXED, tail=1.5),
    "a shared CPU": Regime(ALIKE, shared_cpu=True),
    "speeds and a shared CPU": Regime(MIXED, shared_cpu=True, tasks=4_000),
    "one agent slows down": Regime(((4.0,),) * 16, slowed=(0.4, 0.4, 0.7)),
    "churn": Regime(MIXED, churn=0.02, load=0.6),
}
