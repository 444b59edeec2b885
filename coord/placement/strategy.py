"""Base classes of the strategies: which of the eligible agents gets the next task.

There are two kinds. In an ``OrderedStrategy`` the order depends on the agents alone: they are kept in an index, and a
choice costs O(log n). In a ``SampledStrategy`` the order depends on the task as well: a few agents are drawn, scored
for the task, and the best of them is taken.

A strategy is a data structure that a distributor keeps up to date, not a function that sorts all agents for each task.
``offer`` and ``withdraw`` change one agent at a time, so a choice among 10,000 agents costs about as much as one among
100. This is how a distributor uses it::

    strategy = STRATEGIES["random"](Random())   # one instance for each set of requirements
    strategy.offer(agent)                       # an eligible agent has room: agent.load < agent.capacity
    agent_id = strategy.choose(task)            # a task is planned for this agent; its load rises by 1
    strategy.offer(agent)                       # its load has changed and it still has room ...
    strategy.withdraw(agent_id)                 # ... or it is full, lost, or no longer eligible
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from heapq import heapify, heappop, heappush, nsmallest
from itertools import count, islice
from random import Random
from typing import ClassVar

from msgspec import Struct

from coord.models.agents import FleetAgent, Location
from coord.models.explanations import Candidate
from coord.models.tasks import Priority
from coord.placement.learning import Learned

#: Agents with room up to which a sampled strategy scores all of them, so a small fleet gets the exact best.
EXACT_UP_TO = 64
#: Agents that it draws from a larger fleet. In simulation with 400 agents the mean response is 1.08 times that of an
#: oracle with 16, 1.13 times with 8, and 1.06 times with all.
DRAWS = 16
#: Agents of which the scores of a choice are shown.
SHOWN = 3
#: Scores count as equal up to this factor above the best one.
NEAR = 1.1
#: Counts as the weight of an agent with weight 0, which gets tasks only when no other agent has room.
LEAST_WEIGHT = 1e-6


class TaskContext(Struct, frozen=True, gc=False, omit_defaults=True):
    """What a strategy may know of a task."""

    task_type: str = ""
    priority: Priority = Priority.NORMAL
    location: Location | None = None  #: where the task is best run
    affinity_key: str | None = None  #: tasks with the same key prefer the same agent
    avoid: frozenset[str] = frozenset()  #: ids of agents that get the task only if no other agent has room
    #: Milliseconds that the client expects it to take, rounded to the nearest power of 4; None: it has not said.
    expected_ms: float | None = None


#: A task of which nothing is known.
ANY_TASK = TaskContext()

#: An agent in an index: its key, the number of the entry, and its id.
Entry = tuple[float, int, str]


class Strategy(ABC):
    """Orders the agents that are eligible for one set of requirements and have room.

    A strategy holds at most the agents that were offered and not withdrawn. It has no I/O and no clock, and its only
    randomness is ``self.random``, so that tests can repeat every choice. A distributor may discard an instance at any
    time and fill a new one.

    Args:
        random: the source of randomness, for strategies that need one.
        learned: service times, failure rates and demand, shared by all strategies of a distributor; default: nothing
            is known.
    """

    #: The name by which tasks, settings and operators select the strategy; lower case, digits and underscores.
    name: ClassVar[str]
    #: False: the order does not depend on loads and reports, or they are read in ``choose``. Then an agent is offered
    #: again only when it was chosen, has room again, or has a new row. An installed strategy is offered every change.
    follows_load: bool = True
    #: Why the last choice was made by load instead of the rule of the strategy; None: it was made by the rule.
    fallback: str | None = None

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        self.random = random
        self.learned = Learned() if learned is None else learned

    @abstractmethod
    def offer(self, agent: FleetAgent) -> None:
        """Add an agent that has room, or update it.

        Called again whenever the load of the agent changes and it still has room, with the same ``agent_id``. Useful
        fields: ``load`` (tasks in flight), ``outside_load`` (work from elsewhere that the agent reports), ``capacity``,
        ``weight``, ``location``, ``cpu``, ``memory`` and ``health_score``. The object changes later: copy what an order
        depends on.
        """

    @abstractmethod
    def withdraw(self, agent_id: str) -> None:
        """Remove an agent that has no room or is no longer eligible; do nothing if it was not offered."""

    @property
    @abstractmethod
    def has_room(self) -> bool:
        """True if ``choose`` would return an agent."""

    @abstractmethod
    def choose(self, task: TaskContext) -> str | None:
        """Return the id of the agent that gets the task; None if no agent has room.

        An agent in ``task.avoid`` is chosen only if no other agent has room. The agent stays offered. The caller offers
        or withdraws it before the next call.
        """

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        """Return the agents that were considered for the last choice with their scores, the best ones first.

        Called right after ``choose``, before an agent is offered or withdrawn, and only while an operator has asked for
        scores. A strategy that does not implement it shows none.

        Args:
            task: of the last choice.
            most: maximum number of agents.
            row_of: agent id -> its row, for strategies that keep no rows.
        """
        return []


class OrderedStrategy(Strategy):
    """Keeps the agents in the order of a key that depends on the agent alone; the lowest key is chosen.

    Agents with equal keys take turns, in the order in which they got the key. A subclass gives ``key``.
    """

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._entries: dict[str, Entry] = {}  # agent -> its current entry
        # key -> its entries, also outdated ones, in order; a single one needs no queue, which takes 600 bytes
        self._buckets: dict[float, deque[Entry] | Entry] = {}
        self._keys: list[float] = []  # heap of the keys that have a bucket
        self._size = 0  # entries in all buckets
        self._numbers: Iterator[int] = count()
        self._chosen: str | None = None  # the last agent chosen: it has had its turn

    @abstractmethod
    def key(self, agent: FleetAgent) -> float:
        """Return the agent's place in the order."""

    def offer(self, agent: FleetAgent) -> None:
        key, agent_id = self.key(agent), agent.agent_id
        before = self._entries.get(agent_id)
        if before is not None and before[0] == key and agent_id != self._chosen:
            return
        entry = self._entries[agent_id] = (key, next(self._numbers), agent_id)
        bucket = self._buckets.get(key)
        if bucket is None:
            self._buckets[key] = entry
            heappush(self._keys, key)
        elif isinstance(bucket, tuple):
            self._buckets[key] = deque((bucket, entry))
        else:
            bucket.append(entry)
        self._size += 1
        if self._size > 2 * len(self._entries) + 64:
            self._compact()

    def withdraw(self, agent_id: str) -> None:
        self._entries.pop(agent_id, None)

    @property
    def has_room(self) -> bool:
        return bool(self._entries)

    def choose(self, task: TaskContext) -> str | None:
        first = self.first()
        if first is None:
            return None
        if task.avoid and first[2] in task.avoid:
            first = self.first_without(task.avoid) or first
        self._chosen = first[2]
        return first[2]

    def first(self) -> Entry | None:
        """Return the entry of the agent that is next; None if no agent has room."""
        entries = self._entries
        while self._keys:
            bucket = self._buckets[self._keys[0]]
            if isinstance(bucket, tuple):
                if entries.get(bucket[2]) is bucket:
                    return bucket
                self._size -= 1
            else:
                while bucket:
                    first = bucket[0]
                    if entries.get(first[2]) is first:
                        return first
                    bucket.popleft()
                    self._size -= 1
            del self._buckets[heappop(self._keys)]
        return None

    def first_without(self, avoid: frozenset[str]) -> Entry | None:
        """Return the entry of the first agent that is not to be avoided."""
        passed: list[float] = []
        found = None
        while self._keys and found is None:
            current = (entry for entry in self._entries_of(self._keys[0]) if self._is_current(entry))
            found = next((entry for entry in current if entry[2] not in avoid), None)
            if found is None:
                passed.append(heappop(self._keys))
        for key in passed:
            heappush(self._keys, key)
        return found

    def entry_of(self, agent_id: str) -> Entry | None:
        """Return the entry of an agent; None if it has no room."""
        return self._entries.get(agent_id)

    def fill(self, entries: Iterable[Entry]) -> None:
        """Hold the agents of these entries and no others; those with the same key keep their order."""
        of_keys: dict[float, list[Entry]] = {}
        for entry in entries:
            of_keys.setdefault(entry[0], []).append(entry)
        self._entries = {entry[2]: entry for same in of_keys.values() for entry in same}
        self._buckets = {key: same[0] if len(same) == 1 else deque(same) for key, same in of_keys.items()}
        self._keys = list(of_keys)
        heapify(self._keys)
        self._size = len(self._entries)

    def number_by(self, numbers: Iterator[int]) -> None:
        """Number the entries by a counter that several orders share, so that those with the same key can take turns."""
        self._numbers = numbers

    def took_turn(self, agent_id: str) -> None:
        """Note that an agent was chosen: it is behind those with the same key when it is offered again."""
        self._chosen = agent_id

    def in_order(self) -> Iterator[Entry]:
        """Return the entries of all agents, the next one first."""
        return (entry for key in sorted(self._keys) for entry in self._entries_of(key) if self._is_current(entry))

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        current = islice(self.in_order(), most)
        return [Candidate(agent_id, key, self.terms(row_of(agent_id))) for key, _, agent_id in current]

    def terms(self, agent: FleetAgent) -> dict[str, float]:
        """Return what the key of an agent was made of."""
        return load_terms(agent)

    def _entries_of(self, key: float) -> Iterable[Entry]:
        bucket = self._buckets[key]
        return (bucket,) if isinstance(bucket, tuple) else bucket

    def _is_current(self, entry: Entry) -> bool:
        return self._entries.get(entry[2]) is entry

    def _compact(self) -> None:
        """Remove the outdated entries; the others keep their order."""
        self.fill([entry for key in self._buckets for entry in self._entries_of(key) if self._is_current(entry)])


