"""What a task queue does: no one chooses, the slot that has been free for the longest time takes the next task."""

from __future__ import annotations

from collections import deque
from random import Random

from coord.models.agents import FleetAgent
from coord.placement import Learned, Strategy, TaskContext


class Pull(Strategy):
    """Each free slot waits in one line; the first one takes the task."""

    name = "pull"

    def __init__(self, random: Random, learned: Learned | None = None) -> None:
        super().__init__(random, learned)
        self._line: deque[tuple[str, int]] = deque()  # agent, and its generation when the slot became free
        self._slots: dict[str, int] = {}  # agent -> its slots in the line
        self._generation: dict[str, int] = {}

    def offer(self, agent: FleetAgent) -> None:
        agent_id, free = agent.agent_id, agent.capacity - agent.load
        generation = self._generation.setdefault(agent_id, 0)
        have = self._slots.get(agent_id, 0)
        self._line.extend([(agent_id, generation)] * (free - have))
        self._slots[agent_id] = max(have, free)

    def withdraw(self, agent_id: str) -> None:
        if self._slots.pop(agent_id, 0):
            self._generation[agent_id] += 1  # what stands in the line is outdated

    @property
    def has_room(self) -> bool:
        return any(self._slots.values())

    def choose(self, task: TaskContext) -> str | None:
        while self._line:
            agent_id, generation = self._line.popleft()
            if self._generation[agent_id] == generation and self._slots.get(agent_id):
                self._slots[agent_id] -= 1
                return agent_id
        return None
