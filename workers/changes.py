"""Which agents of a view have changed, so that a group takes over each change once, when it is used."""

from __future__ import annotations

from collections.abc import Collection


class Changes:
    """The agents in the order of their last change, with a version that rises with each change."""

    __slots__ = ("_latest", "version")

    def __init__(self) -> None:
        self.version = 0
        self._latest: dict[str, int] = {}  # agent -> version of its last change, the latest change last

    def add(self, agent_id: str) -> None:
        """Note that an agent has changed."""
        self.version += 1
        self._latest.pop(agent_id, None)
        self._latest[agent_id] = self.version

    def touch(self) -> None:
        """Raise the version without a change of an agent, so that all who follow look again."""
        self.version += 1

    def remove(self, agent_id: str) -> None:
        """Forget an agent that is gone."""
        self._latest.pop(agent_id, None)

    def clear(self) -> None:
        """Forget all agents; the version stays."""
        self._latest.clear()

    def since(self, version: int, members: Collection[str]) -> list[str]:
        """Return those of the members that have changed since a version, the latest change first.

        It looks at the members or at the changes, whichever are fewer.
        """
        latest = self._latest
        if len(members) < self.version - version:
            changed = [(at, agent_id) for agent_id in members if (at := latest.get(agent_id, 0)) > version]
            changed.sort(reverse=True)  # the order of a set differs from process to process
            return [agent_id for _, agent_id in changed]
        found: list[str] = []
        for agent_id, at in reversed(latest.items()):
            if at <= version:
                break
            if agent_id in members:
                found.append(agent_id)
        return found


class Follower:
    """Up to which change something was brought up to date.

    Args:
        changes: that it follows.
    """

    __slots__ = ("changes", "version")

    def __init__(self, changes: Changes) -> None:
        self.changes = changes
        self.version = changes.version

    def catch_up(self) -> None:
        """Note that all changes were taken over."""
        self.version = self.changes.version
