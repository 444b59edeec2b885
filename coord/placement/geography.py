"""Strategies that look at the places of tasks and agents."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import asin, cos, pi, sin, sqrt
from typing import ClassVar

from coord.models.agents import FleetAgent, Location
from coord.placement.strategy import NEAR, SampledStrategy, TaskContext

#: Mean diameter of the earth, in km.
DIAMETER_KM = 2 * 6371.0088
#: A degree in radians.
RADIAN = pi / 180
#: Distances below this count as equal, in km.
NEARBY_KM = 10.0
#: What counts as the distance, in km, if coordinates are missing: in the same zone, in the same region, elsewhere.
ZONE_KM = NEARBY_KM
REGION_KM = 500.0
ELSEWHERE_KM = 10_000.0
#: The distance of an agent whose place is unknown: farther than any other.
UNKNOWN_KM = 25_000.0


class Geographic(SampledStrategy):
    """Chooses the nearest agent by great-circle distance; without coordinates by zone, then by region.

    Distances within 10 % count as equal, and so do those under 10 km; then the load decides. If the task has no place,
    or no agent has one, the load decides alone, and ``fallback`` says so. The distance is the haversine formula
    (R. W. Sinnott, Virtues of the Haversine, 1984).
    """

    name = "geographic"
    near: ClassVar[float] = NEAR

    def score(self, agent: FleetAgent, task: TaskContext) -> float:
        return self.scores((agent,), task)[0]

    def scores(self, agents: Sequence[FleetAgent], task: TaskContext) -> list[float]:
        if task.location is None:
            return [UNKNOWN_KM] * len(agents)
        return [max(NEARBY_KM, km) for km in distances_km(task.location, [agent.location for agent in agents])]

    def terms(self, agent: FleetAgent, task: TaskContext) -> dict[str, float]:
        return {"distance_km": self.score(agent, task), **super().terms(agent, task)}

    def choose(self, task: TaskContext) -> str | None:
        self.fallback = "the task has no location" if task.location is None else None
        return super().choose(task)

    def pick(self, agents: Sequence[FleetAgent], task: TaskContext) -> FleetAgent:
        if task.location is None:
            return self.least_loaded(agents)
        if all(agent.location is None for agent in agents):
            self.fallback = "no agent has a location"
        return super().pick(agents, task)


def distances_km(one: Location, others: Iterable[Location | None]) -> list[float]:
    """Return the distances of a place from others, in km; an assumed one if either has no coordinates."""
    if one.lat is None or one.lon is None:
        return [_assumed_km(one, other) for other in others]
    lat, lon = one.lat * RADIAN, one.lon * RADIAN
    cos_lat = cos(lat)
    found: list[float] = []
    for other in others:
        if other is None or other.lat is None or other.lon is None:
            found.append(_assumed_km(one, other))
            continue
        other_lat = other.lat * RADIAN
        half_chord = (
            sin((other_lat - lat) / 2) ** 2 + cos_lat * cos(other_lat) * sin((other.lon * RADIAN - lon) / 2) ** 2
        )
        found.append(DIAMETER_KM * (asin(sqrt(half_chord)) if half_chord < 1 else pi / 2))
    return found


def _assumed_km(one: Location, other: Location | None) -> float:
    """Return what counts as the distance of places of which one has no coordinates, in km."""
    if other is None:
        return UNKNOWN_KM
    if one.zone is not None and one.zone == other.zone and one.region == other.region:
        return ZONE_KM
    if one.region is not None and one.region == other.region:
        return REGION_KM
    return ELSEWHERE_KM if _is_known(one) and _is_known(other) else UNKNOWN_KM


def _is_known(place: Location) -> bool:
    return place.zone is not None or place.region is not None or (place.lat is not None and place.lon is not None)
