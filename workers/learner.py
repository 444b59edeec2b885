"""What a distributor learns from the reports that it settles, and shares with the other distributors.

Samples are gathered as they come and added to ``Learned`` a few times a second, so a task costs a few operations in
memory. Once a second all that is new goes to ``log:learned`` with one script; the other distributors merge it. A
distributor that starts reads the log from its beginning.

The distributor that settles a report may not be the one that placed the task, and only the latter knows agent, type and
load. So the ends of foreign leases are shared as well, at most ``MOST_ENDINGS`` a second: on a busier cell each
distributor still sees its share of the reports of its own tasks.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import asdict, replace

from coord import codec, logs
from coord.models.facts import TaskCompleted, TaskReleased
from coord.placement import Ejection
from coord.placement.learning import Change, Sums
from workers.planner import Assigned, Planner
from workers.refusals import CODE as PAYLOAD_INVALID
from workers.task_facts import Ending
from workers.view import View

log = logs.get_logger()

#: Pairs of agent and task type that are shared in one second: about 100 KiB.
MOST_CHANGES = 1_000
#: Ends of foreign leases that are shared in one second: about 15 KiB.
MOST_ENDINGS = 500
#: Samples after which they are added to what was learned at once, without waiting for the next tick.
MOST_SAMPLES = 2_000
#: What counts as the service time of a handler that took less than 1 ms, in seconds: reports are in whole ms.
LEAST_S = 0.0005

#: The end of a foreign lease: lease, and the seconds that the attempt took. None: not known; FAILED: it failed.
ForeignEnding = tuple[str, float | None]
FAILED = -1.0


class Lessons(Struct, frozen=True, array_like=True):
    """The data of one entry in ``log:learned``."""

    changes: tuple[Change, ...] = ()
    endings: tuple[ForeignEnding, ...] = ()


_decode = msgspec.json.Decoder(Lessons).decode


class Attempts:
    """The attempts of one agent at tasks of one type that ended since the last ``Learner.apply``."""

    __slots__ = ("failed", "samples", "untimed")

    def __init__(self) -> None:
        self.samples: list[tuple[float, float]] = []  #: service time in seconds, and load
        self.failed = 0
        self.untimed = 0


class Learner:
    """Feeds the view's ``Learned``, and exchanges it with other distributors. Times are seconds of a steady clock.

    Args:
        view: of the agents.
        planner: knows the leases that were created here.
    """

    def __init__(self, view: View, planner: Planner) -> None:
        self.view = view
        self.planner = planner
        self.id = os.urandom(8).hex()  #: of this process
        self._attempts: defaultdict[tuple[str, str], Attempts] = defaultdict(Attempts)
        self._count = 0
        self._foreign: list[ForeignEnding] = []
        self.ejections: list[Ejection] = []  #: decided here and not recorded yet

    def settled(self, endings: Sequence[Ending], assigned: Sequence[Assigned | None], now: float) -> None:
        """Take over the reports that a round trip has settled.

        Args:
            endings: the reports that end a lease.
            assigned: what the planner knows of each.
            now: the time.
        """
        attempts, has_failed = self._attempts, False
        for report, known in zip(endings, assigned, strict=True):
            if type(report) is TaskReleased:
                continue
            took = _seconds_of(report)
            if known is None:
                if len(self._foreign) < MOST_ENDINGS and not _is_about_version(report):
                    self._foreign.append((report.lease, took))
                continue
            agent_id, task_type, load, at = known
            of = attempts[agent_id, task_type]
            if took is None:
                of.samples.append((max(LEAST_S, now - at), load))
            elif took is not FAILED:
                of.samples.append((took, load))
            elif not _is_about_version(report):
                of.failed += 1
            self._count += 1
            has_failed = has_failed or took is FAILED
        # An agent that fails at once is found before it gets many more tasks.
        if has_failed or self._count > MOST_SAMPLES:
            self.apply(now)

    def timed_out(self, leases: Sequence[str], now: float) -> None:
        """Take over attempts that took longer than their timeout: they failed."""
        for lease, assigned in zip(leases, self.planner.end_leases(leases), strict=True):
            if assigned is not None:
                self._attempts[assigned[0], assigned[1]].failed += 1
                self._count += 1
            elif len(self._foreign) < MOST_ENDINGS:
                self._foreign.append((lease, FAILED))
        self.apply(now)

    def apply(self, now: float) -> None:
        """Add what was gathered to what is known."""
        if not self._count:
            return
        attempts, self._attempts, self._count = self._attempts, defaultdict(Attempts), 0
        agents = self.view.agents
        changes = [
            Change(agent_id, task_type, Sums.of(of.samples, of.failed, of.untimed))
            for (agent_id, task_type), of in attempts.items()
            if agent_id in agents
        ]
        self.view.learned.add(changes, now)
        self._judge(changes, now)

    def review(self, now: float) -> None:
        """Apply what was gathered, and end the ejections that are over. Call it a few times a second."""
        self.apply(now)
        types, early = self.view.ejections.review(now)
        self.ejections += early
        self.view.apply_ejections(types)

    def take(self, now: float) -> bytes | None:
        """Return the data of an entry with all that is new since the last call; None if nothing is."""
        self.apply(now)
        changes = self.view.learned.take_changes(MOST_CHANGES)
        endings, self._foreign = self._foreign, []
        if not changes and not endings:
            return None
        return codec.encode(Lessons(tuple(map(_rounded, changes)), tuple(endings)))

    def receive(self, by: str, data: bytes, now: float, *, is_old: bool = False) -> None:
        """Merge an entry of ``log:learned``.

        Args:
            by: the process that wrote it; what this process wrote is skipped.
            data: of the entry.
            now: the time at which it was written.
            is_old: it was written before this process read the log. The ejections that followed are recorded.
        """
        if by == self.id:
            return
        try:
            lessons = _decode(data)
        except codec.BAD_JSON as error:
            log.warning("learning.unreadable", by=by, error=str(error))
            return
        agents = self.view.agents
        changes = [change for change in lessons.changes if change.agent_id in agents]
        self.view.learned.merge(changes, now)
        self._judge(changes, now, is_old=is_old)
        self._end_own(lessons.endings)

    def _judge(self, changes: Iterable[Change], now: float, *, is_old: bool = False) -> None:
        """Count failures; eject the agents that fail far more often than the others."""
        ejected: list[Ejection] = []
        for agent_id, task_type, sums in ((change.agent_id, change.task_type, change.sums) for change in changes):
            if sums.attempts <= 0 or sums.tried <= 0:
                continue
            failures = round(sums.attempts * sums.failed / sums.tried)
            ejection = self.view.ejections.record(agent_id, task_type, sums.attempts, failures, now)
            if ejection is not None:
                ejected.append(ejection)
        if not is_old:
            self.ejections += ejected
        self.view.apply_ejections([ejection.task_type for ejection in ejected])

    def _end_own(self, endings: Iterable[ForeignEnding]) -> None:
        """Take over the ends of tasks that this distributor placed and others settled."""
        known = self.planner.end_leases(lease for lease, _ in endings)
        for (_, took), assigned in zip(endings, known, strict=True):
            if assigned is None:
                continue
            agent_id, task_type, load, _ = assigned
            of = self._attempts[agent_id, task_type]
            if took is None:
                of.untimed += 1
            elif took < 0:
                of.failed += 1
            else:
                of.samples.append((took, load))
            self._count += 1


def _seconds_of(report: Ending) -> float | None:
    """Return how long a successful attempt took; FAILED if it failed, None if its report does not say."""
    if type(report) is not TaskCompleted:
        return FAILED
    ago = report.started_ms_ago
    return None if ago is None else max(LEAST_S, ago / 1000)


def _is_about_version(report: Ending) -> bool:
    """Return True if an agent could not decode a payload: agents of other versions may, so it is not its fault."""
    return type(report) is not TaskCompleted and getattr(report, "code", "") == PAYLOAD_INVALID


def _rounded(change: Change) -> Change:
    """Return a change whose numbers have six digits: they are written as text."""
    numbers: dict[str, Any] = asdict(change.sums)
    short = {name: float(f"{value:.6g}") for name, value in numbers.items() if type(value) is float}
    return Change(change.agent_id, change.task_type, replace(change.sums, **short))
