"""A distributor's view of the fleet: what placement plans on, never the authority.

Loads are the true ones as last heard, plus what this distributor has planned and not had answered. An agent is in a
group when it meets the group's hard requirements; the group's strategy holds those of its agents that have room. An
agent may be in many groups, so a group takes changes over when it is looked at, each agent once.
"""

from __future__ import annotations

import heapq
import time
from collections.abc import Iterable, Mapping
from random import Random

from coord import codec
from coord.models.agents import FleetAgent
from coord.models.tasks import Pool, Requirements
from coord.placement import STRATEGIES, Strategy, unmet

#: Groups kept at most; the ones that have not been planned for longest are dropped, and made again when needed.
GROUPS_KEPT = 10_000


class Group:
    """The agents that meet one set of requirements, under one strategy."""

    def __init__(self, view: View, requirements: Requirements, strategy: Strategy) -> None:
        self.requirements = requirements
        self.strategy = strategy
        self.eligible: set[str] = set()
        self.is_dropped = False  #: the view has forgotten it: ask for it again
        self.version = 0  #: of the view, when this group was last brought up to date
        self._view = view

    @property
    def has_room(self) -> bool:
        """Whether any of its agents may be given a task now."""
        self._view.bring_up_to_date(self)
        return self.strategy.has_room


class Seat:
    """One agent in the view."""

    __slots__ = ("agent", "freed", "groups", "heard", "heard_at", "planned")

    def __init__(self, agent: FleetAgent) -> None:
        self.agent = agent
        self.heard = agent.load
        self.heard_at = time.monotonic()
        self.planned = 0
        self.freed = 0  #: slots that round trips under way make free
        self.groups: list[Group] = []


class View:
    """The fleet as this distributor knows it."""

    def __init__(self, health_threshold: float, strategy: str, random: Random) -> None:
        self.health_threshold = health_threshold
        self.strategy = strategy
        self.random = random
        self.seats: dict[str, Seat] = {}
        self._groups: dict[tuple[bytes, str], Group] = {}
        self._version = 0
        #: agent -> version of its last change, the latest change last.
        self._changed: dict[str, int] = {}

    def replace(self, fleet: Mapping[str, FleetAgent]) -> None:
        """Begin anew from a snapshot; what was planned and not answered is forgotten."""
        self._drop_all()
        self._changed.clear()
        self.seats = {agent_id: Seat(agent) for agent_id, agent in fleet.items()}

    def configure(self, health_threshold: float, strategy: str) -> bool:
        """Take over what operators have set; whether anything changed."""
        if (health_threshold, strategy) == (self.health_threshold, self.strategy):
            return False
        self.health_threshold, self.strategy = health_threshold, strategy
        self._drop_all()
        for seat in self.seats.values():
            seat.groups.clear()
        return True

    def update(self, asked: Iterable[str], rows: Mapping[str, FleetAgent]) -> None:
        """Take over the rows of the agents asked for; one without a row is gone."""
        for agent_id in asked:
            seat = self.seats.pop(agent_id, None)
            planned = 0
            if seat is not None:
                planned = seat.planned
                self._changed.pop(agent_id, None)
                for group in seat.groups:
                    group.eligible.discard(agent_id)
                    group.strategy.withdraw(agent_id)
            if agent_id in rows:
                seat = self.seats[agent_id] = Seat(rows[agent_id])
                seat.planned = planned
                for group in self._groups.values():
                    self._consider(seat, group)
                self._refresh(seat)

    def group_of(self, pool: Pool) -> Group:
        """The group that may serve a pool."""
        name = pool.strategy if pool.strategy in STRATEGIES else self.strategy
        key = (codec.encode(pool.requirements), name)
        group = self._groups.pop(key, None)
        if group is None:
            group = Group(self, pool.requirements, STRATEGIES[name](self.random))
            group.version = self._version
            for seat in self.seats.values():
                self._consider(seat, group)
                _refresh_in(seat, group)
            if len(self._groups) >= GROUPS_KEPT:
                self._drop(next(iter(self._groups)))
        self._groups[key] = group  # the latest used stands last
        return group

    def take(self, group: Group) -> FleetAgent | None:
        """The group's next agent, with one more task planned for it; None when nobody has room."""
        self.bring_up_to_date(group)
        agent_id = group.strategy.choose()
        if agent_id is None:
            return None
        seat = self.seats[agent_id]
        seat.planned += 1
        self._refresh(seat)
        # This group need not look for what has changed before the next is taken from it.
        _offer_in(seat.agent, group)
        group.version = self._version
        return seat.agent

    def answered(self, agent_id: str, count: int = 1) -> None:
        """So many planned tasks of the agent have been answered, whatever the answer; its true load is heard apart."""
        seat = self.seats.get(agent_id)
        if seat is not None and seat.planned:
            seat.planned = max(0, seat.planned - count)
            self._refresh(seat)

    def free(self, agent_id: str, count: int) -> None:
        """So many tasks of the agent end in a round trip that is about to be sent; negative: it is over."""
        seat = self.seats.get(agent_id)
        if seat is not None:
            seat.freed = max(0, seat.freed + count)
            self._refresh(seat)

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

    def unheard(self, groups: Iterable[Group], for_s: float, most: int) -> list[str]:
        """Agents of these groups whose load was last heard longer than ``for_s`` ago: the ``most`` longest unheard."""
        before = time.monotonic() - for_s
        heard_at = {agent_id: self.seats[agent_id].heard_at for group in groups for agent_id in group.eligible}
        found = [agent_id for agent_id, at in heard_at.items() if at < before]
        return found if len(found) <= most else heapq.nsmallest(most, found, key=heard_at.__getitem__)

    def _consider(self, seat: Seat, group: Group) -> None:
        if unmet(seat.agent, group.requirements, self.health_threshold) is None:
            group.eligible.add(seat.agent.agent_id)
            seat.groups.append(group)

    def bring_up_to_date(self, group: Group) -> None:
        """Tell the group's strategy what has changed since it was last looked at."""
        if group.version == self._version:
            return
        for agent_id in reversed(self._changed):
            if self._changed[agent_id] <= group.version:
                break
            if agent_id in group.eligible:
                _refresh_in(self.seats[agent_id], group)
        group.version = self._version

    def _refresh(self, seat: Seat) -> None:
        agent, changed = seat.agent, self._changed
        agent.load = max(0, seat.heard + seat.planned - seat.freed)
        self._version += 1
        changed.pop(agent.agent_id, None)
        changed[agent.agent_id] = self._version

    def _drop(self, key: tuple[bytes, str]) -> None:
        group = self._groups.pop(key)
        group.is_dropped = True
        for agent_id in group.eligible:
            self.seats[agent_id].groups.remove(group)

    def _drop_all(self) -> None:
        for group in self._groups.values():
            group.is_dropped = True
        self._groups.clear()


def _refresh_in(seat: Seat, group: Group) -> None:
    if seat.agent.agent_id in group.eligible:
        _offer_in(seat.agent, group)


def _offer_in(agent: FleetAgent, group: Group) -> None:
    if agent.active and agent.load < agent.capacity:
        group.strategy.offer(agent)
    else:
        group.strategy.withdraw(agent.agent_id)
