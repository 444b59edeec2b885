"""Outlier ejection: an agent that fails tasks of a type far more often than the others gets none of them for a while.

Rates are compared and not failures in a row: healthy agents fail five times in a row now and then, and when the tasks
themselves are bad, every agent fails them. An agent is compared with the mean of the others, each with one vote,
because an agent that fails at once makes most of the attempts.

Nothing here reads a clock. The caller passes the time, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Collection

from msgspec import Struct

#: Attempts over which a failure rate is taken, and that it takes to eject an agent.
WINDOW = 20
#: Attempts from which on an agent has a full vote in the mean of the others. The others need one full vote together.
FULL_VOTE = 5
ENOUGH_VOTES = 1 - 1e-9  # less what rounding takes
#: An agent is ejected if its failure rate is this much above the mean of the others.
MARGIN = 0.4
#: Seconds of the first ejection; each further one takes twice as long, up to the maximum.
EJECTED_S = 30.0
EJECTED_MOST_S = 900.0
#: Maximum share of the eligible agents that is ejected at a time. Without a limit, bad tasks would eject all. Of two or
#: more agents one may always be ejected.
SHARE = 0.2
#: Maximum number of pairs of agent and task type; those without an attempt for the longest time are dropped.
MOST_CELLS = 100_000


class Attempts(Struct, gc=False):
    """The attempts of one agent at tasks of one type."""

    count: int = 0  #: since the last ejection
    rate: float = 0.0  #: of failures, over the last ``WINDOW`` attempts
    ejections: int = 0  #: in a row
    until: float = 0.0  #: when the current or last ejection ends


class TypeAttempts:
    """The attempts at tasks of one type, and the sum of the votes, so that the mean of the others costs O(1)."""

    __slots__ = ("agents", "out", "rates", "votes")

    def __init__(self) -> None:
        self.agents: dict[str, Attempts] = {}
        self.out: dict[str, None] = {}  #: ejected agents, the first ejected first
        self.votes = 0.0
        self.rates = 0.0  #: failure rates, each times its vote

    def count_vote(self, attempts: Attempts, sign: int) -> None:
        """Add the vote of an agent (1), or remove it (-1) before its attempts change."""
        vote = min(attempts.count, FULL_VOTE) / FULL_VOTE
        self.votes += sign * vote
        self.rates += sign * vote * attempts.rate


class Ejections:
    """Counts failures, and decides which agents are ejected.

    Args:
        most_cells: maximum number of pairs of agent and task type.
    """

    def __init__(self, most_cells: int = MOST_CELLS) -> None:
        self._most_cells = most_cells
        self._types: dict[str, TypeAttempts] = {}
        self._order: dict[tuple[str, str], None] = {}  # pairs, the one with the latest attempt last

    def record(self, agent_id: str, task_type: str, *, failed: bool, now: float) -> bool:
        """Count an attempt; return True if it ejects the agent.

        Args:
            agent_id: of the agent.
            task_type: of the task.
            failed: True if the attempt failed, for a reason that other agents could have avoided.
            now: the time, in seconds.
        """
        of_type = self._types.setdefault(task_type, TypeAttempts())
        attempts = self._attempts_of(agent_id, task_type, of_type)
        if attempts.until > now:
            return False  # it was placed before the ejection
        of_type.count_vote(attempts, -1)
        votes, rates = of_type.votes, of_type.rates  # of the others
        attempts.count += 1
        attempts.rate += (failed - attempts.rate) / min(attempts.count, WINDOW)
        of_type.count_vote(attempts, 1)
        if attempts.count < WINDOW:
            return False
        if votes < ENOUGH_VOTES or attempts.rate < rates / votes + MARGIN:
            if attempts.ejections and now - attempts.until >= _duration(attempts.ejections):
                attempts.ejections = 0  # it was good for as long as it was out
            return False
        attempts.ejections += 1
        attempts.until = now + _duration(attempts.ejections)
        of_type.count_vote(attempts, -1)
        attempts.count, attempts.rate = 0, 0.0
        of_type.out.pop(agent_id, None)
        of_type.out[agent_id] = None
        return True

    def ejected(self, task_type: str, eligible: Collection[str], now: float) -> frozenset[str]:
        """Return which of the eligible agents get no task of this type now, at most a fifth of them.

        If more are ejected, those that were ejected first stay out.
        """
        of_type = self._types.get(task_type)
        if of_type is None or not of_type.out:
            return frozenset()
        for agent_id in [agent_id for agent_id in of_type.out if of_type.agents[agent_id].until <= now]:
            del of_type.out[agent_id]
        most = max(int(SHARE * len(eligible)), 1 if len(eligible) > 1 else 0)
        found = [agent_id for agent_id in of_type.out if agent_id in eligible]
        return frozenset(found[:most])

    def ends_at(self, agent_id: str, task_type: str) -> float | None:
        """Return when the ejection of an agent ends; None if it is not ejected, as of the last call of ``ejected``."""
        of_type = self._types.get(task_type)
        return of_type.agents[agent_id].until if of_type is not None and agent_id in of_type.out else None

    def forget(self, agent_id: str) -> None:
        """Forget an agent that is gone."""
        for task_type in [task_type for task_type, of_type in self._types.items() if agent_id in of_type.agents]:
            self._drop(agent_id, task_type)

    def __len__(self) -> int:
        """Return the number of pairs of agent and task type."""
        return len(self._order)

    def _attempts_of(self, agent_id: str, task_type: str, of_type: TypeAttempts) -> Attempts:
        attempts = of_type.agents.setdefault(agent_id, Attempts())
        self._order.pop((agent_id, task_type), None)
        self._order[agent_id, task_type] = None
        if len(self._order) > self._most_cells:
            self._drop(*next(iter(self._order)))
        return attempts

    def _drop(self, agent_id: str, task_type: str) -> None:
        del self._order[agent_id, task_type]
        of_type = self._types[task_type]
        of_type.out.pop(agent_id, None)
        of_type.count_vote(of_type.agents.pop(agent_id), -1)
        if not of_type.agents:
            del self._types[task_type]


def _duration(ejections: int) -> float:
    return min(EJECTED_S * 2.0 ** (ejections - 1), EJECTED_MOST_S)
