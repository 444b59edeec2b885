"""Outlier ejection: an agent that fails tasks of a type far more often than the others gets none of them for a while.

Rates are compared and not failures in a row: healthy agents fail five times in a row now and then, and when the tasks
themselves are bad, every agent fails them. An agent is compared with the mean of the others, each with one vote,
because an agent that fails at once makes most of the attempts.

Two rules are about the beginning, when one that fails at once has made all attempts and the healthy ones still work on
their first tasks:

* Votes that are missing count as an agent without failures. So an agent is ejected before the others have finished
  anything. If they then fail as well, the tasks are bad, and the ejection ends at once: until then at most a fifth of
  the agents was out for a few seconds.
* An agent that has failed every attempt need not make 20: 8 are beyond chance. An agent that comes back from an
  ejection is known, so 4 are enough.

At most a fifth of the eligible agents is out at a time, but of two or more agents one may always be. A fifth of fewer
than five agents is none: without this exception, ejection would be off in small fleets, where one bad agent does most
harm: it is always free, so it gets nearly all tasks, and they fail for good. With it, at least half of the agents still
work.

Nothing here reads a clock. The caller passes the time, in seconds of any clock that does not go back.
"""

from __future__ import annotations

from collections.abc import Collection
from math import inf

from msgspec import Struct

#: Attempts over which a failure rate is taken, and that it takes to eject an agent.
WINDOW = 20
#: Fewer attempts are enough if all have failed, and the chance that an agent within the margin does that is smaller …
CHANCE = 0.001
#: … or smaller than this after an ejection.
CHANCE_AGAIN = 0.05
#: A failure rate above this means that all attempts failed.
ALL = 1 - 1e-9
#: Attempts from which on an agent has a full vote in the mean of the others.
FULL_VOTE = 5
#: An agent is ejected if its failure rate is this much above the mean of the others …
MARGIN = 0.4
#: … and the ejection ends early when it is no longer this much above it.
MARGIN_LEFT = 0.2
#: Seconds of the first ejection; each further one takes twice as long, up to the maximum.
EJECTED_S = 30.0
EJECTED_MOST_S = 900.0
#: A recorded ejection that would last longer than this has ended early if its record is gone; seconds.
LEFT_S = 1.0
#: Maximum share of the eligible agents that is ejected at a time. Without a limit, bad tasks would eject all. Of two or
#: more agents one may always be ejected.
SHARE = 0.2
#: Maximum number of pairs of agent and task type; those without an attempt for the longest time are dropped.
MOST_CELLS = 100_000


class Ejection(Struct, frozen=True):
    """The ejection of an agent for a type of tasks, or its early end."""

    agent_id: str
    task_type: str
    for_s: float  #: seconds that are left; 0: it has ended
    failure_rate: float  #: of the agent
    others_rate: float  #: the mean of the others
    in_a_row: int  #: number of ejections in a row
    began: float = inf  #: when it was recorded, by the clock of the records; infinite: it is not recorded yet


class Attempts(Struct, gc=False):
    """The attempts of one agent at tasks of one type."""

    count: int = 0  #: since the last ejection
    rate: float = 0.0  #: of failures, over the last ``WINDOW`` attempts
    ejections: int = 0  #: in a row
    until: float = 0.0  #: when the current or last ejection ends
    ejected_rate: float = 0.0  #: of failures, when it was ejected
    began: float = inf  #: as in ``Ejection``

    def add(self, attempts: int, failures: int) -> None:
        """Add attempts that ended, in any order."""
        rate, filling = failures / attempts, min(attempts, max(0, WINDOW - self.count))
        if filling:
            self.rate += (rate - self.rate) * filling / (self.count + filling)
        self.rate += (rate - self.rate) * (1 - (1 - 1 / WINDOW) ** (attempts - filling))
        self.count += attempts


