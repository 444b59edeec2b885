"""Replays recorded plans through the strategies, and compares each choice with the recorded one.

The strategies and what they learn from are those of ``coord.placement``, as in a distributor. An agent that was offered
is also checked against the requirements of its group.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from random import Random
from typing import Any

import msgspec
from msgspec import Struct

from coord.errors import ConfigError
from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.models.plans import PlanEntry, Plans
from coord.models.tasks import Requirements
from coord.placement import Learned, Rules, Strategy, TaskContext, create_strategy, full_scores, unmet_requirement
from coord.placement.plan_format import (
    NOBODY,
    Advanced,
    Begun,
    Changed,
    Chosen,
    Created,
    Demanded,
    Described,
    Forgotten,
    Learnt,
    Offered,
    Seeded,
    Step,
    Withdrawn,
    decode_steps,
)

#: Candidates among which the agents of a difference are searched.
MOST = 100_000


class Difference(Struct, frozen=True):
    """A choice that is not equal to the recorded one, or an agent that must not have been offered."""

    by: str  #: the distributor
    segment: int
    entry: int  #: number of the entry in its segment
    decision: int  #: number of the choice in the file, from 1
    strategy: str
    task: TaskContext
    text: str
    recorded: str | None  #: agent
    replayed: str | None  #: agent
    candidates: tuple[Candidate, ...] = ()  #: the recorded agent and the replayed one, if they were considered


class Replayed(Struct, frozen=True):
    """The result of a replay."""

    decisions: int
    equal: int
    of_strategies: dict[str, int]  #: strategy -> choices
    distributors: int
    segments: int
    skipped: int  #: entries without a snapshot before them
    ineligible: int  #: agents that were offered and did not meet the requirements
    first: Difference | None

    @property
    def is_equal(self) -> bool:
        """True if every choice is equal."""
        return self.first is None


class Group:
    """A strategy, and what it was created with."""

    def __init__(self, strategy: Strategy, rules: Rules, requirements: Requirements) -> None:
        self.strategy = strategy
        self.rules = rules
        self.requirements = requirements


class Counts:
    """What was compared so far, of all distributors."""

    def __init__(self) -> None:
        self.of_strategies: Counter[str] = Counter()
        self.equal = 0
        self.segments = 0
        self.skipped = 0
        self.ineligible = 0
        self.first: Difference | None = None

    @property
    def decisions(self) -> int:
        """Number of choices."""
        return self.of_strategies.total()


class Segment:
    """A segment of one distributor while it is replayed.

    Args:
        begun: its first step.
        strategies: name -> class.
        counts: of the replay.
    """

    def __init__(self, begun: Begun, strategies: Mapping[str, type[Strategy]], counts: Counts) -> None:
        self.begun = begun
        self.strategies = strategies
        self.counts = counts
        self.learned = Learned.of(begun.learned)
        self.random = Random()
        self.groups: list[Group] = []
        self.rows: list[FleetAgent] = []
        self.raw_rows: list[dict[str, Any]] = []
        self.numbers: dict[str, int] = {}  #: agent -> its number
        self.tasks: list[TaskContext] = []
        self.entry: PlanEntry | None = None  #: the one that is replayed

    def run(self, entry: PlanEntry, steps: Iterable[Step]) -> None:
        """Replay the steps of an entry."""
        self.entry = entry
        for step in steps:
            STEPS[type(step)](self, step)

    def seed(self, step: Seeded) -> None:
        """Seed the source of randomness."""
        self.random.seed(step.seed)

    def create(self, step: Created) -> None:
        """Create the strategy of a group."""
        if step.rules.strategy not in self.strategies:
            raise ConfigError(
                f"the strategy {step.rules.strategy!r} of the recorded plans is not installed here; install the "
                "package that has it"
            )
        strategy = create_strategy(step.rules, self.strategies, self.random, self.learned)
        self.groups.append(Group(strategy, step.rules, step.requirements))

    def change(self, step: Changed) -> None:
        """Change an agent's row, or add it."""
        if step.agent == len(self.rows):
            self.raw_rows.append(step.fields)
            self.rows.append(msgspec.convert(step.fields, FleetAgent))
            self.numbers[self.rows[-1].agent_id] = step.agent
            return
        load = self.rows[step.agent].load
        self.raw_rows[step.agent] |= step.fields
        self.rows[step.agent] = msgspec.convert(self.raw_rows[step.agent] | {"load": load}, FleetAgent)

    def offer(self, step: Offered) -> None:
        """Offer an agent to a strategy."""
        row, group = self.rows[step.agent], self.groups[step.group]
        row.load = step.load
        group.strategy.offer(row)
        reason = unmet_requirement(row, group.requirements, self.begun.health_threshold)
        if reason is not None:
            self.counts.ineligible += 1
            text = f"{row.agent_id} was offered, but does not meet the requirements: {reason}"
            self._differ(group, TaskContext(), text, row.agent_id, None)

    def withdraw(self, step: Withdrawn) -> None:
        """Withdraw an agent from a strategy."""
        self.groups[step.group].strategy.withdraw(self.rows[step.agent].agent_id)

    def describe(self, step: Described) -> None:
        """Add a task."""
        self.tasks.append(step.task)

    def choose(self, step: Chosen) -> None:
        """Choose an agent, and compare it with the recorded one."""
        group, task = self.groups[step.group], self.tasks[step.task]
        recorded = None if step.agent == NOBODY else self.rows[step.agent].agent_id
        replayed = group.strategy.choose(task)
        self.counts.of_strategies[group.rules.strategy] += 1
        if self.begun.full_scores and replayed is not None:
            full_scores(group.strategy, task, replayed, self._row_of)
        if replayed == recorded:
            self.counts.equal += 1
            return
        text = f"recorded {recorded or 'no agent'}, replayed {replayed or 'no agent'}"
        self._differ(group, task, text, recorded, replayed)

    def learn(self, step: Learnt) -> None:
        """Add attempts to what was learned."""
        self.learned.merge(step.changes, step.now)

    def forget(self, step: Forgotten) -> None:
        """Forget an agent."""
        self.learned.forget(step.agent_id)

    def advance(self, step: Advanced) -> None:
        """Apply the time."""
        self.learned.advance(step.now)

    def demand(self, step: Demanded) -> None:
        """Determine the demand for capabilities."""
        for name, tasks in step.added.items():
            self.learned.demand.add((name,), tasks)
        self.learned.demand.update(step.agents, step.now)

    def _row_of(self, agent_id: str) -> FleetAgent:
        return self.rows[self.numbers[agent_id]]

    def _differ(self, group: Group, task: TaskContext, text: str, recorded: str | None, replayed: str | None) -> None:
        """Keep the first difference, with the scores of both agents."""
        if self.counts.first is not None:
            return
        assert self.entry is not None
        chosen = [agent_id for agent_id in (recorded, replayed) if agent_id is not None]
        scored = {one.agent_id: one for one in group.strategy.candidates(task, MOST, self._row_of)}
        self.counts.first = Difference(
            by=self.entry.by,
            segment=self.entry.segment,
            entry=self.entry.number,
            decision=self.counts.decisions,
            strategy=group.rules.strategy,
            task=task,
            text=text,
            recorded=recorded,
            replayed=replayed,
            candidates=tuple(scored[agent_id] for agent_id in chosen if agent_id in scored),
        )


