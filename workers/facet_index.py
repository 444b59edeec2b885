"""Agents by their facets, and the groups that an agent may join because of its facets.

Each group is listed under one facet that it requires, the one that the fewest agents have: only an agent with that
facet can join the group. So a change of an agent concerns only the groups that are listed under its facets.
"""

from __future__ import annotations

from collections.abc import Mapping

from workers.agent_state import AgentState
from workers.candidates import ANY_AGENT, Candidates


class FacetIndex:
    """The facets of the agents of a view, and its groups."""

    def __init__(self) -> None:
        self.groups: dict[str, dict[Candidates, None]] = {}  #: facet -> the groups that are listed under it
        self._agents: dict[str, dict[str, AgentState]] = {}  # facet -> the agents that have it

    def forget_agents(self) -> None:
        """Forget all agents; the groups stay."""
        self._agents.clear()

    def add(self, state: AgentState) -> None:
        """Add an agent."""
        for facet in state.facets:
            self._agents.setdefault(facet, {})[state.agent.agent_id] = state

    def remove(self, state: AgentState) -> None:
        """Remove an agent."""
        for facet in state.facets:
            having = self._agents[facet]
            del having[state.agent.agent_id]
            if not having:
                del self._agents[facet]

    def frequency(self, facet: str) -> int:
        """Return how many agents have a facet."""
        return len(self._agents.get(facet, ()))

    def groups_of(self, state: AgentState) -> list[Candidates]:
        """Return the groups that an agent may join."""
        return [group for facet in (ANY_AGENT, *state.facets) for group in self.groups.get(facet, ())]

    def list_group(self, group: Candidates, agents: Mapping[str, AgentState]) -> Mapping[str, AgentState]:
        """List a new group; return the agents that may join it.

        Args:
            group: the group.
            agents: all agents.
        """
        self._list_under(group, min(group.needs, key=self.frequency, default=ANY_AGENT))
        return agents if group.watched == ANY_AGENT else self._agents.get(group.watched, {})

    def list_under_rarer(self, group: Candidates, state: AgentState) -> None:
        """List a group under a facet that this agent lacks, if fewer agents have it: similar agents then are free."""
        rarest = min((facet for facet in group.needs if facet not in state.facets), key=self.frequency)
        if self.frequency(rarest) < self.frequency(group.watched):
            self.unlist(group)
            self._list_under(group, rarest)

    def unlist(self, group: Candidates) -> None:
        """Remove a group."""
        listed = self.groups[group.watched]
        del listed[group]
        if not listed:
            del self.groups[group.watched]

    def _list_under(self, group: Candidates, facet: str) -> None:
        group.watched = facet
        self.groups.setdefault(facet, {})[group] = None
