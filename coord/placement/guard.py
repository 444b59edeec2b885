"""A guard around a user's strategy, so that a defect in it cannot break a hard requirement or stop a distributor."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import ClassVar

from coord.models.agents import FleetAgent
from coord.models.explanations import Candidate
from coord.placement.learning import Learned
from coord.placement.load import LeastConnections
from coord.placement.strategy import Strategy, TaskContext


class GuardedStrategy(Strategy):
    """Uses a user's strategy until it raises an exception or chooses an agent that may not be chosen.

    From then on least_connections chooses, and ``fallback`` says why. A strategy that returns None although an agent
    has room is wrong too: the task would wait.
    """

    inner: ClassVar[type[Strategy]]
    report: ClassVar[Callable[[str, str], None]]

    @classmethod
    def around(cls, inner: type[Strategy], report: Callable[[str, str], None]) -> type[GuardedStrategy]:
        """Return the guarded class of a user's strategy; ``report`` is called with its name and what is wrong."""
        fields = {"inner": inner, "report": staticmethod(report), "name": inner.name, "__doc__": inner.__doc__}
        return type(f"Guarded{inner.__name__}", (cls,), fields)

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._agents: dict[str, FleetAgent] = {}
        self._instead: LeastConnections | None = None
        self._inner: Strategy | None = None
        try:
            self._inner = self.inner(random, self.learned)
        except Exception as error:  # noqa: BLE001 -- the code is a user's
            self._fail(error)

    def offer(self, agent: FleetAgent) -> None:
        self._agents[agent.agent_id] = agent
        if self._inner is None:
            self._spare().offer(agent)
            return
        try:
            self._inner.offer(agent)
        except Exception as error:  # noqa: BLE001 -- the code is a user's
            self._fail(error)

    def withdraw(self, agent_id: str) -> None:
        self._agents.pop(agent_id, None)
        if self._inner is None:
            self._spare().withdraw(agent_id)
            return
        try:
            self._inner.withdraw(agent_id)
        except Exception as error:  # noqa: BLE001 -- the code is a user's
            self._fail(error)

    @property
    def has_room(self) -> bool:
        return bool(self._agents)

    def choose(self, task: TaskContext) -> str | None:
        if self._inner is not None:
            try:
                agent_id = self._inner.choose(task)
                if agent_id in self._agents or (agent_id is None and not self._agents):
                    self.fallback = self._inner.fallback
                    return agent_id
                raise ValueError(f"chose {agent_id!r}, which is none of the {len(self._agents)} agents with room")  # noqa: TRY301
            except Exception as error:  # noqa: BLE001 -- the code is a user's
                self._fail(error)
        return self._spare().choose(task)

    def candidates(self, task: TaskContext, most: int, row_of: Callable[[str], FleetAgent]) -> list[Candidate]:
        if self._inner is None:
            return self._spare().candidates(task, most, row_of)
        try:
            found: object = self._inner.candidates(task, most, row_of)
        except Exception:  # noqa: BLE001 -- the code is a user's; the choice is made, and only its scores are missing
            return []
        return found if isinstance(found, list) and all(isinstance(one, Candidate) for one in found) else []

    def _spare(self) -> LeastConnections:
        if self._instead is None:
            self._instead = LeastConnections(self.random, self.learned)
            for agent in self._agents.values():
                self._instead.offer(agent)
        return self._instead

    def _fail(self, error: Exception) -> None:
        self._inner = None
        self.fallback = "the strategy failed"
        type(self).report(self.name, f"{type(error).__name__}: {error}")
