"""Agents on a circle of hashes: each key has an owner, and few keys move when an agent comes or goes."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator
from functools import lru_cache
from hashlib import blake2b
from typing import Protocol

#: Points of the circle at which a key looks for the nearest agent; the more, the more even are the shares.
PROBES = 21
#: Maximum number of points of one agent; it has as many as its weight, rounded.
MOST_POINTS = 16

#: Points of withdrawn agents that are kept: this share of all points, and some more. Heavy agents have most points, and
#: are often full.
UNUSED, UNUSED_KEPT = 0.8, 8
#: Keys whose probes and nearest agents are remembered.
KEYS_KEPT = 4_096
#: Points of a sector above which there are twice as many sectors.
SECTOR_POINTS = 8

_BITS = 64
_CIRCLE = 1 << _BITS
_DIGEST_POINTS = 8  # of 8 bytes each in one digest of 64 bytes


class Agents(Protocol):
    """The agents that may own a key."""

    def __contains__(self, agent_id: str, /) -> bool:
        """Return True if an agent is one of them."""


class HashRing:
    """The points of agents on the circle.

    The circle is divided into equal sectors, so that a point is found or added quickly, however many agents there are.
    The points of an agent that is withdrawn stay for a while: most of them return soon.

    Source: B. Appleton and M. O'Reilly, Multi-Probe Consistent Hashing, 2015: one point for each agent and 21 probes
    for each key, so agents can come and go cheaply.
    """

    def __init__(self) -> None:
        self._sectors: list[list[int]] = [[]]  # the points of each, in order
        self._shift = _BITS  # point >> shift is the number of its sector
        self._owners: dict[int, str] = {}  # point -> agent
        self._points: dict[str, list[int]] = {}
        self._withdrawn: dict[str, None] = {}
        self._unused = 0  # points of withdrawn agents
        self._near: dict[str, list[str]] = {}  # key -> the agents nearest to it, also withdrawn ones, in order

    def __len__(self) -> int:
        """Return the number of points."""
        return len(self._owners)

    def points_of(self, agent_id: str) -> int:
        """Return the number of points of an agent."""
        return len(self._points.get(agent_id, ()))

    def add(self, agent_id: str, weight: float) -> None:
        """Give an agent its points; one that has returned has them already, unless its weight has changed."""
        count = max(1, min(MOST_POINTS, round(weight)))
        points = self._points.get(agent_id, ())
        if agent_id in self._withdrawn:
            del self._withdrawn[agent_id]
            self._unused -= len(points)
        if len(points) == count:
            return
        self._near.clear()
        for point in points:
            del self._owners[point]
            sector = self._sectors[point >> self._shift]
            del sector[bisect_left(sector, point)]
        self._points[agent_id] = [
            self._add_point(agent_id, point) for point in _hash_points(f"agent {agent_id}", count)
        ]

    def withdraw(self, agent_id: str) -> None:
        """Note that an agent may own no key for now."""
        self._withdrawn[agent_id] = None
        self._unused += len(self._points[agent_id])
        if self._unused > UNUSED * len(self._owners) + UNUSED_KEPT:
            self._drop_unused()

    def owner(self, key: str, agents: Agents) -> str:
        """Return the owner of a key: the agent whose point follows most closely on one of the key's probes.

        Args:
            key: of the tasks.
            agents: those that may own it; at least one of them is on the ring.
        """
        for agent_id in self._near.get(key, ()):
            if agent_id in agents:
                return agent_id
        near = self._find_near(key, agents)
        if len(self._near) >= KEYS_KEPT:
            del self._near[next(iter(self._near))]
        self._near[key] = near
        return next(agent_id for agent_id in near if agent_id in agents)

    def _find_near(self, key: str, agents: Agents) -> list[str]:
        """Return the agents up to the owner of a key, the nearest first: those before the owner may not own it now."""
        owners, nearest = self._owners, _CIRCLE
        passed: list[tuple[int, str]] = []
        for probe in _probes_of(key):
            for point in self._points_from(probe):
                distance = (point - probe) % _CIRCLE
                if distance >= nearest:
                    break
                agent_id = owners[point]
                passed.append((distance, agent_id))
                if agent_id in agents:
                    nearest = distance
        passed.sort()
        return list(dict.fromkeys(agent_id for distance, agent_id in passed if distance <= nearest))

    def _points_from(self, probe: int) -> Iterator[int]:
        """Return the points that follow on a probe, all around the circle."""
        sectors, first = self._sectors, probe >> self._shift
        start = bisect_left(sectors[first], probe)
        yield from sectors[first][start:]
        for number in range(first + 1, first + len(sectors)):
            yield from sectors[number % len(sectors)]
        yield from sectors[first][:start]

    def _drop_unused(self) -> None:
        for agent_id in self._withdrawn:
            for point in self._points.pop(agent_id):
                del self._owners[point]
        self._withdrawn.clear()
        self._unused = 0
        self._near.clear()
        self._divide(len(self._owners))

    def _add_point(self, agent_id: str, point: int) -> int:
        """Add a point, or the next one if it has an owner; return the point that was added."""
        while point in self._owners:
            point = (point + 1) % _CIRCLE
        self._owners[point] = agent_id
        if len(self._owners) > SECTOR_POINTS * len(self._sectors):
            self._divide(len(self._owners))
        else:
            insort(self._sectors[point >> self._shift], point)
        return point

    def _divide(self, count: int) -> None:
        """Divide the circle into sectors for this number of points."""
        bits = max(0, (count // SECTOR_POINTS)).bit_length()
        self._shift = _BITS - bits
        self._sectors = [[] for _ in range(1 << bits)]
        for point in sorted(self._owners):
            self._sectors[point >> self._shift].append(point)


@lru_cache(maxsize=KEYS_KEPT)
def _probes_of(key: str) -> tuple[int, ...]:
    return tuple(_hash_points(key, PROBES))


def _hash_points(text: str, count: int) -> list[int]:
    """Return ``count`` points of the circle that depend on the text alone."""
    data = text.encode("utf-8", "surrogatepass")
    points: list[int] = []
    for number in range(-(-count // _DIGEST_POINTS)):
        digest = blake2b(data, salt=number.to_bytes(16, "big")).digest()
        points += [int.from_bytes(digest[at : at + 8], "big") for at in range(0, 64, 8)]
    return points[:count]
