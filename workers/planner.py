"""Which waiting task goes to whom next: the table of waiting pools, and a plan on the view of the fleet.

A plan may be wrong, since others plan as well; the dispatch script decides, and its answer mends the table and the
view. Pools are served in the order of their first task's score, a few at a time, so that none is passed over.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable

from coord import codec
from coord.models.tasks import Pool
from coord.queries import WaitingPool
from coord.transitions import Placement, TaskBatch
from workers.view import Group, View

#: Tasks of a pool that are planned before the next pool has its turn.
TURN = 16
#: Pool definitions remembered at most, so that a pool that comes and goes need not be read again.
DEFINITIONS_KEPT = 10_000
#: Leases remembered at most: another distributor may be told of the end of any.
LEASES_KEPT = 50_000


class Waiting:
    """A pool in which tasks wait, as last heard, less what is planned and not answered."""

    __slots__ = ("definition", "group", "head", "length", "planned")

    def __init__(self, definition: Pool, length: int, head: float) -> None:
        self.definition = definition
        self.length = length
        self.head = head
        self.planned = 0
        self.group: Group | None = None  #: the view's, as long as the view keeps it

    @property
    def left(self) -> int:
        """Tasks that are not planned yet."""
        return self.length - self.planned


class Planner:
    """Plans on a view, and keeps the table of waiting pools."""

    def __init__(self, view: View) -> None:
        self.view = view
        self.waiting: dict[str, Waiting] = {}
        self.definitions: dict[str, Pool] = {}
        #: The table's revision that is known here; when it rises by others' doing, the table is read again.
        self.pools_rev = -1
        self.is_stale = True
        #: Agents that dispatch raised an error for; they are suspended until their rows are read again.
        self.broken: set[str] = set()
        self._leases: dict[str, str] = {}  # lease -> agent, of those given from here whose end has not been seen
        self._explanations: dict[tuple[str, int], bytes] = {}

    def forget(self) -> None:
        """Nothing of the table is known any more."""
        self.waiting.clear()
        self.is_stale = True
        self.pools_rev = -1

    def define(self, pool: str, definition: Pool) -> None:
        """Remember what a pool stands for."""
        self.definitions.pop(pool, None)
        if len(self.definitions) >= DEFINITIONS_KEPT:
            del self.definitions[next(iter(self.definitions))]
        self.definitions[pool] = definition

    def expect(self, pool: str, count: int, head: float) -> None:
        """``count`` tasks of the pool are about to be admitted, in the same round trip as the plan."""
        known = self.waiting.get(pool)
        if known is None:
            known = self.waiting[pool] = Waiting(self.definitions[pool], 0, head)
        known.length += count
        known.head = min(known.head, head)

    def replace(self, rev: int, pools: Iterable[WaitingPool]) -> None:
        """Take over the table as it was read."""
        before = self.waiting
        self.waiting = {}
        for one in pools:
            self.define(one.pool, one.definition)
            waiting = self.waiting[one.pool] = Waiting(one.definition, one.length, one.head)
            if one.pool in before:
                waiting.planned = before[one.pool].planned
        # What was heard while the table was being read may be newer than it.
        self.is_stale = rev < self.pools_rev
        self.pools_rev = rev

    def hear(self, batch: TaskBatch) -> None:
        """Take over what a script answered of pools and loads."""
        if batch.pools_rev != self.pools_rev + batch.raised:
            self.is_stale = True
        self.pools_rev = batch.pools_rev
        for pool, (length, head) in batch.pools.items():
            known = self.waiting.get(pool)
            if length == 0:
                if known is not None:
                    if known.planned:
                        known.length = 0
                    else:
                        del self.waiting[pool]
            elif known is not None:
                known.length, known.head = length, head
            elif pool in self.definitions:
                self.waiting[pool] = Waiting(self.definitions[pool], length, head)
            else:
                self.is_stale = True
        self.view.hear(batch.loads)

    def plan(self, most: int) -> list[Placement]:
        """At most ``most`` assignments; counted as planned until ``answered``."""
        order = sorted(
            (waiting.head, pool, waiting, self._group_of(waiting))
            for pool, waiting in self.waiting.items()
            if waiting.left > 0
        ) if self.waiting else []  # fmt: skip
        placed: list[tuple[str, str, int, bytes]] = []
        while order and len(placed) < most:
            still = []
            for turn in order:
                _, pool, waiting, group = turn
                why = self._explain(group)
                for _ in range(min(TURN, waiting.left, most - len(placed))):
                    agent = self.view.take(group)
                    if agent is None:
                        break
                    waiting.planned += 1
                    placed.append((pool, agent.agent_id, agent.rev, why))
                else:
                    if waiting.left > 0:
                        still.append(turn)
            order = still
        leases = os.urandom(8 * len(placed)).hex()
        return [
            Placement(pool, agent_id, rev, leases[i * 16 : i * 16 + 16], why)
            for i, (pool, agent_id, rev, why) in enumerate(placed)
        ]

    def answered(self, placements: list[Placement], batch: TaskBatch) -> set[str]:
        """Take over what dispatch answered; the agents that are not as the view had them."""
        changed: set[str] = set()
        self.unanswered(placements)
        for placement, word in zip(placements, batch.words, strict=True):
            if word == "ASSIGNED":
                self._leases[placement.lease] = placement.agent_id
                continue
            if word.startswith("ERROR"):
                self.view.suspend(placement.agent_id)
                self.broken.add(placement.agent_id)
            elif word in {"CHANGED", "INACTIVE"}:
                self.view.suspend(placement.agent_id)
                changed.add(placement.agent_id)
        while len(self._leases) > LEASES_KEPT:
            del self._leases[next(iter(self._leases))]
        self.hear(batch)
        for pool in {placement.pool for placement in placements}:
            waiting = self.waiting.get(pool)
            if waiting is not None and waiting.length == 0 and not waiting.planned:
                del self.waiting[pool]
        return changed

    def expect_room(self, leases: Iterable[str]) -> Counter[str]:
        """These leases are about to end, in the same round trip as the plan; the slots of each agent.

        Known are those that were given from here and have not ended.
        """
        room = Counter([agent_id for lease in leases if (agent_id := self._leases.pop(lease, None)) is not None])
        for agent_id, count in room.items():
            self.view.free(agent_id, count)
        return room

    def room_answered(self, room: Counter[str]) -> None:
        """The round trip is over; what came of it is heard as true loads."""
        for agent_id, count in room.items():
            self.view.free(agent_id, -count)

    def unanswered(self, placements: list[Placement]) -> None:
        """These are planned no longer: answered now, or never, because their round trip failed."""
        for pool, count in Counter([placement.pool for placement in placements]).items():
            waiting = self.waiting.get(pool)
            if waiting is not None:
                waiting.planned = max(0, waiting.planned - count)
        for agent_id, count in Counter([placement.agent_id for placement in placements]).items():
            self.view.answered(agent_id, count)

    def is_ready(self) -> bool:
        """Whether a plan would place anything."""
        return any(waiting.left > 0 and self._group_of(waiting).has_room for waiting in self.waiting.values())

    def starved_groups(self) -> list[Group]:
        """The groups of pools that wait although nobody in the view has room."""
        groups = (self._group_of(waiting) for waiting in self.waiting.values() if waiting.left > 0)
        return [group for group in groups if not group.has_room]

    def _group_of(self, waiting: Waiting) -> Group:
        group = waiting.group
        if group is None or group.is_dropped:
            group = waiting.group = self.view.group_of(waiting.definition)
        return group

    def _explain(self, group: Group) -> bytes:
        key = (group.strategy.name, len(group.eligible))
        explained = self._explanations.get(key)
        if explained is None:
            if len(self._explanations) > 1000:
                self._explanations.clear()
            explained = codec.encode({"strategy": key[0], "eligible": key[1]})
            self._explanations[key] = explained
        return explained


def by_agents(placements: list[Placement], most: int) -> list[list[Placement]]:
    """In pieces of like size, at most ``most``, those of an agent together: what it gets at once wakes it once."""
    if len(placements) <= most:
        return [placements] if placements else []
    share = len(placements) / -(-len(placements) // most)
    of_agent: dict[str, list[Placement]] = {}
    for placement in placements:
        of_agent.setdefault(placement.agent_id, []).append(placement)
    pieces: list[list[Placement]] = [[]]
    for all_of_it in of_agent.values():
        for at in range(0, len(all_of_it), most):
            some, before = all_of_it[at : at + most], len(pieces[-1])
            if before and (before + len(some) > most or before + len(some) / 2 > share):
                pieces.append([])
            pieces[-1] += some
    return pieces
