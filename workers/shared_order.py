"""One order of the agents for all groups that use the same rule, so that each change of an agent is taken over once.

An agent may be in many groups. If each of them kept an order of its own, each would take over every change of a load.
Here the agents are divided into *parts*: an agent's part are the agents that are in the same groups. A group is the
union of its parts, and a choice compares the first agents of these. Equals take turns across the parts, because all
entries are numbered by one counter. If rare skills come first, the agents of a part also have the same capabilities, so
their demand is determined once for the part.

This is used only where it saves something: by groups with many agents that consist of few parts. Any other group has a
strategy of its own, as all groups have whose strategy keeps more than an order of rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from heapq import merge
from itertools import count, groupby, islice
from operator import attrgetter
from random import Random

from msgspec.structs import replace

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.placement import Learned, OrderedStrategy, Rules, Strategy, TaskContext
from coord.placement.capabilities import CapabilityBased, Cost, cost_of, demand_terms
from coord.placement.consistent_hash import (
    NO_KEY,
    OWNER_IS_FULL,
    ConsistentHash,
    Counted,
    HashedAgents,
    candidates_of,
    most_tasks,
)
from coord.placement.hash_ring import HashRing
from coord.placement.load import LeastConnections
from coord.placement.resources import ResourceBased
from workers.agent_state import AgentState
from workers.candidates import Candidates
from workers.changes import Changes, Follower

#: Strategies in which the place of an agent depends on its row alone.
SHARED: Collection[type[Strategy]] = (LeastConnections, ResourceBased)
#: Agents from which on a group uses a shared order: fewer are offered again quickly.
LEAST_AGENTS = 64
#: Groups that use one order. One more has its own, unless one of them was not used for so long (``Candidates.idle``).
MOST_GROUPS, IDLE = 64, 60
#: Parts of a group at which a group that begins is still admitted, and above which all groups begin again.
PARTS_AT_FIRST, MOST_PARTS = 16, 32
#: Groups that have left, after which parts are merged that differ only in these.
MOST_LEFT = 16

#: The strategy that orders the agents, and True if those come first whose other capabilities are least in demand.
Kind = tuple[type[OrderedStrategy], bool]

#: Capabilities that an agent is not ordered by.
_NO_PROFILE: frozenset[str] = frozenset()
_NO_COST: Cost = (0, 0)


def kind_of(rules: Rules, strategies: Mapping[str, type[Strategy]]) -> Kind | None:
    """Return the order that groups with these rules may share; None if each has a strategy of its own."""
    cls = strategies[rules.strategy]
    if cls is CapabilityBased:
        return LeastConnections, True
    if cls is ConsistentHash and not rules.rare_skills_first:
        return HashedAgents, False
    if cls not in SHARED or not issubclass(cls, OrderedStrategy):
        return None
    return cls, rules.rare_skills_first


class Part:
    """The agents that are in the same groups."""

    __slots__ = ("cost", "count", "groups", "order", "profile")

    def __init__(self, groups: int, profile: frozenset[str], cost: Cost, order: OrderedStrategy) -> None:
        self.groups = groups  #: the bits of the groups
        self.profile = profile  #: the capabilities of its agents, if rare skills come first
        self.cost = cost  #: how much these are in demand
        self.order = order  #: holds the agents that have room
        self.count = 0  #: agents, with and without room


class SharedOrder:
    """The order of the agents of several groups.

    Args:
        kind: what it orders by.
        random: the source of randomness of strategies.
        learned: the demand for capabilities.
        changes: the changes of loads and rows.
    """

    def __init__(self, kind: Kind, random: Random, learned: Learned, changes: Changes) -> None:
        self._cls, self.has_profiles = kind
        self.ring = HashRing()  #: of the agents, if keys have owners
        self.counted: Counted = {}  #: those of them that have room, in the same case
        self.random = random
        self.learned = learned
        self.follower = Follower(changes)
        self._groups: dict[int, Candidates] = {}  # bit -> group
        self._unions: dict[int, Union] = {}  # bit -> its strategy
        self._parts: dict[tuple[int, frozenset[str]], Part] = {}
        self._part_of: dict[str, Part] = {}  # agent -> its part
        self._unplaced: dict[str, None] = {}  # agents that have joined or left a group
        self._next_bit = 1
        self._left = 0  # groups that have left; their bits are still in parts
        self._is_overfull = False
        self._alone: dict[Candidates, None] = {}  # groups that have a strategy of their own while none shares agents
        self._numbers: Iterator[int] = count()
        self._version = learned.demand.version  # that costs were determined with

    def admit(self, group: Candidates, agents: Mapping[str, AgentState]) -> Strategy | None:
        """Return the strategy of a group that begins to use the order; None if it had better have its own.

        Args:
            group: the group.
            agents: id -> agent, of the view.
        """
        inside = self._room_for(group, agents)
        if inside is None:
            return None
        bit, self._next_bit = self._next_bit, self._next_bit << 1
        union = self._unions[bit] = HashUnion(self, group) if self._cls is HashedAgents else Union(self)
        self._groups[bit] = group
        group.order, group.bit = self, bit
        self._divide(group, inside)
        for agent_id in sorted(group.eligible - self._part_of.keys() - self._unplaced.keys()):
            self._place(agents[agent_id], bit)
        return union

    def dismiss(self, group: Candidates) -> None:
        """End the use of the order by a group."""
        del self._groups[group.bit], self._unions[group.bit]
        group.order, group.bit = None, 0
        self._left += 1
        if not self._groups:
            self._parts.clear()
            self._part_of.clear()
            self._unplaced.clear()
            self.ring = HashRing()
            self.counted.clear()
            self._next_bit, self._left, self._is_overfull = 1, 0, False
        elif self._left > MOST_LEFT:
            self._merge()

    def unplace(self, agent_id: str) -> None:
        """Take out an agent that joins or leaves a group; it is put into its part when a group is used."""
        part = self._part_of.pop(agent_id, None)
        if part is not None:
            part.order.withdraw(agent_id)
            part.count -= 1
            if not part.count:
                self._remove(part)
        self._unplaced[agent_id] = None
        self.follower.changes.touch()

    def bring_up_to_date(self, agents: Mapping[str, AgentState]) -> None:
        """Take over what has changed since the order was last used.

        Args:
            agents: id -> agent, of the view.
        """
        for agent_id in sorted(self._unplaced):
            state = agents.get(agent_id)
            if state is not None:
                self._place(state, self._groups_of(state))
        self._unplaced.clear()
        part_of, follower = self._part_of, self.follower
        for agent_id in follower.changes.since(follower.version, part_of):
            state, order = agents[agent_id], part_of[agent_id].order
            if state.has_room:
                order.offer(state.agent)
            else:
                order.withdraw(agent_id)
        follower.catch_up()
        if self._is_overfull:
            for group in list(self._groups.values()):
                group.forget()

    def part_of(self, agent_id: str) -> Part | None:
        """Return the part of an agent; None if it is in no group."""
        return self._part_of.get(agent_id)

    def compare_costs(self) -> None:
        """Put the parts of each group in the order of the demand for their capabilities, if that has changed."""
        if self._version != self.learned.demand.version:
            self._version = self.learned.demand.version
            for part in self._parts.values():
                part.cost = self._cost_of(part.profile)
            for union in self._unions.values():
                union.parts.sort(key=attrgetter("cost"))

    def _room_for(self, group: Candidates, agents: Mapping[str, AgentState]) -> Counter[Part] | None:
        """Return how many agents of each part are in a group that may be admitted; None if it may not be."""
        self._alone = {one: None for one in self._alone if one.created is not None}
        others = [one for one in self._alone if not one.eligible.isdisjoint(group.eligible)]
        if not self._groups and not others:
            self._alone[group] = None
            return None
        for other in others:
            del self._alone[other]
            other.forget()  # it is admitted when it is used next
        if len(self._groups) >= MOST_GROUPS:
            idle = next((one for one in self._groups.values() if not one.users and one.idle >= IDLE), None)
            if idle is None:
                return None
            idle.forget()
        if not self._groups:
            self.follower.catch_up()
        inside = self._inside(group)
        if self._left and not self._has_few_parts(group, inside, agents):
            self._merge()
            inside = self._inside(group)
        return inside if self._has_few_parts(group, inside, agents) else None

    def _inside(self, group: Candidates) -> Counter[Part]:
        return Counter([self._part_of[agent_id] for agent_id in group.eligible & self._part_of.keys()])

    def _divide(self, group: Candidates, inside: Mapping[Part, int]) -> None:
        """Divide the parts of which only some agents are in a group; the entries keep their order."""
        new: dict[Part, Part] = {}
        for part, members in inside.items():
            if members == part.count:
                self._remove(part)
                part.groups |= group.bit
                self._add(part)
                continue
            entries = list(part.order.in_order())
            new[part] = self._begin(part.groups | group.bit, part.profile)
            new[part].order.fill(entry for entry in entries if entry[2] in group.eligible)
            part.order.fill(entry for entry in entries if entry[2] not in group.eligible)
            new[part].count, part.count = members, part.count - members
        for agent_id in group.eligible & self._part_of.keys():
            part = self._part_of[agent_id]
            self._part_of[agent_id] = new.get(part, part)

    def _has_few_parts(self, group: Candidates, inside: Mapping[Part, int], agents: Mapping[str, AgentState]) -> bool:
        """Return True if neither the group nor any other would have too many parts."""
        new = {self._profile_of(agents[one].agent) for one in group.eligible if one not in self._part_of}
        if len(inside) + len(new) > PARTS_AT_FIRST:
            return False
        split = [part.groups for part, members in inside.items() if members < part.count]
        return all(
            len(union.parts) + sum(1 for groups in split if groups & bit) <= PARTS_AT_FIRST
            for bit, union in self._unions.items()
        )

    def _groups_of(self, state: AgentState) -> int:
        agent_id = state.agent.agent_id
        return sum(group.bit for group in state.groups if group.order is self and agent_id in group.eligible)

    def _place(self, state: AgentState, groups: int) -> None:
        if groups:
            part = self._enter(state.agent.agent_id, groups, self._profile_of(state.agent))
            if state.has_room:
                part.order.offer(state.agent)

    def _enter(self, agent_id: str, groups: int, profile: frozenset[str]) -> Part:
        """Add an agent to a part, which is created if there is none; return the part."""
        part = self._parts.get((groups, profile)) or self._begin(groups, profile)
        self._part_of[agent_id] = part
        part.count += 1
        return part

    def _begin(self, groups: int, profile: frozenset[str]) -> Part:
        part = Part(groups, profile, self._cost_of(profile), self._new_order())
        part.order.number_by(self._numbers)
        self._add(part)
        return part

    def _new_order(self) -> OrderedStrategy:
        if self._cls is HashedAgents:
            return HashedAgents(self.random, self.learned, self.ring, self.counted)
        return self._cls(self.random, self.learned)

    def _add(self, part: Part) -> None:
        self._parts[part.groups, part.profile] = part
        for bit, union in self._unions.items():
            if part.groups & bit:
                union.parts.append(part)
                if self.has_profiles:
                    union.parts.sort(key=attrgetter("cost"))
                self._is_overfull = self._is_overfull or len(union.parts) > MOST_PARTS

    def _remove(self, part: Part) -> None:
        del self._parts[part.groups, part.profile]
        for bit, union in self._unions.items():
            if part.groups & bit:
                union.parts.remove(part)

    def _merge(self) -> None:
        """Merge the parts that differ only in groups that have left."""
        live = sum(self._groups)
        alike: dict[tuple[int, frozenset[str]], list[Part]] = {}
        for part in list(self._parts.values()):
            self._remove(part)
            alike.setdefault((part.groups & live, part.profile), []).append(part)
        merged: dict[Part, Part] = {}
        for (groups, profile), parts in alike.items():
            if groups:
                into = self._begin(groups, profile)
                into.order.fill(merge(*(part.order.in_order() for part in parts)))
                into.count = sum(part.count for part in parts)
                merged |= dict.fromkeys(parts, into)
            else:
                for part in parts:
                    for entry in list(part.order.in_order()):
                        part.order.withdraw(entry[2])
        self._part_of = {agent_id: merged[part] for agent_id, part in self._part_of.items() if part in merged}
        self._left = 0
        if self._next_bit > 1 << (4 * MOST_GROUPS):
            self._number_groups()

    def _number_groups(self) -> None:
        """Give the groups the lowest bits, so that the numbers stay small."""
        bits = {bit: 1 << number for number, bit in enumerate(self._groups)}
        for bit, group in self._groups.items():
            group.bit = bits[bit]
        self._groups = {bits[bit]: group for bit, group in self._groups.items()}
        self._unions = {bits[bit]: union for bit, union in self._unions.items()}
        self._next_bit = 1 << len(bits)
        for part in self._parts.values():
            part.groups = sum(after for bit, after in bits.items() if part.groups & bit)
        self._parts = {(part.groups, part.profile): part for part in self._parts.values()}

    def _profile_of(self, agent: FleetAgent) -> frozenset[str]:
        return agent.capabilities if self.has_profiles else _NO_PROFILE

    def _cost_of(self, profile: frozenset[str]) -> Cost:
        return cost_of(self.learned.demand, profile) if self.has_profiles else _NO_COST


class Union(Strategy):
    """The strategy of a group that uses a shared order: the first agent of its parts is chosen.

    Args:
        order: the order.
    """

    name = "union"

    def __init__(self, order: SharedOrder) -> None:
        super().__init__(order.random, order.learned)
        self.parts: list[Part] = []  #: those with the lowest cost first
        self._order = order

    def offer(self, agent: FleetAgent) -> None:
        """Update an agent that has room, for all groups."""
        part = self._order.part_of(agent.agent_id)
        if part is not None:
            part.order.offer(agent)

    def withdraw(self, agent_id: str) -> None:
        """Remove an agent that has no room, for all groups; ``SharedOrder.unplace`` is for one that leaves a group."""
        part = self._order.part_of(agent_id)
        if part is not None:
            part.order.withdraw(agent_id)

    @property
    def has_room(self) -> bool:
        """True if an agent of any part has room."""
        return any(part.order.has_room for part in self.parts)

    def choose(self, task: TaskContext) -> str | None:
        """Return the first agent of the parts with the lowest cost that have one."""
        if self._order.has_profiles:
            self._order.compare_costs()
        found = best = None
        for part in self.parts:
            if found is not None and part.cost != found.cost:
                break
            entry = part.order.first()
            if entry is not None and (best is None or entry < best):
                found, best = part, entry
        if found is None or best is None:
            return None
        if task.avoid and best[2] in task.avoid:
            found, best = self._first_without(task.avoid) or (found, best)
        found.order.took_turn(best[2])
        return best[2]

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        """Return the first agents of the parts that the last choice has compared."""
        found: list[Candidate] = []
        for cost, level in groupby(self.parts, key=attrgetter("cost")):
            parts = list(level)
            entries = islice(merge(*(part.order.in_order() for part in parts)), most - len(found))
            terms = parts[0].order.terms
            some = [Candidate(agent_id, key, terms(row_of(agent_id))) for key, _, agent_id in entries]
            if self._order.has_profiles:
                some = [replace(one, terms=demand_terms(cost) | one.terms) for one in some]
            found += some
            if len(found) >= most or any(one.agent_id not in task.avoid for one in some):
                break  # the parts after these were not asked
        return found

    def _first_without(self, avoid: frozenset[str]) -> tuple[Part, tuple[float, int, str]] | None:
        """Return the first agent that is not to be avoided, and its part."""
        for _, level in groupby(self.parts, key=attrgetter("cost")):
            firsts = [(entry, part) for part in level if (entry := part.order.first_without(avoid)) is not None]
            if firsts:
                entry, part = min(firsts, key=lambda pair: pair[0])
                return part, entry
        return None


class HashUnion(Union):
    """The strategy of a group that sends tasks with a key to its owner, as ``ConsistentHash`` does.

    All groups of the order use one ring. An agent on it may own a key for a group only if it has room and is in one of
    the group's parts.

    Args:
        order: the order.
        group: the group.
    """

    name = "hash_union"

    def __init__(self, order: SharedOrder, group: Candidates) -> None:
        super().__init__(order)
        self._group = group

    def __contains__(self, agent_id: str, /) -> bool:
        """Return True if an agent is in the group and has room."""
        if agent_id not in self._order.counted:
            return False
        part = self._order.part_of(agent_id)
        return part is not None and bool(part.groups & self._group.bit)

    def choose(self, task: TaskContext) -> str | None:
        """Return the owner of the task's key; the first agent of all parts if it has none or too many tasks."""
        self.fallback = None
        if task.affinity_key is None:
            self.fallback = NO_KEY
        elif (sums := self._sums())[1]:  # an agent has room
            owner = self._order.ring.owner(task.affinity_key, self)
            load, weight = self._order.counted[owner]
            if owner not in task.avoid and load < most_tasks(weight, *sums):
                return owner
            self.fallback = OWNER_IS_FULL
        return super().choose(task)

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        """Return the owner of the task's key, and the first agents of the parts."""
        key = task.affinity_key
        owner = self._order.ring.owner(key, self) if key is not None and self.has_room else None
        return candidates_of(owner, super().candidates(task, most, row_of), row_of, self._sums())[:most]

    def _sums(self) -> tuple[int, float]:
        """Return the tasks and the weight of all agents with room."""
        tasks, weight = 0, 0.0
        for part in self.parts:
            if isinstance(part.order, HashedAgents):
                tasks += part.order.sums.tasks
                weight += part.order.sums.weight
        return tasks, weight
