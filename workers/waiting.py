"""A pool in which tasks wait, as a distributor knows it: a row of the planner's table."""

from __future__ import annotations

from bisect import insort
from collections.abc import Collection, Iterable
from math import inf

from coord.models.explanations import WaitingReason
from coord.models.tasks import NamedTask, Pool
from coord.placement import AVOIDED_S, TaskContext
from workers.candidates import Candidates

#: Tasks of a named queue that are read at once, and the maximum if that many are planned or blocked.
NAMED_READ, MOST_READ = 256, 4_096
#: What a task avoids that avoids nobody.
NOBODY: frozenset[str] = frozenset()


class Waiting:
    """A pool in which tasks wait, as last reported, and the tasks of it that are planned and not answered."""

    __slots__ = (
        "definition", "general", "group", "head", "is_judged", "is_read", "key", "length", "planned", "preferred",
        "reason", "task",
    )  # fmt: skip

    def __init__(self, definition: Pool, general: Candidates, preferred: Candidates | None = None) -> None:
        self.definition = definition
        self.general = general  #: the agents that meet its requirements
        self.preferred = preferred  #: those of them that get its tasks, if there are any; None: it prefers none
        self.group = self.wanted_group  #: the one that it is in
        #: What strategies see of each of its tasks.
        self.task = TaskContext(definition.task_type, expected_ms=definition.expected_ms)
        self.length = 0
        self.head = -inf
        self.planned = 0
        self.is_read = False  #: length and head are known; they are read when an agent can serve the pool
        self.key: float | None = None  #: its head in its group's line; None: it is not in the line
        #: Why its tasks wait, as last judged; None: no task has waited from one judgement to the next.
        self.reason: WaitingReason | None = None
        self.is_judged = False

    def judge(self, reason: WaitingReason) -> None:
        """Take over why its tasks wait. The first time says nothing: they may be placed in a moment."""
        self.reason = reason if self.is_judged else None
        self.is_judged = True

    @property
    def wanted_group(self) -> Candidates:
        """The group whose agents get its tasks now."""
        return self.preferred if self.preferred is not None and self.preferred.eligible else self.general

    @property
    def left(self) -> int:
        """Number of tasks that are not planned yet."""
        return self.length - self.planned


class NamedWaiting(Waiting):
    """The named queue of a pool: its first tasks are known one by one."""

    __slots__ = ("blocked", "known", "known_order", "order", "passed_over", "sent")

    def __init__(self, definition: Pool, general: Candidates, preferred: Candidates | None = None) -> None:
        super().__init__(definition, general, preferred)
        self.known: list[NamedTask] = []  #: the first tasks that are not planned, in their order
        self.blocked: list[NamedTask] = []  #: those of them whose agents are full, until the next plan
        self.sent: dict[str, NamedTask] = {}  #: planned and not answered, by id
        self.order = 0  #: how often tasks that wait have changed their places
        self.known_order = 0  #: the order that ``known`` is of; tasks of an earlier one are not planned
        #: A task that was blocked, the agents that it avoids -> when it was first, in seconds of a steady clock.
        self.passed_over: dict[tuple[str, tuple[str, ...]], float] = {}

    @property
    def left(self) -> int:
        """Number of tasks that can be planned now."""
        return len(self.known)

    def take_over(self, tasks: Iterable[NamedTask]) -> None:
        """Replace the known tasks by those that were read: the first ones of the queue, in their order."""
        self.known = []
        for task in tasks:
            if task.task_id in self.sent:
                self.sent[task.task_id] = task
            else:
                self.known.append(task)
        self.blocked = []
        if self.passed_over:
            waiting = {(task.task_id, task.avoid) for task in (*self.known, *self.sent.values())}
            self.passed_over = {task: since for task, since in self.passed_over.items() if task in waiting}
        self.follow_head()

    def follow_head(self) -> None:
        """Set the head, by which the queue has its turn, to the first task that is not planned."""
        if self.known:
            self.head = self.known[0].score

    @property
    def is_in_order(self) -> bool:
        """False if tasks have changed their places since they were read."""
        return self.known_order == self.order

    @property
    def wanted(self) -> int:
        """Number of tasks to read: some more than those that are not to be planned now."""
        return min(MOST_READ, NAMED_READ + len(self.sent) + len(self.blocked))

    def expect(self, tasks: Iterable[NamedTask]) -> None:
        """Add tasks that are about to be admitted; those behind a task that is not known here are read later."""
        is_whole = self.length <= len(self.known) + len(self.blocked) + len(self.sent)
        for task in tasks:
            if is_whole or (self.known and place_of(task) < place_of(self.known[-1])):
                insort(self.known, task, key=place_of)

    def check(self) -> None:
        """Have the queue read if its order has changed, or if another task comes before the known ones."""
        more = self.length - len(self.known) - len(self.blocked) - len(self.sent)
        is_behind = self.known and not (self.sent or self.blocked) and self.head < self.known[0].score
        self.is_read = self.is_in_order and not is_behind and (more <= 0 or bool(self.known))

    def block(self, task: NamedTask, now: float) -> None:
        """Let a task wait: only agents that it avoids have room."""
        self.blocked.append(task)
        self.passed_over.setdefault((task.task_id, task.avoid), now)

    def avoids_nobody(self, task: NamedTask, now: float) -> bool:
        """Return True if a task has waited long enough for agents that it does not avoid."""
        return now - self.passed_over.get((task.task_id, task.avoid), inf) >= AVOIDED_S

    def unblock(self) -> None:
        """Try the blocked tasks again in the next plan."""
        self.known = sorted(self.known + self.blocked, key=place_of)
        self.blocked = []
        self.follow_head()

    def answered(self, task_id: str, *, is_over: bool) -> None:
        """Apply the answer for a planned task: it has left the queue, or it waits again."""
        task = self.sent.pop(task_id, None)
        if task is None:
            return
        if is_over:
            self.passed_over.pop((task_id, task.avoid), None)
        else:
            insort(self.known, task, key=place_of)
            self.follow_head()

    def _avoids(self, task: NamedTask) -> bool:
        return bool(task.avoid) and self.group.rules.avoid_failed_agent

    def context_of(self, task: NamedTask, *, avoids: bool = True) -> TaskContext:
        """Return what strategies see of a task; ``avoids``: with the agents that it avoids."""
        preferences = task.preferences
        return TaskContext(
            self.definition.task_type,
            task.priority,
            preferences.location,
            preferences.affinity_key,
            avoided(task.avoid, self.group.eligible) if avoids and self._avoids(task) else NOBODY,
            self.definition.expected_ms,
        )


def avoided(agent_ids: Iterable[str], eligible: Collection[str]) -> frozenset[str]:
    """Return the agents that a task does not get: as many as leave at least one eligible agent, the first ones first.

    Args:
        agent_ids: agents to avoid, the most important first.
        eligible: agents that meet the requirements of the task.
    """
    found: set[str] = set()
    left = len(eligible)
    for agent_id in agent_ids:
        if agent_id in eligible and agent_id not in found:
            left -= 1
            if left <= 0:
                break
        found.add(agent_id)
    return frozenset(found)


def place_of(task: NamedTask) -> tuple[float, str]:
    """Return the place of a task in its queue."""
    return task.score, task.task_id
