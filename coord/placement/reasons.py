"""Why an agent gets no task, and why a task waits: one ordered list of reasons, ``WaitingReason``.

``judge`` returns the reason for one agent: the first requirement that it does not meet. ``first_reason`` returns the
reason of a pool: the requirement at which the last of its agents is rejected. ``shortfalls`` returns all that one agent
lacks.

``Survey`` judges the agents of a fleet for one pool, and counts. ``FleetIndex`` finds the reasons of many pools.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

from coord.models.agents import AgentStatus, Ejected, FleetAgent
from coord.models.explanations import NearestMiss, WaitingReason
from coord.models.tasks import Pool, Requirements
from coord.placement.ejection import most_ejected
from coord.placement.requirements import facets_by_reason, facets_of, preferred_pool

__all__ = [
    "FleetIndex",
    "PoolSurvey",
    "Shortfall",
    "Survey",
    "WaitingReason",
    "describe",
    "first_reason",
    "judge",
    "shortfalls",
    "unmet_requirement",
]

_R = WaitingReason
#: The reasons of a pool that has eligible agents.
_HAS_AGENTS = frozenset({_R.ALL_FULL, _R.NEXT_IN_LINE})
_ORDER: dict[WaitingReason, int] = {reason: number for number, reason in enumerate(WaitingReason)}
#: Candidates for nearest misses that are kept, for each that is returned.
_KEPT = 50
#: A pool without requirements.
_ANY_POOL = Pool("")


class Shortfall(NamedTuple):
    """One thing that an agent lacks."""

    reason: WaitingReason
    text: str  #: capability 'gpu'


def unmet_requirement(  # noqa: C901, PLR0911 -- one line for each reason; a table of checks takes twice as long
    agent: FleetAgent,
    requirements: Requirements,
    health_threshold: float,
    refused_by: Collection[str] = (),
    unhandled_by: Collection[str] = (),
) -> WaitingReason | None:
    """Return the first requirement that the agent does not meet, whether it has room or not; None if it is eligible.

    Args:
        agent: the agent.
        requirements: of the task.
        health_threshold: 0 to 1, for every task; a task's own ``min_health_score`` can only be stricter.
        refused_by: versions of agents that could not decode the payload.
        unhandled_by: ids of agents that have no handler for the task.
    """
    away = None if agent.active else agent.status
    if away is AgentStatus.INACTIVE:
        return _R.NO_AGENT_REGISTERED
    if requirements.agent_type is not None and requirements.agent_type != agent.agent_type:
        return _R.NO_AGENT_TYPE
    if not agent.capabilities.issuperset(requirements.capabilities):
        return _R.NO_CAPABILITY
    if not agent.services.issuperset(requirements.services):
        return _R.NO_SERVICE
    if not agent.tags.issuperset(requirements.tags):
        return _R.NO_TAG
    if not requirements.labels.items() <= agent.labels.items():
        return _R.NO_LABEL
    if agent.version in refused_by:
        return _R.NO_VERSION
    if agent.agent_id in unhandled_by:
        return _R.NO_HANDLER
    if requirements.agent_id is not None and requirements.agent_id != agent.agent_id:
        return _R.NAMED_AGENT_ABSENT
    if away is AgentStatus.STALE:
        return _R.ALL_STALE
    if agent.health_score < health_threshold or agent.health_score < requirements.min_health_score:
        return _R.ALL_UNHEALTHY
    if away is None:
        return None
    return _R.ALL_DRAINING if away is AgentStatus.DRAINING else _R.ALL_BUSY_STATUS


def judge(agent: FleetAgent, pool: Pool, health_threshold: float, *, ejections: bool = True) -> WaitingReason | None:
    """Return why an agent gets no task of a pool now; None if it may get one.

    Args:
        agent: the agent.
        pool: of the tasks.
        health_threshold: 0 to 1, of the cell.
        ejections: an ejected agent is rejected. Only some are ejected at a time, see ``ejected_of``.
    """
    unmet = unmet_requirement(agent, pool.requirements, health_threshold, pool.refused_by, pool.unhandled_by)
    if unmet is not None:
        return unmet
    if ejections and ejection_of(agent, pool) is not None:
        return _R.EJECTED
    return _R.ALL_FULL if agent.load >= agent.capacity else None


def ejection_of(agent: FleetAgent, pool: Pool) -> Ejected | None:
    """Return the ejection of an agent for the type of a pool, or None."""
    return next((one for one in agent.ejected if one.task_type == pool.task_type), None) if agent.ejected else None


def ejected_of(agents: Iterable[FleetAgent], pool: Pool, eligible: int) -> list[FleetAgent]:
    """Return which of these agents are ejected for a pool: those that were ejected first, as many as may be at a time.

    Args:
        agents: that meet all requirements.
        pool: of the tasks.
        eligible: number of agents that meet all requirements.
    """
    since = {agent.agent_id: (one.until - one.for_ms) for agent in agents if (one := ejection_of(agent, pool))}
    out = [agent for agent in agents if agent.agent_id in since]
    return sorted(out, key=lambda agent: (since[agent.agent_id], agent.agent_id))[: most_ejected(eligible)]


def first_reason(reasons: Iterable[WaitingReason | None], named: WaitingReason | None = None) -> WaitingReason:
    """Return the reason of a pool: the first in the order of the list that holds.

    Args:
        reasons: what ``judge`` returned for each agent, in any order; equal ones may be left out.
        named: the reason of the agent that the task names, if that agent is registered: no other agent counts.
    """
    if named is not None:
        return named
    found = set(reasons)
    if None in found:
        return _R.NEXT_IN_LINE
    return max((reason for reason in found if reason), key=_ORDER.__getitem__, default=_R.NO_AGENT_REGISTERED)


def shortfalls(agent: FleetAgent, pool: Pool, health_threshold: float, *, ejections: bool = True) -> list[Shortfall]:
    """Return all that keeps an agent from the tasks of a pool, in the order of the list; empty if nothing does.

    Room, or not to be ejected, is only missed by an agent that has everything else. The arguments are those of
    ``judge``.
    """
    least_health = max(health_threshold, pool.requirements.min_health_score)
    away = None if agent.active else agent.status
    has_left = Shortfall(_R.NO_AGENT_REGISTERED, "its status inactive (it has left)")
    found = [
        *([has_left] if away is AgentStatus.INACTIVE else []),
        *_lacking(agent, pool),
        *_unavailable(agent, away, least_health),
    ]
    ejection = ejection_of(agent, pool) if ejections and not found else None
    if ejection is not None:
        return [Shortfall(_R.EJECTED, _ejection_text(agent, ejection))]
    if not found and agent.load >= agent.capacity:
        return [Shortfall(_R.ALL_FULL, f"room (it has {agent.load} of at most {agent.capacity} tasks)")]
    return found


def _lacking(agent: FleetAgent, pool: Pool) -> Iterator[Shortfall]:
    """Yield what the requirements name and the agent does not have."""
    requirements = pool.requirements
    if requirements.agent_type not in {None, agent.agent_type}:
        yield Shortfall(_R.NO_AGENT_TYPE, f"its type {agent.agent_type!r} ({requirements.agent_type!r} is required)")
    for reason, noun, wanted, has in (
        (_R.NO_CAPABILITY, "capability", requirements.capabilities, agent.capabilities),
        (_R.NO_SERVICE, "service", requirements.services, agent.services),
        (_R.NO_TAG, "tag", requirements.tags, agent.tags),
    ):
        yield from (Shortfall(reason, f"{noun} {name!r}") for name in dict.fromkeys(wanted) if name not in has)
    for name, value in requirements.labels.items():
        if agent.labels.get(name) != value:
            other = f" (it has {agent.labels[name]!r})" if name in agent.labels else ""
            yield Shortfall(_R.NO_LABEL, f"label {f'{name}={value}'!r}{other}")
    if agent.version in pool.refused_by:
        yield Shortfall(_R.NO_VERSION, f"its version {agent.version!r}, which could not decode the payload")
    if agent.agent_id in pool.unhandled_by:
        yield Shortfall(_R.NO_HANDLER, "a handler for the type of the task")
    elif requirements.agent_id not in {None, agent.agent_id}:
        yield Shortfall(_R.NAMED_AGENT_ABSENT, f"its id (the task names {requirements.agent_id!r})")


def _unavailable(agent: FleetAgent, away: AgentStatus | None, least_health: float) -> Iterator[Shortfall]:
    """Yield why the agent is not available, whatever it has; ``away``: its status if that is why."""
    if away is AgentStatus.STALE:
        yield Shortfall(_R.ALL_STALE, "its status stale (it missed its heartbeats)")  # so its health is 0
    elif agent.health_score < least_health:
        yield Shortfall(
            _R.ALL_UNHEALTHY, f"its health {agent.health_score:.2g} (at least {least_health:g} is required)"
        )
    if away is AgentStatus.ACTIVE:
        yield Shortfall(_R.ALL_BUSY_STATUS, "its inbox (it gets no tasks until it reports that it reads them)")
    elif away not in {None, AgentStatus.STALE, AgentStatus.INACTIVE}:
        reason = _R.ALL_DRAINING if away is AgentStatus.DRAINING else _R.ALL_BUSY_STATUS
        yield Shortfall(reason, f"its status {away}")


def _ejection_text(agent: FleetAgent, ejection: Ejected) -> str:
    left_s = math.ceil((ejection.until - agent.read_at) / 1000)
    rates = f"{ejection.failure_rate:.0%} of its attempts failed, {ejection.others_rate:.0%} of the others'"
    return f"its ejection for the type {ejection.task_type!r}, for {left_s} s more ({rates})"


class Survey:
    """Judges the agents of a fleet for one pool; they may be added in pieces, and ``close`` follows the last one.

    Args:
        pool: for which the agents are judged.
        health_threshold: 0 to 1, of the cell.
        most: maximum number of nearest misses.
        ejections: an ejected agent is rejected; False if the rules of the pool say otherwise.
    """

    def __init__(self, pool: Pool, health_threshold: float, most: int, *, ejections: bool = True) -> None:
        self._ejections = ejections
        self._pool = pool
        self._threshold = health_threshold
        self._most = most
        self._named: WaitingReason | None = None
        self._near: list[tuple[int, int, str, tuple[str, ...]]] = []
        self._rejected: Counter[WaitingReason] = Counter()
        self._ejected: list[FleetAgent] = []  # not judged yet: how many are ejected depends on the whole fleet
        self._met = 0  # agents that meet all requirements
        self.eligible = 0  #: agents that may get a task now

    def add(self, agents: Iterable[FleetAgent]) -> None:
        """Judge some agents of the fleet."""
        for agent in agents:
            reason = judge(agent, self._pool, self._threshold, ejections=self._ejections)
            self._met += reason in {None, _R.EJECTED, _R.ALL_FULL}
            if reason is _R.EJECTED:
                self._ejected.append(agent)
            else:
                self._count(agent, reason)
        if len(self._near) > _KEPT * self._most:
            self._near = sorted(self._near)[: self._most]

    def _count(self, agent: FleetAgent, reason: WaitingReason | None) -> None:
        if reason is None:
            self.eligible += 1
            return
        named = self._pool.requirements.agent_id
        self._rejected[reason] += 1
        if agent.agent_id == named and reason is not _R.NO_AGENT_REGISTERED:
            self._named = reason
        lacking = shortfalls(agent, self._pool, self._threshold, ejections=reason is _R.EJECTED)
        lacks = tuple(lack.text for lack in lacking)
        # The agent that the task names comes first, then those that lack least, then those that came furthest.
        number = 0 if agent.agent_id == named else len(lacks)
        self._near.append((number, -_ORDER[reason], agent.agent_id, lacks))

    def close(self) -> None:
        """Judge the agents that are ejected: all agents of the fleet were added."""
        out = {agent.agent_id for agent in ejected_of(self._ejected, self._pool, self._met)}
        for agent in self._ejected:
            is_out = agent.agent_id in out
            reason = _R.EJECTED if is_out else judge(agent, self._pool, self._threshold, ejections=False)
            self._count(agent, reason)
        self._ejected.clear()

    @property
    def agents(self) -> int:
        """The number of agents that were judged."""
        return self.eligible + self._rejected.total()

    @property
    def reason(self) -> WaitingReason:
        """The reason of the pool."""
        return first_reason([*self._rejected, *([None] if self.eligible else [])], self._named)

    @property
    def text(self) -> str:
        """The reason as a clause: no agent has the capability 'gpu'."""
        if self._named is None:
            return describe(self.reason, self._pool, self.rejected)
        (named,) = self.nearest
        return f"agent {named.agent_id!r}, which the task names, fits except for {_listed(named.lacks)}"

    @property
    def rejected(self) -> dict[WaitingReason, int]:
        """The number of rejected agents by reason, in the order of the list; each agent is counted once."""
        return {reason: self._rejected[reason] for reason in WaitingReason if reason in self._rejected}

    @property
    def nearest(self) -> tuple[NearestMiss, ...]:
        """The rejected agents that lack least; if the agent that the task names is registered, only that one."""
        near = sorted(self._near)[: 1 if self._named is not None else self._most]
        reasons = list(WaitingReason)
        return tuple(
            NearestMiss(agent_id, reasons[-order], lacks, f"{agent_id} fits except for {_listed(lacks)}")
            for _, order, agent_id, lacks in near
        )


class PoolSurvey:
    """Surveys a fleet for a pool, whose tasks go first to agents that can do their type by their own account.

    Args: as those of ``Survey``.
    """

    def __init__(self, pool: Pool, health_threshold: float, most: int, *, ejections: bool = True) -> None:
        preferred = preferred_pool(pool)
        self._general = Survey(pool, health_threshold, most, ejections=ejections)
        self._preferred = None if preferred is None else Survey(preferred, health_threshold, most, ejections=ejections)

    def add(self, agents: Sequence[FleetAgent]) -> None:
        """Judge some agents of the fleet."""
        self._general.add(agents)
        if self._preferred is not None:
            self._preferred.add(agents)

    def close(self) -> None:
        """Judge the agents that are ejected: all agents of the fleet were added."""
        self._general.close()
        if self._preferred is not None:
            self._preferred.close()

    @property
    def found(self) -> Survey:
        """The survey that counts: that of the preferred agents, if any of them may get the tasks when it has room."""
        preferred = self._preferred
        return preferred if preferred is not None and preferred.reason in _HAS_AGENTS else self._general


class FleetIndex:
    """Finds the reasons of many pools: agents are indexed, so a pool costs little more than the agents that fit it.

    The agents may be added in pieces.

    Args:
        health_threshold: 0 to 1, of the cell.
    """

    def __init__(self, health_threshold: float) -> None:
        self._threshold = health_threshold
        self._agents: dict[str, FleetAgent] = {}  # without those that have left
        self._having: dict[str, set[str]] = {}  # facet -> ids of the agents that have it
        self._by_state: dict[WaitingReason | None, set[str]] = {}  # reason without requirements -> ids
        self._ejected: dict[str, list[FleetAgent]] = {}  # task type -> agents that are ejected for it

    def add(self, agents: Iterable[FleetAgent]) -> None:
        """Add some agents of the fleet."""
        for agent in agents:
            state = judge(agent, _ANY_POOL, self._threshold)
            if state is _R.NO_AGENT_REGISTERED:
                continue
            for one in agent.ejected:
                self._ejected.setdefault(one.task_type, []).append(agent)
            self._agents[agent.agent_id] = agent
            self._by_state.setdefault(state, set()).add(agent.agent_id)
            for facet in facets_of(agent):
                self._having.setdefault(facet, set()).add(agent.agent_id)

    def has_ejected(self, task_type: str) -> bool:
        """Return True if any agent is ejected for a type."""
        return task_type in self._ejected

    def reason_of(self, pool: Pool, *, ejections: bool = True) -> WaitingReason:
        """Return the reason for which a queued task of this pool waits; the same as that of a ``PoolSurvey``.

        Args:
            pool: of the task.
            ejections: as for a ``Survey``.
        """
        return self._decide(pool, ejections=ejections)[1]

    def _decide(self, pool: Pool, *, ejections: bool) -> tuple[Pool, WaitingReason]:
        """Return the pool that counts (that of the preferred agents if any of them is eligible), and its reason."""
        preferred = preferred_pool(pool)
        if preferred is not None and (reason := self._reason_of(preferred, ejections=ejections)) in _HAS_AGENTS:
            return preferred, reason
        return pool, self._reason_of(pool, ejections=ejections)

    def _reason_of(self, pool: Pool, *, ejections: bool) -> WaitingReason:
        """Return the reason for which a task waits that only agents that meet all requirements of this pool get."""
        requirements = pool.requirements
        if not self._agents:
            return _R.NO_AGENT_REGISTERED
        named = self._agents.get(requirements.agent_id or "")
        if named is not None:  # the only eligible agent is never ejected
            return first_reason((), judge(named, pool, self._threshold, ejections=False) or _R.NEXT_IN_LINE)
        fitting = self._fitting(requirements)
        if isinstance(fitting, WaitingReason):
            return fitting
        has_own_rules = pool.refused_by or pool.unhandled_by or (ejections and self.has_ejected(pool.task_type))
        if has_own_rules or requirements.agent_id is not None or requirements.min_health_score > self._threshold:
            return first_reason(self._judged(pool, fitting, ejections=ejections))
        return first_reason(reason for reason, ids in self._by_state.items() if not ids.isdisjoint(fitting))

    def count_ejected(self, pool: Pool) -> int:
        """Return how many agents get no task of this pool because they are ejected."""
        if not self.has_ejected(pool.task_type):
            return 0
        pool, _ = self._decide(pool, ejections=True)
        fitting = self._fitting(pool.requirements)
        if isinstance(fitting, WaitingReason):
            return 0
        return sum(reason is _R.EJECTED for reason in self._judged(pool, fitting, ejections=True))

    def _fitting(self, requirements: Requirements) -> Collection[str] | WaitingReason:
        """Return the agents that have all facets but the id; the reason if no agent has."""
        fitting: Collection[str] | None = None
        for reason, facets in facets_by_reason(requirements).items():
            for facet in facets if reason is not _R.NAMED_AGENT_ABSENT else ():
                having = self._having.get(facet, set())
                fitting = having if fitting is None else having.intersection(fitting)
                if not fitting:
                    return reason
        return self._agents.keys() if fitting is None else fitting

    def _judged(self, pool: Pool, agent_ids: Iterable[str], *, ejections: bool) -> Iterator[WaitingReason | None]:
        """Yield why each of these agents gets no task of a pool."""
        agents = [self._agents[agent_id] for agent_id in agent_ids]
        reasons = {agent.agent_id: judge(agent, pool, self._threshold, ejections=False) for agent in agents}
        met = [agent for agent in agents if reasons[agent.agent_id] in {None, _R.ALL_FULL}]
        out = {agent.agent_id for agent in ejected_of(met, pool, len(met))} if ejections else set()
        return (_R.EJECTED if agent_id in out else reason for agent_id, reason in reasons.items())


def describe(reason: WaitingReason, pool: Pool, rejected: Mapping[WaitingReason, int]) -> str:
    """Return the reason for which a task of this pool waits as a clause: no agent has the capability 'gpu'.

    Args:
        reason: of the pool.
        pool: of the task.
        rejected: as in ``Survey``.
    """
    requirements = pool.requirements
    if reason in _STATES:
        return _describe_states({state: rejected[state] for state in _STATES if rejected.get(state)} or {reason: 1})
    named: dict[WaitingReason, tuple[str, Sequence[str]]] = {
        _R.NO_AGENT_TYPE: ("type", () if requirements.agent_type is None else (requirements.agent_type,)),
        _R.NO_CAPABILITY: ("capability", requirements.capabilities),
        _R.NO_SERVICE: ("service", requirements.services),
        _R.NO_TAG: ("tag", requirements.tags),
        _R.NO_LABEL: ("label", [f"{name}={value}" for name, value in requirements.labels.items()]),
    }
    if reason not in named:
        return _CLAUSES[reason].format(agent=requirements.agent_id)
    before = [
        _plural(noun, len(names)) for other, (noun, names) in named.items() if _ORDER[other] < _ORDER[reason] and names
    ]
    noun, names = named[reason]
    having = f" with the required {_listed(before)}" if before else ""
    return f"no agent{having} has the {_plural(noun, len(names))} {_listed([repr(name) for name in names])}"


def _describe_states(states: Mapping[WaitingReason, int]) -> str:
    fitting = sum(states.values())
    if len(states) == 1:
        (state,) = states
        agents = "the only agent that fits is" if fitting == 1 else f"all {fitting:,} agents that fit are"
        return f"{agents} {_STATES[state]}"
    each = ", ".join(f"{number:,} {_STATES[state]}" for state, number in states.items())
    return f"none of the {fitting:,} agents that fit is available: {each}"


#: The reasons of agents that meet everything that the requirements name, and how such an agent is.
_STATES: dict[WaitingReason, str] = {
    _R.ALL_STALE: "stale",
    _R.ALL_UNHEALTHY: "below the required health",
    _R.ALL_DRAINING: "draining",
    _R.ALL_BUSY_STATUS: "taking no tasks",
    _R.EJECTED: "ejected for a while, because its tasks of this type fail",
    _R.ALL_FULL: "at capacity",
}
_CLAUSES: dict[WaitingReason, str] = {
    _R.SCHEDULED: "its run time is not reached",
    _R.NO_AGENT_REGISTERED: "no agent is registered",
    _R.NO_VERSION: "every agent that fits has a version that could not decode the payload",
    _R.NO_HANDLER: "every agent that fits has no handler for the type of the task",
    _R.NAMED_AGENT_ABSENT: "agent {agent!r}, which the task names, is not registered",
    _R.NEXT_IN_LINE: "an agent has room, and the task is placed when its turn comes",
}


def _plural(noun: str, number: int) -> str:
    if number == 1:
        return noun
    return "capabilities" if noun == "capability" else f"{noun}s"


def _listed(words: Sequence[str]) -> str:
    *first, last = words
    return f"{', '.join(first)} and {last}" if first else last
