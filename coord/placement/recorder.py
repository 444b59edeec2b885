"""Records what reaches the strategies of a distributor, and what they choose.

While it records, each strategy is created inside a ``RecordedStrategy``, and ``Learned`` has the recorder as observer.
While it does not, strategies are created as always, so recording costs nothing then.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from random import Random
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.models.tasks import Requirements
from coord.placement.learning import Change, Learned
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
    encode_steps,
)
from coord.placement.rules import OwnRules, Rules
from coord.placement.strategy import Strategy, TaskContext

#: Steps after which an entry is made, even if nothing was chosen.
MOST_STEPS = 20_000
#: Fields of a row that say when it was read: no choice depends on them.
NOT_RECORDED = frozenset({"load", "read_at", "report_age"})

_FIELDS = tuple(name for name in FleetAgent.__struct_fields__ if name not in NOT_RECORDED)
#: A row of which only what differs is recorded.
_DEFAULT = FleetAgent(agent_id="", agent_type="")


def new_seed(random: Random) -> int:
    """Return a seed that fits into a JSON number."""
    return random.getrandbits(53)


class RecordedEntry(Struct, frozen=True):
    """Some steps of a segment."""

    segment: int
    number: int  #: of the entry in its segment; 0 is the snapshot
    data: bytes  #: the steps as JSON


class Recorder:
    """Records one distributor.

    Args:
        learned: of the distributor.
        seeds: the source of the seeds.
    """

    def __init__(self, learned: Learned, seeds: Random) -> None:
        self.random = Random()  # noqa: S311 -- the source of randomness of all strategies; no secret depends on it
        self.segment = -1
        self.segment_bytes = 0  #: of the current segment
        self.snapshot_bytes = 0  #: of its first entry
        self._learned = learned
        self._seeds = seeds
        self._entries: list[RecordedEntry] = []
        self._number = 0  # of the next entry
        self._steps: list[Step] = []
        self._agents: dict[str, int] = {}
        self._rows: list[FleetAgent] = []  # as they were last recorded
        self._tasks: dict[TaskContext, int] = {}
        self._groups = 0
        self._has_chosen = False
        self._is_seeded = False
        self._idle_from: int | None = None  # number of steps before those of a time in which there was no demand

    def begin(
        self, health_threshold: float, rules: Rules, type_rules: Mapping[str, OwnRules], *, full_scores: bool = False
    ) -> None:
        """Begin a segment. The caller drops all strategies and creates them again."""
        self.segment += 1
        self._number = self.segment_bytes = self._groups = 0
        self._agents.clear()
        self._rows.clear()
        self._tasks.clear()
        self._learned.observer, self._learned.demand.observer = self, self.demanded
        self._steps = [Begun(health_threshold, rules, dict(type_rules), full_scores, self._learned.state)]
        self.seed()
        self._make_entry()
        self.snapshot_bytes = self.segment_bytes

    def end(self) -> None:
        """Stop recording; what was recorded can still be taken."""
        self.cut()
        self._learned.observer = self._learned.demand.observer = None
        self._steps.clear()

    def record(
        self,
        create: Callable[[Random], Strategy],
        rules: Rules,
        requirements: Requirements,
        task_type: str = "",
    ) -> Strategy:
        """Return a new strategy that is recorded.

        Args:
            create: creates the strategy with this source of randomness.
            rules: of the group.
            requirements: that its agents meet.
            task_type: of all tasks of the group; empty if they may have several.
        """
        self._steps.append(Created(rules, requirements, task_type))
        self._groups += 1
        return RecordedStrategy(self, self._groups - 1, create(self.random))

    def cut(self) -> None:
        """Make an entry of the steps since the last one, if anything was chosen in it."""
        if self._has_chosen or len(self._steps) > MOST_STEPS:
            self._make_entry()

    def take(self) -> list[RecordedEntry]:
        """Return the entries that were made since the last call."""
        entries, self._entries = self._entries, []
        return entries

    # What happens, in its order.

    def offered(self, group: int, agent: FleetAgent) -> None:
        """Record that an agent was offered to the strategy of a group."""
        number = self._agents.get(agent.agent_id)
        if number is None:
            number = self._agents[agent.agent_id] = len(self._rows)
            self._rows.append(_copied(agent))
            own = [name for name in _FIELDS if getattr(agent, name) != getattr(_DEFAULT, name)]
            self._steps.append(Changed(number, _values(agent, own)))
        else:
            known = self._rows[number]
            known.load = agent.load
            if known != agent:
                changed = [name for name in _FIELDS if getattr(known, name) != getattr(agent, name)]
                if changed:
                    self._steps.append(Changed(number, _values(agent, changed)))
                self._rows[number] = _copied(agent)
        self._steps.append(Offered(group, number, agent.load))

    def withdrawn(self, group: int, agent_id: str) -> None:
        """Record that an agent was withdrawn from the strategy of a group."""
        self._steps.append(Withdrawn(group, self._agents[agent_id]))

    def seed(self) -> int:
        """Seed the source of randomness; return the seed."""
        seed = new_seed(self._seeds)
        self.random.seed(seed)
        self._steps.append(Seeded(seed))
        self._is_seeded = True
        return seed

    def choosing(self) -> None:
        """Seed the source of randomness before the first choice of an entry."""
        if not self._is_seeded:
            self.seed()

    def chosen(self, group: int, task: TaskContext, agent_id: str | None) -> None:
        """Record a choice."""
        number = self._tasks.get(task)
        if number is None:
            number = self._tasks[task] = len(self._tasks)
            self._steps.append(Described(task))
        # A guarded strategy returns only agents that were offered.
        self._steps.append(Chosen(group, number, NOBODY if agent_id is None else self._agents[agent_id]))
        self._has_chosen = True

    def learned(self, changes: Sequence[Change], now: float) -> None:
        """Record attempts that were added to what was learned."""
        if changes:
            self._steps.append(Learnt(now, list(changes)))

    def forgot(self, agent_id: str) -> None:
        """Record that an agent was forgotten."""
        self._steps.append(Forgotten(agent_id))

    def advanced(self, now: float) -> None:
        """Record that the time was applied; of the times of an idle cell, only the last one counts."""
        if self._idle_from is not None and len(self._steps) == self._idle_from + 2:
            del self._steps[-1:]
        self._steps.append(Advanced(now))

    def demanded(self, added: Mapping[str, float], agents: Mapping[str, int], now: float) -> None:
        """Record that the demand was determined."""
        step = Demanded(now, dict(added), dict(agents))
        is_idle = not added and not agents
        if is_idle and self._idle_from is not None and len(self._steps) == self._idle_from + 2:
            self._steps[-2] = step  # and ``advanced`` replaces the last one
            return
        self._idle_from = len(self._steps) if is_idle else None
        self._steps.append(step)

    def _make_entry(self) -> None:
        data = encode_steps(self._steps)
        self._entries.append(RecordedEntry(self.segment, self._number, data))
        self._number += 1
        self.segment_bytes += len(data)
        self._steps = []
        self._has_chosen = self._is_seeded = False
        self._idle_from = None


class RecordedStrategy(Strategy):
    """A strategy whose calls and choices are recorded.

    Args:
        recorder: receives them.
        group: number of the group.
        inner: the strategy.
    """

    def __init__(self, recorder: Recorder, group: int, inner: Strategy) -> None:
        super().__init__(inner.random, inner.learned)
        self._recorder = recorder
        self._group = group
        self._inner = inner
        self._offered: set[str] = set()

    def offer(self, agent: FleetAgent) -> None:
        self._recorder.offered(self._group, agent)
        self._offered.add(agent.agent_id)
        self._inner.offer(agent)

    def withdraw(self, agent_id: str) -> None:
        if agent_id in self._offered:
            self._offered.discard(agent_id)
            self._recorder.withdrawn(self._group, agent_id)
            self._inner.withdraw(agent_id)

    @property
    def has_room(self) -> bool:
        return self._inner.has_room

    def choose(self, task: TaskContext) -> str | None:
        self._recorder.choosing()
        agent_id = self._inner.choose(task)
        self.fallback = self._inner.fallback
        self._recorder.chosen(self._group, task, agent_id)
        return agent_id

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        return self._inner.candidates(task, most, row_of)


def _copied(agent: FleetAgent) -> FleetAgent:
    return replace(agent)


def _values(agent: FleetAgent, names: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = msgspec.to_builtins({name: getattr(agent, name) for name in names})
    return found