def replay(plans: Plans, strategies: Mapping[str, type[Strategy]]) -> Replayed:
    """Replay recorded plans.

    Args:
        plans: what was recorded; entries before the first snapshot of a distributor are skipped, and so are those
            after a gap, until its next snapshot.
        strategies: name -> class.

    Raises:
        ConfigError: an entry does not fit, or a strategy is not installed.
    """
    counts = Counts()
    current: dict[str, tuple[Segment, int]] = {}  # distributor -> its segment, and the number of the next entry
    for entry in plans.entries:
        try:
            _replay_entry(entry, current, strategies, counts)
        except (msgspec.DecodeError, IndexError, KeyError, TypeError, ValueError) as error:
            where = f"entry {entry.number} of segment {entry.segment} of distributor {entry.by}"
            raise ConfigError(f"{where} does not fit: {error}") from None
    return Replayed(
        decisions=counts.decisions,
        equal=counts.equal,
        of_strategies=dict(counts.of_strategies.most_common()),
        distributors=len({entry.by for entry in plans.entries}),
        segments=counts.segments,
        skipped=counts.skipped,
        ineligible=counts.ineligible,
        first=counts.first,
    )


def _replay_entry(
    entry: PlanEntry,
    current: dict[str, tuple[Segment, int]],
    strategies: Mapping[str, type[Strategy]],
    counts: Counts,
) -> None:
    steps = decode_steps(entry.steps)
    if entry.number == 0 and steps and isinstance(steps[0], Begun):
        segment = Segment(steps.pop(0), strategies, counts)  # type: ignore[arg-type]
        counts.segments += 1
    else:
        known = current.get(entry.by)
        if known is None or (entry.segment, entry.number) != (_segment_number(known[0]), known[1]):
            current.pop(entry.by, None)
            counts.skipped += 1
            return
        segment = known[0]
    current[entry.by] = (segment, entry.number + 1)
    segment.run(entry, steps)


def _segment_number(segment: Segment) -> int:
    return -1 if segment.entry is None else segment.entry.segment


#: What is done with each kind of step.
STEPS: dict[type[Struct], Callable[[Segment, Any], None]] = {
    Seeded: Segment.seed,
    Created: Segment.create,
    Changed: Segment.change,
    Offered: Segment.offer,
    Withdrawn: Segment.withdraw,
    Described: Segment.describe,
    Chosen: Segment.choose,
    Learnt: Segment.learn,
    Forgotten: Segment.forget,
    Advanced: Segment.advance,
    Demanded: Segment.demand,
}
