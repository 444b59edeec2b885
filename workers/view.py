"""A distributor's view of the fleet: what placement plans on, never the authority.

Loads are the true ones as last heard, plus what this distributor has planned and not had answered. An agent is in a
group when it meets the group's hard requirements; the group's strategy holds those of its agents that have room. An
agent may be in many groups, so a group takes changes over when it is looked at, each agent once.

Groups that no agent can serve cost nothing but memory. Agents are indexed by their facets, and each group is listed
under one facet that it requires, the one that the fewest agents have: only an agent that has it can join the group.
The planner puts a group without room to sleep, and ``woken`` returns it when an agent of it has room again.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from itertools import islice
from random import Random

from coord import codec
from coord.models.agents import FleetAgent
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, Strategy, facets_of, facets_required, unmet_requirement

#: Groups kept at most that no waiting pool uses; the ones that have not been used for longest are dropped.
GROUPS_KEPT = 10_000
#: The facet that every agent has: groups that require nothing are listed under it.
EVERY = "*"
#: Members of full groups that are looked through at once for agents whose load is old.
MEMBERS_LOOKED_AT = 50_000

#: The members of every group that has none. It cannot be added to by mistake.
NOBODY: set[str] = frozenset()  # type: ignore[assignment]


#: Requirements as JSON, strategy (None: the fleet's), and the versions of agents that refused the payload.
GroupKey = tuple[bytes, str | None, tuple[str, ...]]


class Candidates:
    """The agents that meet one set of requirements, under one strategy; small while no agent does."""

    __slots__ = (
        "_strategy",
        "_view",
        "eligible",
        "is_asleep",
        "key",
        "line",
        "needs",
        "own_strategy",
        "refused_by",
        "requirements",
        "turn",
        "users",
        "version",
        "watched",
        "within",
    )

    def __init__(self, view: View, key: GroupKey, requirements: Requirements) -> None:
        self.key = key
        self.requirements = requirements
        self.refused_by = key[2]  #: versions of agents that are not eligible
        self.needs = facets_required(requirements)  #: an agent without all of these is not eligible
        self.watched = EVERY  #: the facet that the group is listed under
        self.own_strategy = key[1]  #: None: the fleet's
        self.within: set[str] = NOBODY  #: agents that have all of ``needs``
        self.eligible: set[str] = NOBODY  #: those of them that meet all requirements now
        self.users = 0  #: waiting pools that hold it
        self.is_asleep = False  #: the planner has put it aside until ``View.woken`` returns it
        self.version = 0  #: of the view, when this group was last brought up to date
        #: The planner's: the group's waiting pools by their heads, and the first of them as it stands in the order.
        self.line: list[tuple[float, str]] = []
        self.turn: tuple[float, str] | None = None
        self._strategy: Strategy | None = None
        self._view = view

    @property
    def strategy(self) -> Strategy:
        """The strategy that holds the agents with room; made when it is first asked for."""
        if self._strategy is None:
            self._strategy = self._view.strategy_for(self)
        return self._strategy

    @property
    def has_room(self) -> bool:
        """Whether any of its agents may be given a task now."""
        if not self.eligible:
            return False
        self._view.bring_up_to_date(self)
        return self.strategy.has_room

    def join(self, agent_id: str) -> None:
        """Add an agent that is eligible; its room is taken over when the group is looked at."""
        if not self.eligible:
            self.eligible = set()
        self.eligible.add(agent_id)

    def leave(self, agent_id: str) -> None:
        """Remove an agent that is not eligible any more; without any, the group is small again."""
        self.eligible.discard(agent_id)
        if self._strategy is not None:
            self._strategy.withdraw(agent_id)
        if not self.eligible:
            self.forget()

    def forget(self) -> None:
        """Forget what was offered to the strategy; it is offered again when the group is looked at."""
        self._strategy = None


class AgentState:
    """One agent in the view."""

    __slots__ = ("agent", "facets", "freed", "groups", "has_room", "heard", "heard_at", "planned")

    def __init__(self, agent: FleetAgent) -> None:
        self.facets = facets_of(agent)
        self.planned = 0
        self.has_room = False
        self.groups: dict[Candidates, None] = {}  #: whose ``needs`` it has
        self.take_over(agent)

    def take_over(self, agent: FleetAgent) -> None:
        """Take over the agent's row; what is planned stays planned."""
        self.agent = agent
        self.heard = agent.load
        self.heard_at = time.monotonic()
        self.freed = 0  #: slots that round trips under way make free


