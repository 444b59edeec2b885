"""A scenario: the agents, their speeds, the tasks and when they arrive, and what changes meanwhile."""

from __future__ import annotations

from collections.abc import Mapping

from msgspec import Struct

from coord.models.agents import Location
from coord.placement import TaskContext


class SimulatedAgent(Struct, frozen=True, kw_only=True):
    """An agent of a scenario."""

    agent_id: str
    capacity: int = 4
    weight: float = 1.0
    capabilities: frozenset[str] = frozenset()
    location: Location | None = None
    speed: float = 1.0  #: units of work in a second, of one task that runs alone
    speeds: Mapping[str, float] = {}  #: the same for single task types
    #: With n tasks on the agent each is n^exponent times as slow: 0 if slots are independent, 1 if they share a CPU.
    load_exponent: float = 0.0
    failure_rate: float = 0.0  #: share of the attempts that fail
    failure_s: float = 0.0  #: seconds that a failed attempt takes if no other task slows it down

    def speed_for(self, task_type: str) -> float:
        """Return the speed for a task type."""
        return self.speeds.get(task_type, self.speed)


class Job(Struct, frozen=True, kw_only=True):
    """A task of a scenario."""

    arrived: float  #: seconds
    work: float  #: seconds on an agent with speed 1
    task: TaskContext
    capabilities: frozenset[str] = frozenset()  #: that its agent must have


class Change(Struct, frozen=True, kw_only=True):
    """A change of an agent at a time."""

    at: float  #: seconds
    agent_id: str
    factor: float = 1.0  #: its speed is that of the scenario times this
    is_present: bool = True  #: False: it gets no tasks, and finishes those that it has


class Scenario(Struct, frozen=True, kw_only=True):
    """A fleet and its work."""

    agents: tuple[SimulatedAgent, ...]
    jobs: tuple[Job, ...]  #: in the order of their arrival
    changes: tuple[Change, ...] = ()  #: in the order of their times
    max_attempts: int = 3  #: of a task; one that has failed so often is lost
    backoff_s: float = 1.0  #: upper limit of the delay before the first retry; it doubles, and the delay is random
    warm_up: float = 0.25  #: share of the tasks, at the start, that do not count: nothing is learned yet

    @property
    def counted_from(self) -> int:
        """The index of the first task that counts."""
        return int(self.warm_up * len(self.jobs))

    @property
    def has_independent_slots(self) -> bool:
        """True if no agent is slowed down by its load, changes or fails: the oracles assume it."""
        return not self.changes and all(agent.load_exponent == agent.failure_rate == 0 for agent in self.agents)

    def eligible(self, job: Job) -> list[SimulatedAgent]:
        """Return the agents that may do a task."""
        return [agent for agent in self.agents if job.capabilities <= agent.capabilities]