class TypeAttempts:
    """The attempts at tasks of one type, and the sum of the votes, so that the mean of the others costs O(1)."""

    __slots__ = ("agents", "out", "rates", "votes")

    def __init__(self) -> None:
        self.agents: dict[str, Attempts] = {}
        self.out: dict[str, None] = {}  #: ejected agents, the first ejected first
        self.votes = 0.0
        self.rates = 0.0  #: failure rates, each times its vote

    def sort_out(self) -> bool:
        """Put the ejected agents in the order in which their ejections were recorded; return True if it has changed.

        All distributors then agree on which of too many ejected agents are out. Those that are not recorded are last.
        """
        before = list(self.out)
        after = sorted(before, key=lambda agent_id: _recorded(agent_id, self.agents[agent_id]))
        self.out = dict.fromkeys(after)
        return after != before

    def count_vote(self, attempts: Attempts, sign: int) -> None:
        """Add the vote of an agent (1), or remove it (-1) before its attempts change."""
        vote = min(attempts.count, FULL_VOTE) / FULL_VOTE
        self.votes += sign * vote
        self.rates += sign * vote * attempts.rate

    @property
    def mean(self) -> float:
        """The mean failure rate; of the others, while the vote of an agent is removed."""
        return max(0.0, self.rates) / max(1.0, self.votes)


