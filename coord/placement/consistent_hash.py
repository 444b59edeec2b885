"""A strategy that sends tasks with the same key to the same agent."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable
from functools import lru_cache
from hashlib import blake2b
from math import ceil
from random import Random

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.placement.learning import Learned
from coord.placement.load import LeastConnections
from coord.placement.strategy import LEAST_WEIGHT, Strategy, TaskContext, load_terms, relative_load

#: An agent may have this many times its share of all tasks.
BOUND = 1.25
#: Points on the ring at which a key looks for the nearest agent; the more, the more even are the shares.
PROBES = 21
#: Maximum number of points of one agent; it has as many as its weight, rounded.
MOST_POINTS = 16

#: Points of withdrawn agents that are kept in addition to half of all points.
UNUSED_KEPT = 8
#: Keys whose probes are remembered: hashing them takes longer than the search on the ring.
KEYS_KEPT = 4_096

_RING = 1 << 64
_DIGEST_POINTS = 8  # of 8 bytes each in one digest of 64 bytes


class ConsistentHash(Strategy):
    """Chooses the owner of the task's ``affinity_key``; the least loaded agent if the owner has too many tasks.

    An owner has too many if the task would raise its load above 1.25 times its share of all tasks, by weight, rounded
    up. When an agent comes or goes, only the keys that it owns move. A task without a key goes to the least loaded
    agent, and ``fallback`` says so.

    Sources: V. Mirrokni, M. Thorup and M. Zadimoghaddam, Consistent Hashing with Bounded Loads, SODA 2018; for the
    lookup, B. Appleton and M. O'Reilly, Multi-Probe Consistent Hashing, 2015: one point on the ring for each agent and
    21 probes for each key, so agents can come and go cheaply.
    """

    name = "consistent_hash"

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._least_loaded = LeastConnections(random, self.learned)
        # The points of all agents, in order; also of some that are withdrawn: most of them return soon.
        self._ring: list[int] = []
        self._owner: dict[int, str] = {}  # point -> agent
        self._points: dict[str, list[int]] = {}
        self._unused = 0  # points of withdrawn agents
        self._load: dict[str, tuple[int, float]] = {}  # agent -> tasks in flight, weight
        self._tasks = 0
        self._weight = 0.0

    def offer(self, agent: FleetAgent) -> None:
        agent_id, weight = agent.agent_id, agent.weight or LEAST_WEIGHT
        before = self._load.get(agent_id)
        if before is None or before[1] != weight:
            self.withdraw(agent_id)
            self._use_points(agent_id, max(1, min(MOST_POINTS, round(weight))))
            self._weight += weight
        else:
            self._tasks -= before[0]
        self._load[agent_id] = (agent.load, weight)
        self._tasks += agent.load
        self._least_loaded.offer(agent)

    def withdraw(self, agent_id: str) -> None:
        before = self._load.pop(agent_id, None)
        if before is None:
            return
        self._least_loaded.withdraw(agent_id)
        self._tasks -= before[0]
        self._weight -= before[1]
        self._unused += len(self._points[agent_id])
        if self._unused > len(self._ring) / 2 + UNUSED_KEPT:
            self._drop_unused()
        if not self._load:
            self._weight = 0.0  # without what rounding left

    @property
    def has_room(self) -> bool:
        return bool(self._load)

    def choose(self, task: TaskContext) -> str | None:
        self.fallback = None
        if task.affinity_key is None:
            self.fallback = "the task has no affinity key"
        elif self._load:
            owner = self.owner(task.affinity_key)
            if owner not in task.avoid and self._load[owner][0] < self._limit(owner):
                return owner
            self.fallback = "the owner of the key has too many tasks"
        return self._least_loaded.choose(task)

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        key = task.affinity_key
        owner = self.owner(key) if key is not None and self._load else None
        others = [one.agent_id for one in self._least_loaded.candidates(task, most, row_of) if one.agent_id != owner]
        found: list[Candidate] = []
        for agent_id in ([] if owner is None else [owner]) + others:
            row = row_of(agent_id)
            terms = {"owns_key": agent_id == owner, "most_tasks": self._limit(agent_id), **load_terms(row)}
            found.append(Candidate(agent_id, relative_load(row), terms))
        return found[:most]

    def _limit(self, agent_id: str) -> int:
        """Return the number of tasks from which on an agent gets none for its keys."""
        return ceil(BOUND * (self._tasks + 1) * self._load[agent_id][1] / self._weight)

    def owner(self, key: str) -> str:
        """Return the agent that owns a key: the one whose point follows most closely on one of the key's probes."""
        ring, owners, load, nearest, found = self._ring, self._owner, self._load, _RING, ""
        count = len(ring)
        for probe in _probes_of(key):
            at = bisect_left(ring, probe) % count
            if (ring[at] - probe) % _RING >= nearest:
                continue
            while (owner := owners[ring[at]]) not in load:
                at = (at + 1) % count
            distance = (ring[at] - probe) % _RING
            if distance < nearest:
                nearest, found = distance, owner
        return found

    def _use_points(self, agent_id: str, count: int) -> None:
        """Give an agent its points; one that has returned has them already, unless its weight has changed."""
        points = self._points.pop(agent_id, [])
        self._unused -= len(points)
        if len(points) == count:
            self._points[agent_id] = points
            return
        for point in points:
            del self._owner[point]
            del self._ring[bisect_left(self._ring, point)]
        self._add(agent_id, count)

    def _drop_unused(self) -> None:
        for agent_id in [agent_id for agent_id in self._points if agent_id not in self._load]:
            for point in self._points.pop(agent_id):
                del self._owner[point]
        self._ring = sorted(self._owner)
        self._unused = 0

    def _add(self, agent_id: str, count: int) -> None:
        points: list[int] = []
        for point in _hash_points(f"agent {agent_id}", count):
            free = point
            while free in self._owner:
                free = (free + 1) % _RING
            self._owner[free] = agent_id
            insort(self._ring, free)
            points.append(free)
        self._points[agent_id] = points


@lru_cache(maxsize=KEYS_KEPT)
def _probes_of(key: str) -> tuple[int, ...]:
    return tuple(_hash_points(key, PROBES))


def _hash_points(text: str, count: int) -> list[int]:
    """Return ``count`` points on the ring that depend on the text alone."""
    data = text.encode("utf-8", "surrogatepass")
    points: list[int] = []
    for number in range(-(-count // _DIGEST_POINTS)):
        digest = blake2b(data, salt=number.to_bytes(16, "big")).digest()
        points += [int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8)]
    return points[:count]
