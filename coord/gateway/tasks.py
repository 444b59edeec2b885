"""Handlers of tasks: submit, list, return, explain, cancel and retry them; list the pools in which tasks wait."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import msgspec
from msgspec import Meta, Struct
from msgspec.structs import replace

from coord.client.handle import MAX_REASON
from coord.errors import CoordError
from coord.gateway.backend import Appended
from coord.gateway.body import check_decodable, decode
from coord.gateway.errors import Problem, RequestError, status_of
from coord.gateway.idempotency import conflict_is_reuse, id_of
from coord.gateway.routes import Answer, Call, written
from coord.gateway.schemas import (
    PoolsFound,
    RequirementsBody,
    SubmitTask,
    Submitted,
    TaskData,
    TaskExplained,
    TaskFound,
    TaskSchema,
    now,
)
from coord.models.ids import Id, new_id
from coord.models.tasks import Priority, Requirements, Retry, TaskState, TaskSubmitted, Text, check_moment
from coord.models.tracing import is_traceparent

#: The type of a task whose ``task_data`` has none.
TASK_TYPE = "task"
#: Maximum number of tasks in a batch.
MOST_IN_BATCH = 1_000
#: Maximum number of tasks in a list: the default, and the limit of the limit.
TASKS, MOST_TASKS = 100, 1_000
#: Maximum number of pools in a response: the default, and the limit of the limit.
POOLS, MOST_POOLS = 100, 1_000


class PoolsQuery(Struct, frozen=True):
    """The query of GET /pools."""

    limit: Annotated[int, Meta(ge=1, le=MOST_POOLS)] = POOLS


class TasksQuery(Struct, frozen=True):
    """The query of GET /tasks."""

    q: str = ""  #: ``type:ocr state:failed age:>1h``; the other parameters narrow it further
    state: tuple[TaskState, ...] = ()
    agent_id: Id | None = None
    task_type: Text | None = None
    limit: Annotated[int, Meta(ge=1, le=MOST_TASKS)] = TASKS
    cursor: str | None = None


class SubmitBatch(Struct, frozen=True):
    """POST /tasks/batch."""

    tasks: Annotated[
        list[Annotated[msgspec.Raw, Meta(extra_json_schema={"$ref": "#/components/schemas/SubmitTask"})]],
        Meta(min_length=1, max_length=MOST_IN_BATCH),
    ]  #: as of POST /tasks/submit


class CancelBody(Struct, frozen=True):
    """POST /tasks/{id}/cancel; the body is optional."""

    reason: Annotated[str, Meta(max_length=MAX_REASON)] = ""


class BatchResult(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What became of one task of a batch."""

    status: str  #: success, accepted (no worker has answered yet), or error
    task_id: str | None = None
    priority: str | None = None
    submitted_at: str | None = None
    code: str | None = None
    message: str | None = None
    detail: str | list[Problem] | None = None


class BatchSubmitted(Struct, frozen=True, kw_only=True):
    """POST /tasks/batch."""

    status: str = "success"
    results: list[BatchResult]  #: in the order of the request
    count: int
    submitted: int  #: those that are not errors
    timestamp: str


class TasksListed(Struct, frozen=True, kw_only=True):
    """GET /tasks. The tasks have no payload, result, progress and attempts.

    One request examines 10,000 tasks at most, so a page may be short, even empty, before the last one.
    """

    status: str = "success"
    tasks: list[TaskSchema]
    count: int
    next: str | None  #: cursor of the next page; null: this is the last one
    timestamp: str


class TaskCancelled(Struct, frozen=True, kw_only=True):
    """POST /tasks/{id}/cancel."""

    status: str = "success"
    message: str = "The task is cancelled, or its agent was asked to stop"
    task_id: str
    cancel: str  #: accepted; pending: it is cancelled when its submission is handled


class TaskRetried(Struct, frozen=True, kw_only=True):
    """POST /tasks/{id}/retry."""

    status: str = "success"
    message: str = "The task is queued again"
    task_id: str


async def list_tasks(call: Call[None, TasksQuery]) -> TasksListed:
    """List tasks that match a query: those that agents hold, that wait, that failed, and the others that ended."""
    query = call.query
    page = await call.backend.list_tasks(
        query.q,
        states=query.state,
        agent_id=query.agent_id,
        task_type=query.task_type,
        limit=query.limit,
        cursor=query.cursor,
        once=True,
    )
    tasks = [TaskSchema.of(record) for record in page.tasks]
    return TasksListed(tasks=tasks, count=len(tasks), next=page.next, timestamp=now())


async def submit_batch(call: Call[SubmitBatch, None]) -> Answer:
    """Submit up to 1,000 tasks; each has a result of its own."""
    traceparent = call.header(b"traceparent")
    found: list[tuple[TaskSubmitted, Priority] | CoordError] = []
    ids: set[str] = set()
    for number, raw in enumerate(call.body.tasks):
        try:
            body = decode(bytes(raw), SubmitTask, at=("body", "tasks", str(number)))
            fact, priority = task_fact(body, id_of(call, number), traceparent)
            if fact.task_id in ids:
                raise RequestError("body_invalid", f"tasks.{number}: task_id '{fact.task_id}' is in the batch twice")
            ids.add(fact.task_id)
            found.append((fact, priority))
        except CoordError as error:
            found.append(error)
    tasks = [task for task in found if not isinstance(task, CoordError)]
    outcomes = iter(await call.backend.submit_many(tasks, call.wait_s))
    results = [
        _batch_error(task) if isinstance(task, CoordError) else _batch_result(*task, next(outcomes)) for task in found
    ]
    submitted = sum(result.status != "error" for result in results)
    answer = BatchSubmitted(results=results, count=len(results), submitted=submitted, timestamp=now())
    return Answer(answer, is_final=not any(map(_may_improve, results)))