class Ejections:
    """Counts failures, and decides which agents are ejected.

    Args:
        most_cells: maximum number of pairs of agent and task type.
    """

    def __init__(self, most_cells: int = MOST_CELLS) -> None:
        self._most_cells = most_cells
        self._types: dict[str, TypeAttempts] = {}
        self._out: dict[str, None] = {}  # types with ejected agents
        self._order: dict[tuple[str, str], None] = {}  # pairs, the one with the latest attempt last

    def record(self, agent_id: str, task_type: str, attempts: int, failures: int, now: float) -> Ejection | None:
        """Count attempts that ended; return the ejection if they eject the agent.

        Args:
            agent_id: of the agent.
            task_type: of the task.
            attempts: number of attempts, 1 or more.
            failures: number of those that failed, for a reason that other agents could have avoided.
            now: the time, in seconds.
        """
        of_type = self._types.setdefault(task_type, TypeAttempts())
        known = self._attempts_of(agent_id, task_type, of_type)
        if known.until > now:
            return None  # they were placed before the ejection
        of_type.count_vote(known, -1)
        others = of_type.mean
        known.add(attempts, failures)
        if not _is_outlier(known, others):
            of_type.count_vote(known, 1)
            if known.ejections and known.count >= WINDOW and now - known.until >= _duration(known.ejections):
                known.ejections = 0  # it was good for as long as it was out
            return None
        in_a_row = known.ejections + 1
        ejection = Ejection(agent_id, task_type, _duration(in_a_row), known.rate, others, in_a_row)
        self._eject(known, ejection, now)
        return ejection

    def adopt(self, ejection: Ejection, now: float) -> bool:
        """Take over an ejection that another distributor has decided.

        If the agent is ejected already, the record decides how long that lasts.

        Returns:
            True if it was not known, or if the order of the ejections has changed.
        """
        of_type = self._types.setdefault(ejection.task_type, TypeAttempts())
        known = self._attempts_of(ejection.agent_id, ejection.task_type, of_type)
        if known.until > now:
            if ejection.began == inf:
                return False
            known.until, known.began = now + min(ejection.for_s, EJECTED_MOST_S), ejection.began
            return of_type.sort_out()
        of_type.count_vote(known, -1)
        self._eject(known, ejection, now)
        return True

    def review(self, now: float) -> tuple[set[str], list[Ejection]]:
        """End what is over; return the types concerned, and the ejections that ended early. Call it often.

        An ejection ends early when the others fail nearly as often: the tasks are bad, and not the agent.
        """
        types: set[str] = set()
        early: list[Ejection] = []
        for task_type in list(self._out):
            of_type = self._types[task_type]
            for agent_id in list(of_type.out):
                attempts, others = of_type.agents[agent_id], of_type.mean
                if attempts.until > now and attempts.ejected_rate >= others + MARGIN_LEFT:
                    continue
                if attempts.until > now:
                    attempts.until = now
                    attempts.ejections -= 1
                    early.append(Ejection(agent_id, task_type, 0.0, attempts.ejected_rate, others, attempts.ejections))
                self._readmit(agent_id, task_type)
                types.add(task_type)
        return types, early

    def release(self, agent_id: str, now: float) -> set[str]:
        """End the ejections of an agent that is a new process; return their types. It is on probation."""
        types = {task_type for task_type in self._out if agent_id in self._types[task_type].out}
        for task_type in types:
            self._types[task_type].agents[agent_id].until = now
            self._readmit(agent_id, task_type)
        return types

    def end_unrecorded(self, agent_id: str, recorded: Collection[str], now: float) -> set[str]:
        """End the ejections of an agent that another distributor has ended early; return their types.

        Args:
            agent_id: of the agent.
            recorded: types of the ejections in its record.
            now: the time.
        """
        ended: set[str] = set()
        for task_type in self._out.keys() - recorded:
            attempts = self._types[task_type].agents.get(agent_id)
            if attempts is not None and attempts.began < inf and attempts.until > now + LEFT_S:
                attempts.until = now
                attempts.ejections -= 1
                ended.add(task_type)
        for task_type in ended:
            self._readmit(agent_id, task_type)
        return ended

    def has_ejected(self, task_type: str) -> bool:
        """Return True if any agent is ejected for a type."""
        return task_type in self._out

    def ejected(self, task_type: str, eligible: Collection[str]) -> frozenset[str]:
        """Return which of the eligible agents get no task of this type, as of the last ``review``: at most a fifth.

        If more are ejected, those that were ejected first stay out.
        """
        if task_type not in self._out:
            return frozenset()
        found = [agent_id for agent_id in self._types[task_type].out if agent_id in eligible]
        return frozenset(found[: most_ejected(len(eligible))])

    def ends_at(self, agent_id: str, task_type: str) -> float | None:
        """Return when the ejection of an agent ends; None if it is not ejected, as of the last ``review``."""
        of_type = self._types.get(task_type)
        return of_type.agents[agent_id].until if of_type is not None and agent_id in of_type.out else None

    def forget(self, agent_id: str) -> set[str]:
        """Forget an agent that is gone; return the types for which it was ejected."""
        ejected = {task_type for task_type in self._out if agent_id in self._types[task_type].out}
        for task_type in [task_type for task_type, of_type in self._types.items() if agent_id in of_type.agents]:
            self._drop(agent_id, task_type)
        return ejected

    def __len__(self) -> int:
        """Return the number of pairs of agent and task type."""
        return len(self._order)

    def _eject(self, attempts: Attempts, ejection: Ejection, now: float) -> None:
        """Eject an agent whose vote is removed."""
        attempts.until = now + min(ejection.for_s, EJECTED_MOST_S)
        attempts.ejections, attempts.ejected_rate = ejection.in_a_row, ejection.failure_rate
        attempts.count, attempts.rate = 0, 0.0
        attempts.began = ejection.began
        self._types[ejection.task_type].out[ejection.agent_id] = None
        self._types[ejection.task_type].sort_out()
        self._out[ejection.task_type] = None

    def _readmit(self, agent_id: str, task_type: str) -> None:
        of_type = self._types[task_type]
        of_type.out.pop(agent_id, None)
        if not of_type.out:
            self._out.pop(task_type, None)

    def _attempts_of(self, agent_id: str, task_type: str, of_type: TypeAttempts) -> Attempts:
        attempts = of_type.agents.setdefault(agent_id, Attempts())
        self._order.pop((agent_id, task_type), None)
        self._order[agent_id, task_type] = None
        if len(self._order) > self._most_cells:
            self._drop(*next(iter(self._order)))
        return attempts

    def _drop(self, agent_id: str, task_type: str) -> None:
        del self._order[agent_id, task_type]
        self._readmit(agent_id, task_type)
        of_type = self._types[task_type]
        of_type.count_vote(of_type.agents.pop(agent_id), -1)
        if not of_type.agents:
            del self._types[task_type]


def _recorded(agent_id: str, attempts: Attempts) -> tuple[float, str]:
    """Return the place of an ejection; those that are recorded at once are in the order of the ids of their agents."""
    return attempts.began, "" if attempts.began == inf else agent_id


def most_ejected(eligible: int) -> int:
    """Return how many of so many eligible agents may be ejected: a fifth, but one of two or more."""
    return max(int(SHARE * eligible), 1 if eligible > 1 else 0)


def _is_outlier(attempts: Attempts, others: float) -> bool:
    if attempts.rate < others + MARGIN:
        return False
    if attempts.count >= WINDOW:
        return True
    chance = CHANCE_AGAIN if attempts.ejections else CHANCE
    return attempts.rate > ALL and chance ** (1 / attempts.count) >= others + MARGIN


def _duration(ejections: int) -> float:
    return min(EJECTED_S * 2.0 ** (ejections - 1), EJECTED_MOST_S)
