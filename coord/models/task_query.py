"""The fields of a query for tasks: ``type:ocr state:failed age:>1h``. ``TASKS`` is the grammar.

``TaskFacts`` is what a query looks at. A task has its type and requirements from its pool, and the reason why it waits
is that of its pool.
"""

from __future__ import annotations

from typing import NamedTuple

from coord.models.explanations import WaitingReason
from coord.models.query import Field, Grammar, Kind
from coord.models.tasks import NAMED, Pool, Priority, TaskState

_NO_POOL = Pool("")


class TaskFacts(NamedTuple):
    """What a query looks at. Times are milliseconds since 1970 on the server's clock."""

    task_id: str
    state: TaskState
    priority: str
    pool: str
    submitted_at: int
    definition: Pool = _NO_POOL
    agent_id: str | None = None
    reason: WaitingReason | None = None
    error: str | None = None  #: code of its error
    finished_at: int | None = None
    attempts: int = 0  #: number of times that it was assigned


def _changed_at(task: TaskFacts) -> int:
    return task.submitted_at if task.finished_at is None else task.finished_at


def _labels(task: TaskFacts) -> tuple[str, ...]:
    return tuple(f"{name}={value}" for name, value in task.definition.requirements.labels.items())


def _pools(task: TaskFacts) -> tuple[str, str]:
    """Return the name of its queue, and of its pool."""
    return task.pool, task.pool.removesuffix(NAMED)


_FIELDS: tuple[Field[TaskFacts], ...] = (
    Field("id", Kind.TEXT, "Id of the task.", lambda task: task.task_id, "id:report-*"),
    Field("type", Kind.TEXT, "Type of the task.", lambda task: task.definition.task_type, "type:ocr"),
    Field("state", Kind.CHOICE, "State.", lambda task: task.state, "state:failed", tuple(TaskState)),
    Field("priority", Kind.CHOICE, "Priority.", lambda task: task.priority, "priority:urgent,high", tuple(Priority)),
    Field("pool", Kind.TEXT, "Pool: what interchangeable tasks share.", _pools, "pool:9f2c*"),
    Field("agent", Kind.TEXT, "Agent that holds it, or held it last.", lambda task: task.agent_id, "agent:ocr-1"),
    Field("reason", Kind.CHOICE, "Why it waits.", lambda task: task.reason, "reason:all_full", tuple(WaitingReason)),
    Field("error", Kind.TEXT, "Code of the error with which it ended.", lambda task: task.error, "error:timeout"),
    Field("age", Kind.DURATION, "Time since it was submitted.", lambda task: task.submitted_at, "age:>1h"),
    Field("since", Kind.MOMENT, "It ended (not ended: was submitted) at this time or later.", _changed_at, "since:1h"),
    Field("ended", Kind.DURATION, "Time since it ended.", lambda task: task.finished_at, "ended:<10m"),
    Field("attempts", Kind.NUMBER, "Times that it was assigned.", lambda task: task.attempts, "attempts:>=2"),
    Field(
        "capability", Kind.TEXT, "Capability that it requires.",
        lambda task: task.definition.requirements.capabilities, "capability:gpu",
    ),
    Field(
        "service", Kind.TEXT, "Service that it requires.",
        lambda task: task.definition.requirements.services, "service:search",
    ),
    Field("tag", Kind.TEXT, "Tag that it requires.", lambda task: task.definition.requirements.tags, "tag:fast"),
    Field("label", Kind.TEXT, "Label that it requires, with its value.", _labels, "label:zone=eu"),
)  # fmt: skip

#: The grammar. A word without a field is the beginning of an id, or a type.
TASKS: Grammar[TaskFacts] = Grammar("task", _FIELDS, shorthand=("id", "type"))
