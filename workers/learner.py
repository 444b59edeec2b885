"""What a distributor learns from the reports that it settles, and shares with the other distributors.

Samples are gathered as they come and added to ``Learned`` a few times a second, so a task costs a few operations in
memory; every ``UNREAD_S`` seconds if no strategy reads what was learned. Once a second what is new goes to
``log:learned`` with one script; the other distributors merge it. A distributor that starts reads the log from its
beginning.

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
from workers.refusals import UNDECODABLE
from workers.task_facts import Ending
from workers.view import View

log = logs.get_logger()

#: Pairs of agent and task type that are shared in one second: about 100 KiB. Fewer while no strategy reads what was
#: learned; each pair has its turn, with all its samples since the last one.
MOST_CHANGES, MOST_UNREAD_CHANGES = 1_000, 100
#: Ends of foreign leases that are shared in one second: about 15 KiB.
MOST_ENDINGS = 500
#: Samples after which they are added to what was learned at once, without waiting for the next tick.
MOST_SAMPLES = 2_000
#: Seconds between two additions while no strategy reads what was learned, and the number of samples that wait at most:
#: about 4 MiB. Adding costs 10 us for each pair of agent and task type, however many samples it has.
UNREAD_S, MOST_UNREAD = 5.0, 40_000
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
        self._attempts: defaultdict[str, defaultdict[str, Attempts]] = defaultdict(
            _no_attempts
        )  # type -> agent -> them
        self._count = 0  # of attempts that were not added yet
        self._applied_at = float("-inf")
        self._read_at = float("-inf")  # by a strategy
        self._foreign: list[ForeignEnding] = []
        self.ejections: list[Ejection] = []  #: decided here and not recorded yet

    def settled(self, endings: Sequence[Ending], assigned: Sequence[Assigned | None], now: float) -> None:
        """Take over the reports that a round trip has settled.

        Args:
            endings: the reports that end a lease.
            assigned: what the planner knows of each.
            now: the time.
        """
        attempts = self._attempts
        failed: dict[str, None] = {}  # task types
        for report, known in zip(endings, assigned, strict=True):
            if type(report) is TaskReleased:
                continue
            took = _seconds_of(report)
            if known is None:
                if len(self._foreign) < MOST_ENDINGS and not _is_about_version(report):
                    self._foreign.append((report.lease, took))
                continue
            agent_id, task_type, load, at = known
            if took is FAILED and _is_about_version(report):
                continue
            of = attempts[task_type][agent_id]
            if took is FAILED:
                of.failed += 1
                failed[task_type] = None
            else:
                of.samples.append((max(LEAST_S, now - at) if took is None else took, load))
            self._count += 1
        # An agent that fails at once is found before it gets many more tasks.
        self._apply_types(failed, now)
        if self._count > MOST_SAMPLES:
            self._apply_if_due(now)

    def timed_out(self, leases: Sequence[str], now: float) -> None:
        """Take over attempts that took longer than their timeout: they failed."""
        failed: dict[str, None] = {}  # task types
        for lease, assigned in zip(leases, self.planner.end_leases(leases), strict=True):
            if assigned is not None:
                agent_id, task_type = assigned[:2]
                self._attempts[task_type][agent_id].failed += 1
                self._count += 1
                failed[task_type] = None
            elif len(self._foreign) < MOST_ENDINGS:
                self._foreign.append((lease, FAILED))
        self._apply_types(failed, now)

    def apply(self, now: float) -> None:
        """Add what was gathered to what is known."""
        self._applied_at = now
        self._apply_types(list(self._attempts), now)

    def _apply_if_due(self, now: float) -> None:
        """Do that if a strategy reads what is known, or if it was not done for a while."""
        if self._is_read(now) or self._count > MOST_UNREAD or now - self._applied_at >= UNREAD_S:
            self.apply(now)

    def _is_read(self, now: float) -> bool:
        """Return True if a strategy reads what is known."""
        learned = self.view.learned
        if learned.was_read:
            self._read_at, learned.was_read = now, False
        return now - self._read_at < UNREAD_S

    def _apply_types(self, task_types: Iterable[str], now: float) -> None:
        """Add what was gathered of some task types."""
        agents = self.view.agents
        changes: list[Change] = []
        for task_type in task_types:
            for agent_id, of in self._attempts.pop(task_type).items():
                self._count -= len(of.samples) + of.failed + of.untimed
                if agent_id in agents:
                    changes.append(Change(agent_id, task_type, Sums.of(of.samples, of.failed, of.untimed)))
        if changes:
            self.view.learned.add(changes, now)
            self._judge(changes, now)

    def review(self, now: float) -> None:
        """Apply what was gathered, and end the ejections that are over. Call it a few times a second."""
        self._apply_if_due(now)
        types, early = self.view.ejections.review(now)
        self.ejections += early
        self.view.apply_ejections(types)

    def take(self, now: float) -> bytes | None:
        """Return the data of an entry with all that was added since the last call; None if nothing was."""
        self._apply_if_due(now)
        changes = self.view.learned.take_changes(MOST_CHANGES if self._is_read(now) else MOST_UNREAD_CHANGES)
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
            of = self._attempts[task_type][agent_id]
            if took is None:
                of.untimed += 1
            elif took < 0:
                of.failed += 1
            else:
                of.samples.append((took, load))
            self._count += 1


def _no_attempts() -> defaultdict[str, Attempts]:
    return defaultdict(Attempts)


def _seconds_of(report: Ending) -> float | None:
    """Return how long a successful attempt took; FAILED if it failed, None if its report does not say."""
    if type(report) is not TaskCompleted:
        return FAILED
    ago = report.started_ms_ago
    return None if ago is None else max(LEAST_S, ago / 1000)


def _is_about_version(report: Ending) -> bool:
    """Return True if an agent could not decode a payload: agents of other versions may, so it is not its fault."""
    return type(report) is not TaskCompleted and getattr(report, "code", "") == UNDECODABLE


def _rounded(change: Change) -> Change:
    """Return a change whose numbers have six digits: they are written as text."""
    numbers: dict[str, Any] = asdict(change.sums)
    short = {name: float(f"{value:.6g}") for name, value in numbers.items() if type(value) is float}
    return Change(change.agent_id, change.task_type, replace(change.sums, **short))
