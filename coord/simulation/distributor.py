"""A distributor of a simulation: its view of the loads, what it has learned, and its strategies.

As in a real one, agents that meet the same requirements are a group with a strategy of its own, which holds those that
have room. Tasks of a type for which agents are ejected have a group of their own.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from random import Random

from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.placement import Ejection, Ejections, Learned, Rules, Strategy, TaskContext, create_strategy
from coord.simulation.scenario import Job

#: Seconds between two times at which the demand for capabilities is determined.
DEMAND_S = 1.0

#: Capabilities that tasks require, and their type if agents are ejected for it; else empty.
GroupKey = tuple[frozenset[str], str]
#: An attempt that ended: agent, task type, seconds (None: it failed), load of the agent when it was placed, ms that the
#: task was expected to take.
Ended = tuple[str, str, float | None, int, float | None]


class Group:
    """The agents that meet the same requirements."""

    def __init__(self, strategy: Strategy, members: Collection[str]) -> None:
        self.strategy = strategy
        self.members = members
        self.taken = 0  #: tasks placed since the demand was last determined


class Distributor:
    """One distributor.

    Args:
        agents: the fleet; copied, because each distributor has its own idea of the loads.
        rules: the strategy and the modifiers.
        strategies: name -> class.
        random: of the strategies.
    """

    def __init__(
        self,
        agents: Collection[FleetAgent],
        rules: Rules,
        strategies: Mapping[str, type[Strategy]],
        random: Random,
    ) -> None:
        self.rows = {agent.agent_id: replace(agent) for agent in agents}
        self.read_at = dict.fromkeys(self.rows, 0.0)  #: agent -> when its load was last read
        self.stamps = dict.fromkeys(self.rows, 0)  #: agent -> stamp of the load that is known
        self.rules = rules
        self.learned = Learned()
        self.ejections = Ejections()
        self.late: list[Ended] = []  #: ends of tasks placed here that another distributor has seen
        self._strategies = strategies
        self._random = random
        self._groups: dict[GroupKey, Group] = {}
        self._owners: dict[str, int] = {}  # capability -> agents that have it
        self._demand_at = 0.0
        for agent in agents:
            for name in agent.capabilities:
                self._owners[name] = self._owners.get(name, 0) + 1

    def group_of(self, job: Job) -> Group:
        """Return the group of a task; created on first use."""
        task_type = job.task.task_type
        key = (job.capabilities, task_type if self.ejections.has_ejected(task_type) else "")
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = self._create(key)
        return group

    def _create(self, key: GroupKey) -> Group:
        members = [agent_id for agent_id, row in self.rows.items() if key[0] <= row.capabilities]
        if not members:
            raise ValueError(f"no agent has the capabilities {', '.join(sorted(key[0]))}")
        if key[1]:
            ejected = self.ejections.ejected(key[1], members)
            members = [agent_id for agent_id in members if agent_id not in ejected]
        group = Group(create_strategy(self.rules, self._strategies, self._random, self.learned), frozenset(members))
        for agent_id in members:
            if _has_room(self.rows[agent_id]):
                group.strategy.offer(self.rows[agent_id])
        return group

    def alternative(self, group: Group, agent_id: str, task: TaskContext) -> str | None:
        """Return the agent that a plan names beside an agent of which it takes the last slot, or None."""
        row, strategy = self.rows[agent_id], group.strategy
        if row.load + 1 < row.capacity:
            return None
        strategy.withdraw(agent_id)
        other = strategy.choose(task)
        if other is not None:
            strategy.offer(self.rows[other])
        strategy.offer(row)
        return other

    def read(self, agent_id: str, load: int, now: float, *, is_present: bool) -> None:
        """Take over the true state of an agent."""
        row = self.rows[agent_id]
        row.load, row.active = load, is_present
        self.read_at[agent_id] = now
        for group in self._groups.values():
            if agent_id in group.members:
                if _has_room(row):
                    group.strategy.offer(row)
                else:
                    group.strategy.withdraw(agent_id)

    def learn(self, ended: Ended, now: float) -> Ejection | None:
        """Learn from an attempt; return the ejection if it ejects the agent."""
        agent_id, task_type, took, load, expected_ms = ended
        if took is None:
            self.learned.failed(agent_id, task_type, now, expected_ms=expected_ms)
        else:
            self.learned.succeeded(agent_id, task_type, took, load, now, expected_ms=expected_ms)
        return self.judge(agent_id, task_type, 1, int(took is None), now)

    def judge(self, agent_id: str, task_type: str, attempts: int, failures: int, now: float) -> Ejection | None:
        """Count attempts for ejection; return the ejection if they eject the agent."""
        if not self.rules.ejection:
            return None
        ejection = self.ejections.record(agent_id, task_type, attempts, failures, now)
        if ejection is not None:
            self._regroup({task_type})
        return ejection

    def adopt(self, ejection: Ejection, now: float) -> None:
        """Take over an ejection that another distributor has decided."""
        if self.ejections.adopt(ejection, now):
            self._regroup({ejection.task_type})

    def advance(self, now: float) -> None:
        """Let what was learned decay, and end the ejections that are over."""
        self.learned.advance(now)
        if self.rules.ejection:
            self._regroup(self.ejections.review(now)[0])
        if now >= self._demand_at:
            demand = self.learned.demand
            for key, group in self._groups.items():
                demand.add(key[0], group.taken)
                group.taken = 0
            demand.update({name: self._owners.get(name, 0) for name in demand.capabilities}, now)
            self._demand_at = now + DEMAND_S

    def _regroup(self, task_types: Collection[str]) -> None:
        """Drop the groups of types for which other agents are ejected than before."""
        for key in [key for key in self._groups if key[1] and key[1] in task_types]:
            del self._groups[key]


def _has_room(row: FleetAgent) -> bool:
    return row.active and row.load < row.capacity
