"""The groups that sleep: the planner skips them until one of their agents has room again."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from workers.agent_state import AgentState
from workers.candidates import Candidates

#: Members of full groups that are searched at once for agents with an old load.
MEMBERS_SEARCHED = 50_000


class SleepingGroups:
    """The groups without room, and what may wake them.

    A group sleeps because no agent is in it, or because those in it are full. So it wakes when an agent joins it, and
    when one of its agents has got room.
    """

    def __init__(self) -> None:
        self.full: dict[Candidates, None] = {}  #: those that have agents
        self._joined: dict[Candidates, None] = {}  # those that an agent has joined since ``woken``
        self._opened: dict[str, None] = {}  # agents that have got room since then

    def forget_agents(self) -> None:
        """Forget all agents; the groups stay asleep."""
        self.full.clear()
        self._opened.clear()

    def add(self, group: Candidates) -> None:
        """Put a group to sleep."""
        group.is_asleep = True
        if group.eligible:
            self.full[group] = None

    def wake(self, group: Candidates) -> None:
        """Wake a group."""
        group.is_asleep = False
        self.full.pop(group, None)

    def joined(self, group: Candidates) -> None:
        """Note that an agent has joined a group."""
        if group.is_asleep:
            self._joined[group] = None

    def emptied(self, group: Candidates) -> None:
        """Note that the last agent has left a group."""
        self.full.pop(group, None)

    def opened(self, agent_id: str) -> None:
        """Note that an agent has got room."""
        if self.full:
            self._opened[agent_id] = None

    def woken(self, agents: Mapping[str, AgentState]) -> list[Candidates]:
        """Wake the groups that may have room now, and return them.

        Args:
            agents: id -> agent, of the view.
        """
        if not self._joined and not self._opened:
            return []
        found = [group for group in self._joined if group.is_asleep]
        for group in found:
            self.wake(group)
        for agent_id in self._opened:
            if not self.full:
                break
            state = agents.get(agent_id)
            if state is None or not state.has_room:
                continue
            groups = state.groups if len(state.groups) < len(self.full) else list(self.full)
            for group in groups:
                if group.is_asleep and agent_id in group.eligible:
                    self.wake(group)
                    found.append(group)
        self._joined.clear()
        self._opened.clear()
        return found

    def some_full(self, most: int) -> list[Candidates]:
        """Return at most ``most`` of the groups that have agents; the next call returns others."""
        found: list[Candidates] = []
        members = 0
        for group in islice(self.full, most):
            if found and members + len(group.eligible) > MEMBERS_SEARCHED:
                break
            members += len(group.eligible)
            found.append(group)
        if len(found) < len(self.full):
            for group in found:
                del self.full[group]
                self.full[group] = None
        return found