class SampledStrategy(Strategy):
    """Draws some of the agents and scores them for the task; the lowest score is chosen.

    All agents are scored while at most ``exact_up_to`` have room; else ``draws`` of them, drawn at random. Scores up to
    ``near`` times the best one count as equal; the load decides among them, then chance. A subclass gives ``score``. It
    may read the agent's current fields, because an offered object is kept and not copied.
    """

    follows_load = False
    exact_up_to: ClassVar[int] = EXACT_UP_TO
    draws: ClassVar[int] = DRAWS
    near: ClassVar[float] = 1.0

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._agents: list[FleetAgent] = []
        self._index: dict[str, int] = {}
        self._considered: Sequence[FleetAgent] = ()  # for the last choice

    @abstractmethod
    def score(self, agent: FleetAgent, task: TaskContext) -> float:
        """Return how unsuitable the agent is for the task: 0 or more, and the lowest is chosen."""

    def scores(self, agents: Sequence[FleetAgent], task: TaskContext) -> list[float]:
        """Return the score of each agent; a subclass overrides it to look up only once what all agents share."""
        score = self.score
        return [score(agent, task) for agent in agents]

    def offer(self, agent: FleetAgent) -> None:
        at = self._index.get(agent.agent_id)
        if at is None:
            self._index[agent.agent_id] = len(self._agents)
            self._agents.append(agent)
        else:
            self._agents[at] = agent

    def withdraw(self, agent_id: str) -> None:
        at = self._index.pop(agent_id, None)
        if at is None:
            return
        last = self._agents.pop()
        if last.agent_id != agent_id:
            self._agents[at] = last
            self._index[last.agent_id] = at

    @property
    def has_room(self) -> bool:
        return bool(self._agents)

    def choose(self, task: TaskContext) -> str | None:
        agents: Sequence[FleetAgent] = self._agents
        count = len(agents)
        if count > self.exact_up_to:
            draw = self.random.random
            agents = [agents[int(draw() * count)] for _ in range(self.draws)]
        if task.avoid and count > 1:
            agents = [agent for agent in agents if agent.agent_id not in task.avoid] or self._without(task.avoid)
        self._considered = agents
        if len(agents) <= 1:
            return agents[0].agent_id if agents else None
        return self.pick(agents, task).agent_id

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        agents = list({agent.agent_id: agent for agent in self._considered}.values())
        scored = zip(self.scores(agents, task), agents, strict=True)
        best = nsmallest(most, scored, key=lambda pair: (pair[0], relative_load(pair[1])))
        return [Candidate(agent.agent_id, score, self.terms(agent, task)) for score, agent in best]

    def terms(self, agent: FleetAgent, task: TaskContext) -> dict[str, float]:
        """Return what the score of an agent was made of, and its load."""
        return load_terms(agent)

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        """Return the best of two or more agents."""
        scores = self.scores(agents, task)
        limit = min(scores) * self.near
        return self.least_loaded([agent for agent, score in zip(agents, scores, strict=True) if score <= limit])

    def least_loaded(self, agents: Sequence[FleetAgent]) -> FleetAgent:
        """Return the agent with the lowest ``relative_load``; one of them at random if there are several."""
        if len(agents) == 1:
            return agents[0]
        loads = [(agent.load + agent.outside_load + 1) / (agent.weight or LEAST_WEIGHT) for agent in agents]
        least = min(loads)
        if loads.count(least) == 1:
            return agents[loads.index(least)]
        equal = [agent for agent, load in zip(agents, loads, strict=True) if load == least]
        return equal[int(self.random.random() * len(equal))]

    def _without(self, avoid: frozenset[str]) -> Sequence[FleetAgent]:
        """Return the agents that are not avoided; all if every agent is."""
        return [agent for agent in self._agents if agent.agent_id not in avoid] or self._agents


def relative_load(agent: FleetAgent) -> float:
    """Return (tasks in flight + outside load + 1) ÷ weight: the load with the next task on it."""
    return (agent.load + agent.outside_load + 1) / (agent.weight or LEAST_WEIGHT)


def load_terms(agent: FleetAgent) -> dict[str, float]:
    """Return what ``relative_load`` is made of."""
    return {"in_flight": agent.load, "outside_load": agent.outside_load, "weight": agent.weight}


def full_scores(
    strategy: Strategy, task: TaskContext, chosen: str, row_of: Callable[[str], FleetAgent]
) -> list[Candidate]:
    """Return the chosen agent and the other best ones, ``SHOWN`` in all, with their scores.

    The arguments are those of ``Strategy.candidates``.
    """
    found = strategy.candidates(task, SHOWN, row_of)
    if chosen not in [one.agent_id for one in found]:  # the load has decided among many with similar scores
        found = strategy.candidates(task, sys.maxsize, row_of)
    return sorted(found, key=lambda one: one.agent_id != chosen)[:SHOWN]
