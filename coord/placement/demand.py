"""Demand: how much each capability is in demand, so that agents with rare skills can be kept free for them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from msgspec import Struct

#: Seconds after which a task counts half.
HALF_LIFE_S = 60.0
#: Demand below which a capability counts as not in demand.
FORGOTTEN = 0.01


class DemandState(Struct, frozen=True, array_like=True):
    """All that a ``Demand`` holds."""

    version: int
    tasks: dict[str, float]
    added: dict[str, float]
    pressure: dict[str, float]
    at: float | None


class Demand:
    """Counts the tasks that require each capability, with decay."""

    def __init__(self) -> None:
        self.version = 0  #: rises when the pressure changes; indexes that were made before are outdated
        self._tasks: dict[str, float] = {}
        self._added: dict[str, float] = {}
        self._pressure: dict[str, float] = {}
        self._at: float | None = None
        #: Called by ``update`` with the tasks added since the last one, and its arguments.
        self.observer: Callable[[Mapping[str, float], Mapping[str, int], float], None] | None = None

    def add(self, capabilities: Iterable[str], tasks: float = 1) -> None:
        """Count tasks that require these capabilities; the next ``update`` takes them into account."""
        for capability in capabilities:
            self._added[capability] = self._added.get(capability, 0.0) + tasks

    def update(self, agents: Mapping[str, int], now: float) -> None:
        """Determine the pressure again. Call it about once a second.

        Args:
            agents: capability -> number of agents that have it; those that are missing have one.
            now: the time, in seconds.
        """
        if self.observer is not None:
            self.observer(self._added.copy(), agents, now)
        fade = 1.0 if self._at is None else 0.5 ** (max(0.0, now - self._at) / HALF_LIFE_S)
        self._at = now
        for capability in self._added:  # in its order, which is the same in every process
            self._tasks.setdefault(capability, 0.0)
        tasks = {name: count * fade + self._added.get(name, 0.0) for name, count in self._tasks.items()}
        self._added.clear()
        self._tasks = {name: count for name, count in tasks.items() if count > FORGOTTEN}
        pressure = {name: count / max(1, agents.get(name, 1)) for name, count in self._tasks.items()}
        total = sum(pressure.values())
        shares = {name: round(value / total, 2) for name, value in pressure.items()}
        if shares != self._pressure:
            self._pressure = shares
            self.version += 1

    @property
    def state(self) -> DemandState:
        """All that it holds."""
        return DemandState(self.version, self._tasks, self._added, self._pressure, self._at)

    @classmethod
    def of(cls, state: DemandState) -> Demand:
        """Return a demand with this state, which must not be used afterwards."""
        demand = cls()
        demand.version, demand._at = state.version, state.at
        demand._tasks, demand._added, demand._pressure = state.tasks, state.added, state.pressure
        return demand

    @property
    def capabilities(self) -> Iterable[str]:
        """The capabilities that are in demand."""
        return self._tasks.keys() | self._added.keys()

    def pressure(self, capabilities: Iterable[str]) -> float:
        """Return how much these capabilities are in demand: each the tasks for one agent, as a share of all."""
        of = self._pressure
        return sum([of[name] for name in capabilities if name in of])
