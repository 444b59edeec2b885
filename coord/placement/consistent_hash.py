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

#: Points of withdrawn agents that are kept: this share of all points, and some more. Heavy agents have most points, and
#: are often full.
UNUSED, UNUSED_KEPT = 0.8, 8
#: Keys whose probes and nearest agents are remembered.
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
        self._changed: dict[str, FleetAgent | None] = {}  # what ``_least_loaded`` takes over when it is used
        # The points of all agents, in order; also of some that are withdrawn: most of them return soon.
        self._ring: list[int] = []
        self._owner: dict[int, str] = {}  # point -> agent
        self._points: dict[str, list[int]] = {}
        self._unused = 0  # points of withdrawn agents
        self._near: dict[str, list[str]] = {}  # key -> the agents nearest to it, also withdrawn ones, in order
        self._loads: dict[str, int] = {}  # agent -> tasks in flight
        self._weights: dict[str, float] = {}
        self._tasks = 0
        self._weight = 0.0

    def offer(self, agent: FleetAgent) -> None:
        agent_id, load = agent.agent_id, agent.load
        before, weight = self._loads.get(agent_id), agent.weight or LEAST_WEIGHT
        if before is None or self._weights[agent_id] != weight:
            self.withdraw(agent_id)
            self._use_points(agent_id, max(1, min(MOST_POINTS, round(weight))))
            self._weights[agent_id] = weight
            self._weight += weight
            before = 0
        self._loads[agent_id] = load
        self._tasks += load - before
        self._changed[agent_id] = agent

    def withdraw(self, agent_id: str) -> None:
        before = self._loads.pop(agent_id, None)
        if before is None:
            return
        self._changed[agent_id] = None
        self._tasks -= before
        self._weight -= self._weights.pop(agent_id)
        self._unused += len(self._points[agent_id])
        if self._unused > UNUSED * len(self._ring) + UNUSED_KEPT:
            self._drop_unused()
        if not self._loads:
            self._weight = 0.0  # without what rounding left

    @property
    def has_room(self) -> bool:
        return bool(self._loads)

    def choose(self, task: TaskContext) -> str | None:
        self.fallback = None
        if task.affinity_key is None:
            self.fallback = "the task has no affinity key"
        elif self._loads:
            owner = self.owner(task.affinity_key)
            if owner not in task.avoid and self._loads[owner] < self._limit(owner):
                return owner
            self.fallback = "the owner of the key has too many tasks"
        return self._by_load().choose(task)

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        key = task.affinity_key
        owner = self.owner(key) if key is not None and self._loads else None
        others = [one.agent_id for one in self._by_load().candidates(task, most, row_of) if one.agent_id != owner]
        found: list[Candidate] = []
        for agent_id in ([] if owner is None else [owner]) + others:
            row = row_of(agent_id)
            terms = {"owns_key": agent_id == owner, "most_tasks": self._limit(agent_id), **load_terms(row)}
            found.append(Candidate(agent_id, relative_load(row), terms))
        return found[:most]

    def _limit(self, agent_id: str) -> int:
        """Return the number of tasks from which on an agent gets none for its keys."""
        return ceil(BOUND * (self._tasks + 1) * self._weights[agent_id] / self._weight)

    def owner(self, key: str) -> str:
        """Return the agent that owns a key: the one whose point follows most closely on one of the key's probes."""
        loads = self._loads
        for agent_id in self._near.get(key, ()):
            if agent_id in loads:
                return agent_id
        near = self._find_near(key)
        if len(self._near) >= KEYS_KEPT:
            del self._near[next(iter(self._near))]
        self._near[key] = near
        return next(agent_id for agent_id in near if agent_id in loads)

    def _find_near(self, key: str) -> list[str]:
        """Return the agents up to the owner of a key, the nearest first: those before the owner have no room now."""
        ring, owners, loads, nearest = self._ring, self._owner, self._loads, _RING
        count = len(ring)
        passed: list[tuple[int, str]] = []
        for probe in _probes_of(key):
            at = bisect_left(ring, probe) % count
            while (distance := (ring[at] - probe) % _RING) < nearest:
                agent_id = owners[ring[at]]
                passed.append((distance, agent_id))
                if agent_id in loads:
                    nearest = distance
                at = (at + 1) % count
        passed.sort()
        return list(dict.fromkeys(agent_id for distance, agent_id in passed if distance <= nearest))

    def _by_load(self) -> LeastConnections:
        """Return the agents ordered by their load."""
        for agent_id, agent in self._changed.items():
            if agent is None:
                self._least_loaded.withdraw(agent_id)
            else:
                self._least_loaded.offer(agent)
        self._changed.clear()
        return self._least_loaded

    def _use_points(self, agent_id: str, count: int) -> None:
        """Give an agent its points; one that has returned has them already, unless its weight has changed."""
        points = self._points.pop(agent_id, [])
        self._unused -= len(points)
        if len(points) == count:
            self._points[agent_id] = points
            return
        self._near.clear()
        for point in points:
            del self._owner[point]
            del self._ring[bisect_left(self._ring, point)]
        self._add(agent_id, count)

    def _drop_unused(self) -> None:
        for agent_id in [agent_id for agent_id in self._points if agent_id not in self._loads]:
            for point in self._points.pop(agent_id):
                del self._owner[point]
        self._ring = sorted(self._owner)
        self._near.clear()
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