class View:
    """The fleet as this distributor knows it."""

    def __init__(self, health_threshold: float, strategy: str, random: Random) -> None:
        self.health_threshold = health_threshold
        self.strategy = strategy
        self.random = random
        self.seats: dict[str, AgentState] = {}
        self.rooms = 0  #: agents that have room
        self._groups: dict[GroupKey, Candidates] = {}
        self._unused: dict[Candidates, None] = {}  # groups that no waiting pool holds, the latest used last
        self._having: dict[str, dict[str, AgentState]] = {}  # facet -> the agents that have it
        self._watching: dict[str, dict[Candidates, None]] = {}  # facet -> the groups that are listed under it
        self._full: dict[Candidates, None] = {}  # sleeping groups that have agents
        self._joined: dict[Candidates, None] = {}  # sleeping groups that an agent has joined since ``woken``
        self._opened: dict[str, None] = {}  # agents that have got room since then
        self._version = 0
        #: agent -> version of its last change, the latest change last.
        self._changed: dict[str, int] = {}

    def replace(self, fleet: Mapping[str, FleetAgent]) -> None:
        """Begin again from a snapshot; what was planned and not answered is forgotten. Groups in use stay."""
        for group in list(self._unused):
            self._drop(group)
        for group in self._groups.values():
            group.within = group.eligible = NOBODY
            group.forget()
        self.seats.clear()
        self._having.clear()
        self._full.clear()
        self._opened.clear()
        self._changed.clear()
        self.rooms = 0
        for agent in fleet.values():
            self._add(agent)

    def configure(self, health_threshold: float, strategy: str) -> bool:
        """Take over what operators have set; whether anything changed."""
        if (health_threshold, strategy) == (self.health_threshold, self.strategy):
            return False
        self.health_threshold, self.strategy = health_threshold, strategy
        for group in self._groups.values():
            if group.own_strategy is None:
                group.forget()
        for seat in self.seats.values():
            self._judge(seat)
            self._refresh(seat)
        return True

    def update(self, asked: Iterable[str], rows: Mapping[str, FleetAgent]) -> None:
        """Take over the rows of the agents asked for; one without a row is gone."""
        for agent_id in asked:
            seat, row = self.seats.get(agent_id), rows.get(agent_id)
            if seat is not None and row is not None and seat.facets == facets_of(row):
                seat.take_over(row)
                self._judge(seat)
                self._refresh(seat)
                continue
            planned = 0
            if seat is not None:
                planned = seat.planned
                self._remove(seat)
            if row is not None:
                self._add(row, planned)

    def group_of(self, pool: Pool) -> Candidates:
        """The group that may serve a pool."""
        group = self._find_or_make(pool)
        if not group.users:
            self._keep_unused(group)
        return group

    def hold(self, pool: Pool) -> Candidates:
        """The group that may serve a waiting pool; it is kept until the pool releases it."""
        group = self._find_or_make(pool)
        self._unused.pop(group, None)
        group.users += 1
        return group

    def release(self, group: Candidates) -> None:
        """A waiting pool needs the group no longer."""
        group.users -= 1
        if group.users:
            return
        self._wake(group)
        group.line.clear()
        group.turn = None
        self._keep_unused(group)

    def sleep(self, group: Candidates) -> None:
        """Put a group without room aside, until an agent of it has room."""
        group.is_asleep = True
        if group.eligible:
            self._full[group] = None

    def woken(self) -> list[Candidates]:
        """The groups that slept and may have room now; they sleep no longer."""
        if not self._joined and not self._opened:
            return []
        found = [group for group in self._joined if group.is_asleep]
        for group in found:
            self._wake(group)
        for agent_id in self._opened:
            if not self._full:
                break
            seat = self.seats.get(agent_id)
            if seat is None or not seat.has_room:
                continue
            groups = seat.groups if len(seat.groups) < len(self._full) else list(self._full)
            for group in groups:
                if group.is_asleep and agent_id in group.eligible:
                    self._wake(group)
                    found.append(group)
        self._joined.clear()
        self._opened.clear()
        return found

    def full_groups(self, most: int) -> list[Candidates]:
        """At most ``most`` of the sleeping groups that have agents: others the next time, so that each has its turn."""
        found: list[Candidates] = []
        members = 0
        for group in islice(self._full, most):
            if found and members + len(group.eligible) > MEMBERS_LOOKED_AT:
                break
            members += len(group.eligible)
            found.append(group)
        if len(found) < len(self._full):
            for group in found:
                del self._full[group]
                self._full[group] = None
        return found

    def take(self, group: Candidates) -> FleetAgent | None:
        """The group's next agent, with one more task planned for it; None when nobody has room."""
        if not group.eligible:
            return None
        strategy = group.strategy
        if group.version != self._version:
            self.bring_up_to_date(group)
        agent_id = strategy.choose()
        if agent_id is None:
            return None
        seat = self.seats[agent_id]
        seat.planned += 1
        self._refresh(seat)
        # This group need not look for what has changed before the next is taken from it.
        _offer(seat, strategy)
        group.version = self._version
        return seat.agent

    def answered(self, counts: Mapping[str, int], loads: Mapping[str, int]) -> None:
        """Subtract answered tasks from what is planned for each agent, and take over the loads that came with them."""
        for agent_id, count in counts.items():
            seat = self.seats.get(agent_id)
            if seat is not None and seat.planned:
                seat.planned = max(0, seat.planned - count)
                if agent_id not in loads:  # the others are refreshed once, with their loads
                    self._refresh(seat)
        self.hear(loads)

    def free(self, agent_id: str, count: int) -> None:
        """So many tasks of the agent end in a round trip that is about to be sent; negative: it is over."""
        seat = self.seats.get(agent_id)
        if seat is not None:
            seat.freed = max(0, seat.freed + count)
            self._refresh(seat)

    def agents_that_may_decode(self, pool: Pool) -> list[FleetAgent]:
        """The agents of other versions than those that refused, that have what the pool requires, in any state."""
        needs = facets_required(pool.requirements)
        return [
            seat.agent
            for seat in self.seats.values()
            if seat.agent.version not in pool.refused_by and seat.facets.issuperset(needs)
        ]

    def suspend(self, agent_id: str) -> None:
        """Plan nothing for an agent until its row is read again: it is not what the view thought."""
        seat = self.seats.get(agent_id)
        if seat is not None:
            seat.agent.active = False
            self._refresh(seat)

    def hear(self, loads: Mapping[str, int]) -> None:
        """Take over true loads."""
        at = time.monotonic()
        for agent_id, load in loads.items():
            seat = self.seats.get(agent_id)
            if seat is not None:
                seat.heard, seat.heard_at = load, at
                self._refresh(seat)

    def unheard(self, groups: Iterable[Candidates], for_s: float, most: int) -> list[str]:
        """Agents of these groups whose load was last heard longer than ``for_s`` ago: the ``most`` longest unheard."""
        before = time.monotonic() - for_s
        heard_at = {agent_id: self.seats[agent_id].heard_at for group in groups for agent_id in group.eligible}
        found = [agent_id for agent_id, at in heard_at.items() if at < before]
        return found if len(found) <= most else heapq.nsmallest(most, found, key=heard_at.__getitem__)

    def bring_up_to_date(self, group: Candidates) -> None:
        """Tell the group's strategy what has changed since it was last looked at."""
        changes = self._version - group.version
        if not changes:
            return
        strategy = group.strategy
        if len(group.eligible) < changes:
            for agent_id in group.eligible:
                if self._changed.get(agent_id, 0) > group.version:
                    _offer(self.seats[agent_id], strategy)
        else:
            for agent_id in reversed(self._changed):
                if self._changed[agent_id] <= group.version:
                    break
                if agent_id in group.eligible:
                    _offer(self.seats[agent_id], strategy)
        group.version = self._version

    def strategy_for(self, group: Candidates) -> Strategy:
        """A new strategy that holds those of the group's agents that have room."""
        strategy = STRATEGIES[group.own_strategy or self.strategy](self.random)
        for agent_id in group.eligible:
            _offer(self.seats[agent_id], strategy)
        group.version = self._version
        return strategy

    def _find_or_make(self, pool: Pool) -> Candidates:
        strategy = pool.strategy if pool.strategy in STRATEGIES else None
        key = (codec.encode(pool.requirements), strategy, pool.refused_by)
        group = self._groups.get(key)
        if group is None:
            group = self._groups[key] = Candidates(self, key, pool.requirements)
            self._watch(group, min(group.needs, key=self._frequency, default=EVERY))
            agents = self.seats if group.watched == EVERY else self._having.get(group.watched, {})
            for seat in agents.values():
                self._consider(seat, group)
        return group

    def _keep_unused(self, group: Candidates) -> None:
        """Keep a group for a while that no waiting pool holds."""
        self._unused.pop(group, None)
        self._unused[group] = None  # the latest used stands last
        if len(self._unused) > GROUPS_KEPT:
            self._drop(next(iter(self._unused)))

    def _add(self, agent: FleetAgent, planned: int = 0) -> None:
        seat = self.seats[agent.agent_id] = AgentState(agent)
        seat.planned = planned
        for facet in seat.facets:
            self._having.setdefault(facet, {})[agent.agent_id] = seat
        for facet in (EVERY, *seat.facets):
            for group in list(self._watching.get(facet, ())):
                if not self._consider(seat, group):
                    self._watch_rarer(group, seat)
        self._refresh(seat)

    def _remove(self, seat: AgentState) -> None:
        agent_id = seat.agent.agent_id
        del self.seats[agent_id]
        self._changed.pop(agent_id, None)
        self.rooms -= seat.has_room
        for facet in seat.facets:
            having = self._having[facet]
            del having[agent_id]
            if not having:
                del self._having[facet]
        for group in seat.groups:
            group.within.discard(agent_id)
            if agent_id in group.eligible:
                self._leave(agent_id, group)

    def _consider(self, seat: AgentState, group: Candidates) -> bool:
        """Whether the agent has all that the group needs; then it is in the group whenever it is fit."""
        if not seat.facets.issuperset(group.needs):
            return False
        if not group.within:
            group.within = set()
        group.within.add(seat.agent.agent_id)
        seat.groups[group] = None
        self._judge_in(seat, group)
        return True

    def _judge(self, seat: AgentState) -> None:
        for group in seat.groups:
            self._judge_in(seat, group)

    def _judge_in(self, seat: AgentState, group: Candidates) -> None:
        agent_id = seat.agent.agent_id
        if (
            seat.agent.version in group.refused_by
            or unmet_requirement(seat.agent, group.requirements, self.health_threshold) is not None
        ):
            if agent_id in group.eligible:
                self._leave(agent_id, group)
        elif agent_id not in group.eligible:
            group.join(agent_id)
            if group.is_asleep:
                self._joined[group] = None

    def _leave(self, agent_id: str, group: Candidates) -> None:
        group.leave(agent_id)
        if not group.eligible:
            self._full.pop(group, None)

    def _wake(self, group: Candidates) -> None:
        group.is_asleep = False
        self._full.pop(group, None)

    def _refresh(self, seat: AgentState) -> None:
        agent, changed = seat.agent, self._changed
        agent_id = agent.agent_id
        load = max(0, seat.heard + seat.planned - seat.freed)
        agent.load = load
        self._version += 1
        changed.pop(agent_id, None)
        changed[agent_id] = self._version
        has_room = load < agent.capacity and agent.active
        if has_room is not seat.has_room:
            seat.has_room = has_room
            if not has_room:
                self.rooms -= 1
                return
            self.rooms += 1
            if self._full:
                self._opened[agent_id] = None

    def _frequency(self, facet: str) -> int:
        return len(self._having.get(facet, ()))

    def _watch(self, group: Candidates, facet: str) -> None:
        group.watched = facet
        self._watching.setdefault(facet, {})[group] = None

    def _unwatch(self, group: Candidates) -> None:
        watching = self._watching[group.watched]
        del watching[group]
        if not watching:
            del self._watching[group.watched]

    def _watch_rarer(self, group: Candidates, seat: AgentState) -> None:
        """List a group under a facet that this agent lacks, if fewer agents have it: the next like it costs nothing."""
        rarest = min((facet for facet in group.needs if facet not in seat.facets), key=self._frequency)
        if self._frequency(rarest) < self._frequency(group.watched):
            self._unwatch(group)
            self._watch(group, rarest)

    def _drop(self, group: Candidates) -> None:
        del self._unused[group]
        del self._groups[group.key]
        self._unwatch(group)
        for agent_id in group.within:
            del self.seats[agent_id].groups[group]


def _offer(seat: AgentState, strategy: Strategy) -> None:
    if seat.has_room:
        strategy.offer(seat.agent)
    else:
        strategy.withdraw(seat.agent.agent_id)