async def cancel(call: Call[CancelBody, None]) -> Struct | Answer:
    """Cancel a task; its agent is asked to stop."""
    task_id = call.params["task_id"]
    found = await call.backend.cancel(task_id, call.body.reason, call.wait_s)
    body = TaskCancelled(task_id=task_id, cancel=found or "pending")
    return written(call, body, answered=found is not None, path=f"/tasks/{task_id}")


async def retry(call: Call[None, None]) -> Struct | Answer:
    """Queue a failed task again: the same id, fresh attempts, its history kept."""
    task_id = call.params["task_id"]
    answered = await call.backend.retry(task_id, call.wait_s)
    return written(call, TaskRetried(task_id=task_id), answered=answered, path=f"/tasks/{task_id}")


def _may_improve(result: BatchResult) -> bool:
    """Return True if a repeated request may do better: no worker has answered, or the cell could not take the task."""
    return result.status == "accepted" or (result.code is not None and status_of(result.code) == 503)


def _batch_result(fact: TaskSubmitted, priority: Priority, outcome: Appended | CoordError) -> BatchResult:
    if isinstance(outcome, CoordError):
        return _batch_error(outcome, fact.task_id)
    return BatchResult(
        status="success" if outcome.answered else "accepted",
        task_id=fact.task_id,
        priority=priority,
        submitted_at=outcome.at,
    )


def _batch_error(error: CoordError, task_id: str | None = None) -> BatchResult:
    code, problems = (error.name, error.problems) if isinstance(error, RequestError) else (error.code, None)
    return BatchResult(status="error", task_id=task_id, code=code, message=str(error), detail=problems or str(error))


async def submit(call: Call[SubmitTask, None]) -> Struct | Answer:
    """Submit a task."""
    body, key_id = call.body, id_of(call)
    fact, priority = task_fact(body, key_id, call.header(b"traceparent"))
    with conflict_is_reuse(fact.task_id, key_id):
        at, answered = await call.backend.submit(fact, priority, call.wait_s)
    submitted = Submitted.of(fact.task_id, priority, at, paid=body.payment is not None)
    return written(call, submitted, answered=answered, path=f"/tasks/{fact.task_id}")


async def get(call: Call[None, None]) -> TaskFound:
    """Return a task's record: everything, attempts, placement, result."""
    return TaskFound.of(await call.backend.task(call.params["task_id"]))


async def explain(call: Call[None, None]) -> TaskExplained:
    """Return why the task waits, or why it went to its agent."""
    return TaskExplained.of(await call.backend.explain(call.params["task_id"]))


async def pools(call: Call[None, PoolsQuery]) -> PoolsFound:
    """Return the pools in which tasks wait, with the reason; first those that no agent may serve."""
    return PoolsFound.of(await call.backend.backlog(call.query.limit))


def task_fact(body: SubmitTask, key_id: str | None, traceparent: str | None = None) -> tuple[TaskSubmitted, Priority]:
    """Return the task to submit, and its priority.

    Args:
        body: the request.
        key_id: the task id derived from the request's Idempotency-Key; None without one.
        traceparent: of the request.

    Raises:
        RequestError: the priority is unknown, or a time or ``task_data`` is invalid.
    """
    raw = bytes(body.task_data)
    data = decode(raw, TaskData, at=("body", "task_data"))
    check_decodable(raw, "task_data")
    for field in ("deadline", "run_at"):
        _check_moment(getattr(body, field), field)
    try:
        fact = TaskSubmitted(
            task_id=data.task_id or key_id or new_id(),
            task_type=data.task_type or TASK_TYPE,
            payload=body.task_data,
            requirements=_requirements(body.requirements, data.required_capabilities),
            timeout=body.timeout,
            deadline=body.deadline,
            delay=body.delay,
            run_at=body.run_at,
            retry=body.retry or Retry(),
            location=body.location or (body.requirements.location if body.requirements else None),
            affinity_key=body.affinity_key,
            expected_ms=body.expected_ms,
            traceparent=traceparent if is_traceparent(traceparent) else None,
        )
    except ValueError as error:  # of the fields together
        raise RequestError("fact_invalid", str(error), [Problem(["body"], str(error), "value_error")]) from None
    return fact, _priority(body.priority)


def _requirements(wanted: RequirementsBody | None, capabilities: tuple[str, ...] | None) -> Requirements:
    """Return the requirements, with the capabilities in the task's data; without any, every agent may get the task."""
    if wanted is None:
        return Requirements(capabilities=tuple(capabilities)) if capabilities else Requirements()
    required = Requirements(**{name: getattr(wanted, name) for name in Requirements.__struct_fields__})
    if not capabilities:
        return required
    more = (name for name in capabilities if name not in required.capabilities)
    return replace(required, capabilities=(*required.capabilities, *more))


def _check_moment(moment: datetime | None, field: str) -> None:
    if moment is not None:
        try:
            check_moment(moment, field)
        except ValueError as error:
            problem = Problem(["body", field], str(error), "value_error")
            raise RequestError("body_invalid", str(error), [problem]) from None


def _priority(name: str | None) -> Priority:
    try:
        return Priority(name.lower()) if name is not None else Priority.NORMAL
    except ValueError:
        raise RequestError("invalid_priority", f"Invalid priority: {name[:60] if name else name}") from None
